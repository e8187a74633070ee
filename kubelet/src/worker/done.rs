//! Hears of finished operations and writes down what they changed.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::task::JoinError;

use super::Worker;
use crate::events::Severity;
use crate::operation::{self, chain};
use crate::sync::backoff::{Backoff, LAST};
use crate::sync::observed::{Busy, Failure, Volumes};
use crate::volumes::{self, Prepared};

/// The first pause after each kind of failure.
const AFTER_VOLUMES: SignedDuration = SignedDuration::from_secs(2);
/// Volumes stand, but could not be brought up to date.
const AFTER_REFRESH: SignedDuration = SignedDuration::from_secs(20);
const AFTER_SANDBOX: SignedDuration = SignedDuration::from_secs(1);
const AFTER_CONFIG: SignedDuration = SignedDuration::from_secs(5);
/// A sandbox mostly fails because the pods' network is not there yet, of which there is no event.
const SANDBOX_LAST: SignedDuration = SignedDuration::from_secs(10);

/// Which operation it was, should it panic.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Volumes,
    Sandbox,
    Start(String),
    Kill(String),
    PreStop(String),
    Release,
    Write,
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Work::Volumes => f.write_str("preparing its volumes"),
            Work::Sandbox => f.write_str("its sandbox"),
            Work::Start(name) => write!(f, "starting container {name}"),
            Work::Kill(id) => write!(f, "ending container {id}"),
            Work::PreStop(id) => write!(f, "the preStop hook of container {id}"),
            Work::Release => f.write_str("clearing it away"),
            Work::Write => f.write_str("writing its status"),
        }
    }
}

/// How an operation went.
#[derive(Debug)]
pub(super) enum Done {
    Volumes(Result<Prepared, volumes::Error>),
    VolumesGivenUp,
    Sandbox(Result<(), operation::Failure>),
    SandboxStopped(Result<(), crate::cri::Error>),
    Started { name: String, result: Result<(), operation::Failure> },
    Killed { id: String, result: Result<(), crate::cri::Error> },
    PreStopped { id: String },
    Released(Result<(), String>),
    Deleted(Result<(), kube::Error>),
    Cleared(Result<(), String>),
    Written { status: Box<PodStatus>, result: Result<Box<Pod>, kube::Error> },
    Died { work: Work, why: String },
}

