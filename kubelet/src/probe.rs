//! Probes: a task per container and probe asks, counts, and reports changes to the pod's worker. The count is pure (`Tally`).
//! Invariant: a report is sent only when what the worker knows changes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::counters::{Counters, Place, Probed};
use crate::handler::{Question, Target};
use crate::survival;

/// The first wait of a container that is not ready yet; each further one is twice as long.
const EAGER_FIRST: Duration = Duration::from_millis(50);
/// No program is dead before this age.
const LIVENESS_DELAY_MIN: Duration = Duration::from_secs(1);
/// That a program which has just begun does not answer yet is no news.
const QUIET_AT_START: Duration = Duration::from_secs(1);

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

/// When a probe asks. Pure: the caller says how old the container is.
///
/// ```text
///   readiness, startup:  delay --> ask, +50 ms, +100 ms, +200 ms ... until the first yes or the period is reached --> each period
///   liveness:            delay, but no sooner than a second after the start --> each period
/// ```
/// What is asked between two periods is asked to hear of the first yes soon; its no counts for nothing.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    period: Duration,
    delay: Duration,
    purpose: Purpose,
    /// The next wait of the eager ones; `None` once they are over.
    eager: Option<Duration>,
    /// What is left until the next regular one.
    until_regular: Duration,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    wait: Duration,
    /// A no counts towards the failure threshold.
    counts: bool,
}

impl Schedule {
    fn new(probe: &Probe, purpose: Purpose) -> Schedule {
        let own = seconds(probe.initial_delay_seconds, 0);
        Schedule {
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            delay: if purpose == Purpose::Liveness { own.max(LIVENESS_DELAY_MIN) } else { own },
            purpose,
            eager: (purpose != Purpose::Liveness).then_some(EAGER_FIRST),
            until_regular: Duration::ZERO,
        }
    }

    fn first(&mut self, age: Duration) -> Turn {
        self.until_regular = self.period;
        Turn { wait: self.delay.saturating_sub(age), counts: true }
    }

    fn next(&mut self, was_yes: bool) -> Turn {
        if was_yes {
            self.eager = None;
        }
        if let Some(wait) = self.eager.filter(|wait| *wait < self.until_regular) {
            self.eager = Some(wait.saturating_mul(2));
            self.until_regular = self.until_regular.saturating_sub(wait);
            return Turn { wait, counts: false };
        }
        let wait = std::mem::replace(&mut self.until_regular, self.period);
        // From the first regular one on there are only these.
        self.eager = None;
        Turn { wait, counts: true }
    }

    /// A no is worth an event: not while the program is just starting.
    fn is_told(&self, age: Duration) -> bool {
        self.purpose == Purpose::Liveness || age >= QUIET_AT_START
    }
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
    counters: (Arc<Counters>, Probed),
) -> Option<AbortOnDropHandle<()>> {
    let question = question(&probe)?;
    let task = tokio::spawn(async move {
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        // By the clock only once: from here on by a timer, which nobody can set back.
        let age = Duration::try_from(Timestamp::now().duration_since(started_at)).unwrap_or_default();
        let began = Instant::now();
        let mut schedule = Schedule::new(&probe, purpose);
        let mut tally = Tally::new(&probe, told);
        let mut turn = schedule.first(age);
        loop {
            tokio::time::sleep(turn.wait).await;
            let answer = match survival::caught(target.ask(&question, timeout)).await {
                Ok(answer) => answer,
                Err(why) => {
                    counters.0.panicked(Place::Probe);
                    tracing::error!(container = target.container_id, why, "a probe panicked");
                    Err(crate::handler::Error::Failed("internal error of the probe".into()))
                }
            };
            let is_yes = answer.is_ok();
            counters.0.probed(&counters.1, is_yes);
            let news = if is_yes || turn.counts { tally.count(is_yes) } else { None };
            turn = schedule.next(is_yes);
            let verdict = match (answer, news) {
                (Ok(()), Some(_)) => Verdict::Passed,
                (Ok(()), None) => continue,
                (Err(error), Some(_)) => Verdict::GaveUp(error.answer()),
                (Err(_), None) if !schedule.is_told(age.saturating_add(began.elapsed())) => continue,
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
    /// Waits in milliseconds, in brackets those whose no does not count.
    fn check(purpose: Purpose, probe: &Probe, age_millis: u64, answers: &[bool], expect: &str) {
        let mut schedule = Schedule::new(probe, purpose);
        let mut turns = vec![schedule.first(Duration::from_millis(age_millis))];
        turns.extend(answers.iter().map(|yes| schedule.next(*yes)));
        let text = |turn: &Turn| {
            let millis = turn.wait.as_millis();
            if turn.counts { millis.to_string() } else { format!("({millis})") }
        };
        assert_eq!(turns.iter().map(text).collect::<Vec<_>>().join(" "), expect);
    }

    #[test]
    fn a_container_that_is_not_ready_yet_is_asked_again_soon() {
        let plain = Probe::default();
        let no = [false; 9];
        check(Purpose::Readiness, &plain, 0, &no, "0 (50) (100) (200) (400) (800) (1600) (3200) 3650 10000");
        check(Purpose::Startup, &plain, 0, &no, "0 (50) (100) (200) (400) (800) (1600) (3200) 3650 10000");
        check(Purpose::Readiness, &plain, 0, &[false, false, true, true, false], "0 (50) (100) 9850 10000 10000");
        let slow = Probe { initial_delay_seconds: Some(5), period_seconds: Some(1), ..Probe::default() };
        check(Purpose::Readiness, &slow, 2000, &no[..6], "3000 (50) (100) (200) (400) 250 1000");
        check(Purpose::Liveness, &plain, 0, &[false, true], "1000 10000 10000");
        check(Purpose::Liveness, &plain, 400, &[false], "600 10000");
        check(Purpose::Liveness, &slow, 60_000, &[false], "0 1000");
    }

    #[test]
    fn a_no_in_the_first_second_is_no_event() {
        let schedule = Schedule::new(&Probe::default(), Purpose::Readiness);
        assert!(!schedule.is_told(Duration::from_millis(999)) && schedule.is_told(Duration::from_secs(1)));
    }

    #[test]
    fn numbers_of_any_size_make_a_schedule() {
        for wild in [i32::MIN, -1, 0, 1, i32::MAX] {
            let probe = Probe {
                initial_delay_seconds: Some(wild),
                period_seconds: Some(wild),
                timeout_seconds: Some(wild),
                failure_threshold: Some(wild),
                success_threshold: Some(wild),
                ..Probe::default()
            };
            for purpose in [Purpose::Startup, Purpose::Liveness, Purpose::Readiness] {
                let mut schedule = Schedule::new(&probe, purpose);
                let mut tally = Tally::new(&probe, None);
                schedule.first(Duration::MAX);
                for turn in 0..100 {
                    schedule.next(turn == 50);
                    tally.count(turn % 3 == 0);
                }
            }
        }
    }
}
