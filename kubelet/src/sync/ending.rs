//! The way down: containers, then sidecars from the last to the first, then the sandbox, then what the pod held on the host.
//! Never starts anything. Invariant: the pod has one grace period, and who ends later has what the others left of it, though never
//! less than two seconds.

use jiff::Timestamp;

use super::observed::{Container, Observed};
use super::{Action, Ending, Kill, kill};
use crate::pod::{Kind, LocalPod, bounded_grace};

fn pre_stop(pod: &LocalPod, observed: &Observed, container: &Container, grace: i64, actions: &mut Vec<Action>) {
    let lifecycle = pod.member(&container.name).and_then(|m| m.container.lifecycle.as_ref());
    let has_hook = lifecycle.is_some_and(|l| l.pre_stop.is_some());
    let is_begun = observed.pre_stopped.contains(&container.id) || observed.busy.killing.contains_key(&container.id);
    if has_hook && !is_begun && container.is_running() && grace > 0 {
        let grace_seconds = bounded_grace(grace);
        actions.push(Action::PreStop { id: container.id.clone(), grace_seconds });
    }
}

/// Seconds that are left of the pod's grace period, rounded up.
fn left(grace_seconds: i64, since: Option<Timestamp>, now: Timestamp) -> i64 {
    let spent = since.map_or(0, |since| now.duration_since(since).as_secs().max(0));
    grace_seconds.saturating_sub(spent)
}

pub(super) fn plan(pod: &LocalPod, observed: &Observed, ending: Ending, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let busy = &observed.busy;
    let starting = busy.sandbox || busy.volumes || !busy.starting.is_empty();
    if starting {
        actions.push(Action::CancelStarts);
    }
    let sidecar = |c: &Container| pod.member(&c.name).is_some_and(|m| m.kind == Kind::Sidecar);
    let alive: Vec<&Container> = observed.containers.iter().filter(|c| c.is_alive()).collect();
    let own = pod.grace_seconds();
    let grace =
        observed.failed.as_ref().and_then(|failed| failed.grace_seconds).map_or(own, |seconds| seconds.min(own));
    let grace = left(grace, observed.ending_since, now);
    let (sidecars, others): (Vec<&Container>, Vec<&Container>) = alive.into_iter().partition(|c| sidecar(c));
    for container in &others {
        kill(observed, container, grace, Kill::Stopping, now, &mut actions);
    }
    if !others.is_empty() {
        // Upstream: hooks do not wait for their container's turn; a proxy begins to drain when the pod begins to end.
        for container in &sidecars {
            pre_stop(pod, observed, container, grace, &mut actions);
        }
    }
    if others.is_empty() {
        // The last sidecar of the spec ends first: later ones may need earlier ones.
        let last = pod.of(&[Kind::Sidecar]).rev().find_map(|m| sidecars.iter().find(|c| c.name == m.name()));
        if let Some(container) = last.filter(|c| !busy.pre_stopping.contains(&c.id)) {
            kill(observed, container, grace, Kill::Stopping, now, &mut actions);
        }
    }
    if starting || !others.is_empty() || !sidecars.is_empty() {
        return actions;
    }
    let ready: Vec<_> = observed.sandboxes.iter().filter(|s| s.ready).collect();
    for sandbox in &ready {
        actions.push(Action::StopSandbox { id: sandbox.id.clone() });
    }
    if !ready.is_empty() || busy.releasing {
        return actions;
    }
    if !observed.released {
        actions.push(Action::Release);
    } else if ending == Ending::Removed {
        actions.push(Action::Finish);
    }
    actions
}