impl Worker {
    /// True if the runtime is to be looked at.
    pub(super) fn hear_done(&mut self, done: Result<Done, JoinError>) -> bool {
        let done = match done {
            Ok(done) => done,
            Err(died) => {
                // Which one it was is not known: all may be asked for again, for all are idempotent.
                self.observed.busy = Busy::default();
                self.sent.give_up();
                self.fell("an operation", &died.to_string());
                return true;
            }
        };
        match done {
            Done::Volumes(result) => self.hear_volumes(result),
            Done::VolumesGivenUp => self.observed.busy.volumes = false,
            Done::Sandbox(result) => {
                self.observed.busy.sandbox = false;
                self.observed.sandbox_failure = result.err().map(|f| {
                    let old = self.observed.sandbox_failure.as_ref();
                    let mut new = failure(old, f.reason, f.message, AFTER_SANDBOX);
                    new.backoff.delay = new.backoff.delay.min(SANDBOX_LAST);
                    new.retry_at = new.backoff.since.saturating_add(new.backoff.delay).unwrap_or(new.retry_at);
                    new
                });
                return true;
            }
            Done::SandboxStopped(result) => {
                self.observed.busy.sandbox = false;
                self.log("sandbox not stopped", result.err());
                return true;
            }
            Done::Started { name, result } => {
                self.hear_started(&name, result);
                return true;
            }
            Done::Killed { id, result } => {
                self.observed.busy.killing.remove(&id);
                if let Some(error) = result.err() {
                    let text = format!("error killing container: {error}");
                    self.kit.recorder.pod(&self.pod, None, Severity::Warning, "FailedKillPod", text);
                }
                return true;
            }
            Done::PreStopped { id } => drop(self.observed.busy.pre_stopping.remove(&id)),
            Done::Released(result) => {
                self.observed.busy.releasing = false;
                self.observed.released = result.is_ok();
                self.observed.volumes = Volumes::Absent;
                self.log("resources of the pod not released", result.err());
            }
            Done::Deleted(result) => match result {
                // The watch will tell.
                Ok(()) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    self.observed.gone = true;
                    self.observed.busy.releasing = false;
                }
                Err(error) => {
                    tracing::warn!(pod = %self.pod.key, %error, "pod not deleted from the API");
                    self.observed.busy.releasing = false;
                }
            },
            Done::Cleared(result) => {
                self.observed.busy.releasing = false;
                self.finished = result.is_ok();
                self.log("remains of the pod not cleared", result.err());
            }
            Done::Written { status, result } => self.hear_written(*status, result),
            Done::Died { work, why } => {
                self.hear_died(&work, &why);
                return true;
            }
        }
        false
    }

    /// All operations may be asked for again, for all are idempotent.
    fn hear_died(&mut self, work: &Work, why: &str) {
        let busy = &mut self.observed.busy;
        match work {
            Work::Volumes => busy.volumes = false,
            Work::Sandbox => busy.sandbox = false,
            Work::Start(name) => drop(busy.starting.remove(name)),
            Work::Kill(id) => drop(busy.killing.remove(id)),
            Work::PreStop(id) => drop(busy.pre_stopping.remove(id)),
            Work::Release => busy.releasing = false,
            Work::Write => self.sent.give_up(),
        }
        self.fell(&work.to_string(), why);
    }

    fn log(&self, what: &str, error: Option<impl std::fmt::Display>) {
        if let Some(error) = error {
            tracing::warn!(pod = %self.pod.key, %error, "{what}");
        }
    }

    fn hear_volumes(&mut self, result: Result<Prepared, volumes::Error>) {
        self.observed.busy.volumes = false;
        let again = std::mem::take(&mut self.refresh_again);
        match result {
            Ok(prepared) => {
                self.prepared = prepared;
                self.observed.volumes = Volumes::Mounted;
                if again {
                    self.refresh_volumes();
                }
            }
            Err(error) => {
                let text = chain(&error);
                self.kit.recorder.pod(&self.pod, None, Severity::Warning, "FailedMount", text.clone());
                if self.observed.volumes == Volumes::Mounted {
                    // What stands stays; only the renewal failed.
                    self.prepared.refresh_at = Timestamp::now().checked_add(AFTER_REFRESH).ok();
                    return;
                }
                let old = match &self.observed.volumes {
                    Volumes::Failed(old) => Some(old),
                    _ => None,
                };
                self.observed.volumes = Volumes::Failed(failure(old, "FailedMount", text, AFTER_VOLUMES));
            }
        }
    }

    fn hear_started(&mut self, name: &str, result: Result<(), operation::Failure>) {
        self.observed.busy.starting.remove(name);
        let Err(failed) = result else {
            self.observed.failures.remove(name);
            return;
        };
        if self.cancel.is_cancelled() {
            return;
        }
        let first = match failed.reason {
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => AFTER_CONFIG,
            _ => crate::sync::backoff::FIRST,
        };
        let old = self.observed.failures.get(name);
        let new = failure(old, failed.reason, failed.message, first);
        self.observed.failures.insert(name.to_owned(), new);
    }
}

/// The failure with its pause: the first, or twice the last.
fn failure(old: Option<&Failure>, reason: &str, message: String, first: SignedDuration) -> Failure {
    let now = Timestamp::now();
    let delay = old.map_or(first, |o| o.backoff.delay.saturating_mul(2).min(LAST));
    let backoff = Backoff { delay, since: now };
    Failure { reason: reason.into(), message, retry_at: now.saturating_add(delay).unwrap_or(Timestamp::MAX), backoff }
}
