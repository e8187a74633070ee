//! Decides what to do next for one pod. Pure and synchronous: `plan(pod, observed, now)`; worker.rs carries the actions out and
//! asks again after every event. Actions are idempotent, and what is already under way is never asked for twice.
//!
//! ```text
//!              volumes        sandbox         init containers      containers
//!   Absent --> Mounted --> ready, has IP --> each exited 0 -----> started in order, restarted by policy
//!                              |             (sidecars stay)          |
//!                              +--- lost: stop, make anew <-----------+
//!   deleted | gone | failed | all ended --> kill containers --> kill sidecars, last first --> stop sandbox --> release --> finish
//! ```
//! Invariant: after `finish` or a terminal phase no container of the pod is started again.

pub mod backoff;
pub mod observed;

mod ending;
mod startup;
#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]
mod tests;

use jiff::{SignedDuration, Timestamp};

use crate::pod::{Kind, LocalPod, RestartPolicy, bounded_grace};
use observed::{Container, Observed, State, Volumes};

/// A killed container gets at least this long, even when the deletion is forced.
pub const GRACE_SECONDS_MIN: i64 = 2;

/// Why a container is killed; becomes the text of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The pod ends.
    Stopping,
    Unhealthy(String),
    /// The image or name in the spec is another one now.
    Changed,
    /// The sandbox it lived in is dead.
    SandboxLost,
    /// No longer in the spec.
    Unwanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    StartContainer {
        name: String,
        attempt: u32,
    },
    KillContainer {
        id: String,
        name: String,
        grace_seconds: i64,
        why: Kill,
    },
    /// The preStop hook of a sidecar that is told to end later.
    PreStop {
        id: String,
        grace_seconds: i64,
    },
    /// A container that was made but never ran.
    RemoveContainer {
        id: String,
    },
    /// Give up what is being started; the pod ends.
    CancelStarts,
    /// Write down that the pod has failed.
    Fail(observed::Failed),
    /// Unmount volumes, remove the pod's cgroup.
    Release,
    /// Nothing is left to be stopped: the API object may go, and what the runtime keeps.
    Finish,
    /// Ask again at this time.
    Wake {
        at: Timestamp,
    },
}

/// How a pod has ended, or is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Deletion asked for, or already done.
    Removed,
    /// Refused, evicted, out of time.
    Failed,
    /// Its containers have ended and are not to be restarted.
    Completed,
}

/// The next steps for `pod`. An empty answer means: wait for an event.
#[must_use]
pub fn plan(pod: &LocalPod, observed: &Observed, now: Timestamp) -> Vec<Action> {
    if let Some(ending) = ending(pod, observed) {
        return ending::plan(pod, observed, ending, now);
    }
    let mut actions = Vec::new();
    if let Some(done) = deadline(pod, observed, now, &mut actions) {
        return vec![Action::Fail(done)];
    }
    if !sandbox(observed, pod, now, &mut actions) {
        return actions;
    }
    startup::plan(pod, observed, now, &mut actions);
    actions
}

/// Whether the pod ends or has ended, and why.
#[must_use]
pub fn ending(pod: &LocalPod, observed: &Observed) -> Option<Ending> {
    if observed.gone || pod.deletion().is_some() {
        return Some(Ending::Removed);
    }
    if observed.failed.is_some() {
        return Some(Ending::Failed);
    }
    if pod.ended_in_api() || completed(pod, observed).is_some() {
        return Some(Ending::Completed);
    }
    None
}

/// `Some(success)` once every container has ended for good.
#[must_use]
pub fn completed(pod: &LocalPod, observed: &Observed) -> Option<bool> {
    let sandbox = observed.sandbox();
    for init in pod.of(&[Kind::Init]) {
        let newest = sandbox.and_then(|s| newest_in(observed, init.name(), &s.id));
        if let Some(exit) = newest.and_then(Container::exit)
            && exit.code != 0
            && !init.restart_policy.restarts(exit.code)
        {
            return Some(false);
        }
    }
    let mut success = true;
    for member in pod.of(&[Kind::Regular]) {
        let newest = observed.newest(member.name())?;
        let exit = newest.exit()?;
        let replaced = newest.hash != member.hash && !newest.hash.is_empty();
        if member.restart_policy.restarts(exit.code) || (replaced && member.restart_policy != RestartPolicy::Never) {
            return None;
        }
        success &= exit.code == 0;
    }
    Some(success)
}

