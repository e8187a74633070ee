//! Keeps the right probes running and takes in what they say.

use super::Worker;
use crate::counters::Probed as Counted;
use crate::events::Severity;
use crate::handler::Target;
use crate::operation::start::pod_ip;
use crate::pod::Member;
use crate::probe::{self, Purpose, Report, Verdict};
use crate::sync;
use crate::sync::observed::{Container, State};

impl Worker {
    /// Starts probes that are due and drops those of containers that do not run. Liveness and readiness wait for the startup
    /// probe; once the pod ends only readiness is asked for.
    pub(super) fn sync_probes(&mut self) {
        let ending = sync::ending(&self.pod, &self.observed).is_some();
        let running = self.probed_containers();
        self.probes.retain(|(id, purpose), _| {
            running.iter().any(|c| c.id == *id) && (!ending || *purpose == Purpose::Readiness)
        });
        if ending {
            return;
        }
        let pod = self.pod.clone();
        for container in &running {
            let Some(member) = pod.member(&container.name) else { continue };
            let probed = self.observed.probed(&container.id);
            if member.container.startup_probe.is_some() && !probed.started {
                self.ensure_probe(member, container, Purpose::Startup, None);
                continue;
            }
            self.ensure_probe(member, container, Purpose::Liveness, Some(true));
            self.ensure_probe(member, container, Purpose::Readiness, Some(probed.ready));
        }
    }

    fn ensure_probe(&mut self, member: &Member, container: &Container, purpose: Purpose, told: Option<bool>) {
        let key = (container.id.clone(), purpose);
        if self.probes.contains_key(&key) {
            return;
        }
        let probe = match purpose {
            Purpose::Startup => member.container.startup_probe.clone(),
            Purpose::Liveness => member.container.liveness_probe.clone(),
            Purpose::Readiness => member.container.readiness_probe.clone(),
        };
        let (Some(probe), Some(sandbox)) = (probe, self.observed.sandbox()) else { return };
        let State::Running { since } = container.state else { return };
        let target = Target {
            runtime: self.kit.runtime.clone(),
            container_id: container.id.clone(),
            container: member.container.clone(),
            ip: pod_ip(&self.kit, &self.pod, sandbox),
        };
        let counted = Counted {
            namespace: self.pod.key.namespace.clone(),
            pod: self.pod.key.name.clone(),
            pod_uid: self.pod.uid.clone(),
            container: container.name.clone(),
            purpose,
        };
        let counters = (self.kit.counters.clone(), counted);
        if let Some(task) = probe::spawn(probe, purpose, target, since, told, self.reports.clone(), counters) {
            self.probes.insert(key, task);
        }
    }

    pub(super) fn hear_probe(&mut self, report: Report) {
        // The container may have ended since it was asked.
        if !self.observed.containers.iter().any(|c| c.id == report.container_id && c.is_running()) {
            return;
        }
        let title = report.purpose.title();
        if let Verdict::Failed(why) | Verdict::GaveUp(why) = &report.verdict {
            let text = format!("{title} probe failed: {why}");
            self.kit.recorder.pod(&self.pod, Some(&report.container), Severity::Warning, "Unhealthy", text);
        }
        let container = self.pod.member(&report.container).map(|m| &m.container);
        let grace = container.and_then(|c| match report.purpose {
            Purpose::Startup => c.startup_probe.as_ref()?.termination_grace_period_seconds,
            Purpose::Liveness => c.liveness_probe.as_ref()?.termination_grace_period_seconds,
            Purpose::Readiness => None,
        });
        let probed = self.observed.probes.entry(report.container_id).or_default();
        match (report.purpose, report.verdict) {
            (_, Verdict::Failed(_)) => {}
            (Purpose::Startup, Verdict::Passed) => probed.started = true,
            (Purpose::Readiness, verdict) => probed.ready = verdict == Verdict::Passed,
            (Purpose::Liveness, Verdict::Passed) => probed.unhealthy = None,
            (Purpose::Startup | Purpose::Liveness, Verdict::GaveUp(_)) => {
                probed.unhealthy = Some((format!("{} probe", title.to_lowercase()), grace));
            }
        }
    }
}
