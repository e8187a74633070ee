//! Probes: a task per container and probe asks, counts, and reports changes to the pod's worker. The count is pure (`Tally`).
//! Invariant: a report is sent only when what the worker knows changes.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::handler::{Question, Target};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    Startup,
    Liveness,
    Readiness,
}

impl Purpose {
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Purpose::Startup => "Startup",
            Purpose::Liveness => "Liveness",
            Purpose::Readiness => "Readiness",
        }
    }
}

/// What a probe has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub container_id: String,
    pub container: String,
    pub purpose: Purpose,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enough successes in a row.
    Passed,
    /// Enough failures in a row.
    GaveUp(String),
    /// One failure: an event, not yet a change.
    Failed(String),
}

/// Successes and failures in a row.
#[derive(Clone, Debug)]
struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    successes: u32,
    failures: u32,
    /// What was last told; `None` before anything.
    told: Option<bool>,
}

impl Tally {
    fn new(probe: &Probe, told: Option<bool>) -> Tally {
        let number =
            |value: Option<i32>, default: u32| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1);
        Tally {
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
            successes: 0,
            failures: 0,
            told,
        }
    }

    /// True or false when that is news.
    fn count(&mut self, success: bool) -> Option<bool> {
        if success {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
        }
        let reached =
            if success { self.successes >= self.success_threshold } else { self.failures >= self.failure_threshold };
        if !reached || self.told == Some(success) {
            return None;
        }
        self.told = Some(success);
        Some(success)
    }
}

fn question(probe: &Probe) -> Option<Question> {
    let exec = probe.exec.clone().map(Question::Exec);
    let get = || probe.http_get.clone().map(Question::HttpGet);
    let tcp = || probe.tcp_socket.clone().map(Question::TcpSocket);
    let grpc = || probe.grpc.clone().map(Question::Grpc);
    exec.or_else(get).or_else(tcp).or_else(grpc)
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

/// Probes until dropped. `told` is what the worker believes already.
#[must_use]
pub fn spawn(
    probe: Probe,
    purpose: Purpose,
    target: Target,
    started_at: Timestamp,
    told: Option<bool>,
    reports: mpsc::UnboundedSender<Report>,
) -> Option<AbortOnDropHandle<()>> {
    let question = question(&probe)?;
    let task = tokio::spawn(async move {
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let delay = seconds(probe.initial_delay_seconds, 0);
        let age = Duration::try_from(Timestamp::now().duration_since(started_at)).unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        let mut tally = Tally::new(&probe, told);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = target.ask(&question, timeout).await;
            let news = tally.count(answer.is_ok());
            let verdict = match (answer, news) {
                (Ok(()), Some(_)) => Verdict::Passed,
                (Ok(()), None) => continue,
                (Err(error), Some(_)) => Verdict::GaveUp(error.answer()),
                (Err(error), None) => Verdict::Failed(error.answer()),
            };
            let stop = matches!(
                (&verdict, purpose),
                (Verdict::Passed, Purpose::Startup) | (Verdict::GaveUp(_), Purpose::Startup | Purpose::Liveness)
            );
            let container = target.container.name.clone();
            let report = Report { container_id: target.container_id.clone(), container, purpose, verdict };
            // A worker that is gone needs no more probing.
            if reports.send(report).is_err() || stop {
                return;
            }
        }
    });
    Some(AbortOnDropHandle::new(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut tally = Tally::new(&probe, None);
        let answers = [true, false, true, true, true, false, false, true, false, false, false, false, true, true];
        let news: Vec<Option<bool>> = answers.into_iter().map(|a| tally.count(a)).collect();
        let mut expect = vec![None; 14];
        expect[3] = Some(true);
        expect[10] = Some(false);
        expect[13] = Some(true);
        assert_eq!(news, expect);
        let mut known = Tally::new(&Probe::default(), Some(true));
        assert_eq!(known.count(true), None, "no news after a restart of the kubelet");
    }
}