/// The newest container of a name in one sandbox.
fn newest_in<'a>(observed: &'a Observed, name: &str, sandbox: &str) -> Option<&'a Container> {
    observed.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox)
}

fn deadline(
    pod: &LocalPod,
    observed: &Observed,
    now: Timestamp,
    actions: &mut Vec<Action>,
) -> Option<observed::Failed> {
    let seconds = pod.spec.active_deadline_seconds?;
    let at = observed.start_time?.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    if at > now {
        actions.push(Action::Wake { at });
        return None;
    }
    let message = "Pod was active on the node longer than the specified deadline";
    Some(observed::Failed::new("DeadlineExceeded", message))
}

/// True once volumes and sandbox stand; otherwise asks for what is missing.
fn sandbox(observed: &Observed, pod: &LocalPod, now: Timestamp, actions: &mut Vec<Action>) -> bool {
    let busy = &observed.busy;
    match &observed.volumes {
        Volumes::Mounted => {}
        Volumes::Failed(failure) if !backoff::is_over(failure.retry_at, now) => {
            actions.push(Action::Wake { at: failure.retry_at });
            return false;
        }
        Volumes::Absent | Volumes::Failed(_) => {
            if !busy.volumes {
                actions.push(Action::PrepareVolumes);
            }
            return false;
        }
    }
    let newest = observed.sandbox();
    if newest.is_some_and(|s| s.ready && (pod.host_network() || !s.ips.is_empty())) {
        return true;
    }
    // What still runs in a dead sandbox has lost its network: it ends before the new one begins.
    let mut alive = false;
    for container in observed.containers.iter().filter(|c| c.is_alive()) {
        alive = true;
        kill(observed, container, pod.grace_seconds(), Kill::SandboxLost, now, actions);
    }
    if alive || busy.sandbox || !busy.starting.is_empty() {
        return false;
    }
    if let Some(old) = newest.filter(|s| s.ready) {
        actions.push(Action::StopSandbox { id: old.id.clone() });
        return false;
    }
    if let Some(failure) = observed.sandbox_failure.as_ref().filter(|f| !backoff::is_over(f.retry_at, now)) {
        actions.push(Action::Wake { at: failure.retry_at });
        return false;
    }
    actions.push(Action::CreateSandbox { attempt: newest.map_or(0, |s| s.attempt.saturating_add(1)) });
    false
}

/// Asks for a kill unless one that is at least as quick is under way.
fn kill(
    observed: &Observed,
    container: &Container,
    grace_seconds: i64,
    why: Kill,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    if container.state == State::Created {
        // Nothing runs in it, and stopping would leave it as it is.
        if !observed.busy.killing.contains_key(&container.id) && !observed.busy.starting.contains(&container.name) {
            actions.push(Action::RemoveContainer { id: container.id.clone() });
        }
        return;
    }
    let grace_seconds = bounded_grace(grace_seconds).max(GRACE_SECONDS_MIN);
    let deadline = now.saturating_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(Timestamp::MAX);
    if observed.busy.killing.get(&container.id).is_none_or(|under_way| *under_way > deadline) {
        actions.push(Action::KillContainer {
            id: container.id.clone(),
            name: container.name.clone(),
            grace_seconds,
            why,
        });
    }
}

/// The number of the next container of this name: one more than the last, or than what the API remembers of it.
fn next_attempt(pod: &LocalPod, observed: &Observed, name: &str) -> u32 {
    if let Some(last) = observed.newest(name) {
        return last.attempt.saturating_add(1);
    }
    let status = pod.status();
    let remembered = status.into_iter().flat_map(|s| {
        s.container_statuses
            .iter()
            .flatten()
            .chain(s.init_container_statuses.iter().flatten())
            .filter(|c| c.name == name)
    });
    let last =
        remembered.filter(|c| c.container_id.as_deref().is_some_and(|id| !id.is_empty())).map(|c| c.restart_count);
    last.max().map_or(0, |count| u32::try_from(count).unwrap_or(0) + 1)
}
