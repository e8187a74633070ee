//! What the kubelet counts of itself, for `/metrics`: panics that were caught, requests and connections that were refused.
//! Invariant: counting never waits and never fails.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::probe::Purpose;

/// Rows kept for probes; beyond it no new ones are begun until pods have gone.
const PROBES_MAX: usize = 4096;

/// Where a panic was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Pod,
    Request,
    Probe,
    Task,
}

impl Place {
    const ALL: [Place; 4] = [Place::Pod, Place::Request, Place::Probe, Place::Task];

    fn name(self) -> &'static str {
        match self {
            Place::Pod => "pod",
            Place::Request => "request",
            Place::Probe => "probe",
            Place::Task => "task",
        }
    }
}

/// One container's probe, as its metrics name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    pub purpose: Purpose,
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    good: u64,
    bad: u64,
}

#[derive(Debug, Default)]
pub struct Counters {
    panics: [AtomicU64; 4],
    refused_connections: AtomicU64,
    probes: Mutex<BTreeMap<Probed, Answers>>,
}

impl Counters {
    pub fn panicked(&self, place: Place) {
        self.panics[place as usize].fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn panics(&self, place: Place) -> u64 {
        self.panics[place as usize].load(Ordering::Relaxed)
    }

    pub fn connection_refused(&self) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn probed(&self, probe: &Probed, good: bool) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        if !probes.contains_key(probe) {
            if probes.len() >= PROBES_MAX {
                return;
            }
            probes.insert(probe.clone(), Answers::default());
        }
        if let Some(answers) = probes.get_mut(probe) {
            let count = if good { &mut answers.good } else { &mut answers.bad };
            *count = count.saturating_add(1);
        }
    }

    /// The pod is gone, and its probes with it.
    pub fn forget(&self, pod_uid: &str) {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).retain(|probe, _| probe.pod_uid != pod_uid);
    }

    /// The counters without those of probes, in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::from(
            "# HELP kubelet_panics_total [ALPHA] Panics that were caught, by place\n# TYPE kubelet_panics_total counter\n",
        );
        for place in Place::ALL {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "kubelet_panics_total{{place=\"{}\"}} {}", place.name(), self.panics(place));
        }
        let refused = self.refused_connections.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "# HELP kubelet_refused_connections_total [ALPHA] Connections to the kubelet's port closed because there were too many\n# TYPE kubelet_refused_connections_total counter\nkubelet_refused_connections_total {refused}"
        );
        out
    }

    /// `/metrics/probes`.
    #[must_use]
    pub fn probes_text(&self) -> String {
        let mut out = String::from(
            "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n# TYPE prober_probe_total counter\n",
        );
        for (probe, answers) in self.probes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (result, count) in [("successful", answers.good), ("failed", answers.bad)] {
                if count > 0 {
                    let Probed { namespace, pod, pod_uid, container, purpose } = probe;
                    let kind = purpose.title();
                    let _ = writeln!(
                        out,
                        "prober_probe_total{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",pod_uid=\"{pod_uid}\",probe_type=\"{kind}\",result=\"{result}\"}} {count}"
                    );
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_probes_are_counted_until_the_pod_is_gone() {
        let counters = Counters::default();
        let probe = Probed {
            namespace: "d".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            container: "c".into(),
            purpose: Purpose::Readiness,
        };
        counters.probed(&probe, true);
        counters.probed(&probe, true);
        counters.probed(&probe, false);
        let text = counters.probes_text();
        let row = |result: &str, count: u32| {
            format!(
                "prober_probe_total{{container=\"c\",namespace=\"d\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\",result=\"{result}\"}} {count}\n"
            )
        };
        assert!(text.ends_with(&(row("successful", 2) + &row("failed", 1))), "{text}");
        counters.forget("u");
        assert!(!counters.probes_text().contains("pod=\"p\""));
    }
}
