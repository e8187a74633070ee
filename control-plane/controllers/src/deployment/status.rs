//! A deployment's status: counts, and the conditions Available and Progressing. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{Observed, available_of, patch_status, replicas_of};
use crate::action::Plan;
use crate::clock::{after, whole_seconds};

pub(super) fn update(observed: &Observed<'_>, now: Timestamp, plan: &mut Plan) {
    let status = status(observed, now, plan);
    if observed.deployment.status.as_ref() != Some(&status) {
        plan.push(patch_status(observed.deployment, &status));
    }
}

fn sum(observed: &Observed<'_>, of: impl Fn(&ReplicaSet) -> i32) -> i32 {
    observed.all().fold(0, |sum, set| sum.saturating_add(of(set)))
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn status(observed: &Observed<'_>, now: Timestamp, plan: &mut Plan) -> DeploymentStatus {
    let old = observed.deployment.status.as_ref();
    let nonzero = |count: i32| (count > 0).then_some(count);
    let total = sum(observed, replicas);
    let available = sum(observed, available_of);
    let mut status = DeploymentStatus {
        observed_generation: observed.deployment.metadata.generation,
        replicas: nonzero(total),
        updated_replicas: nonzero(observed.new.as_ref().map_or(0, |set| replicas(set))),
        ready_replicas: nonzero(sum(observed, |set| {
            set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
        })),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero(sum(observed, replicas_of).max(observed.replicas()).saturating_sub(available)),
        terminating_replicas: Some(sum(observed, |set| {
            set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
        })),
        collision_count: if observed.collides() {
            Some(observed.collisions().saturating_add(1))
        } else {
            old.and_then(|status| status.collision_count)
        },
        conditions: old.and_then(|status| status.conditions.clone()),
    };
    let (_, unavailable) = observed.limits();
    let enough = available >= observed.replicas().saturating_sub(unavailable);
    let (state, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut status, "Available", (state, reason, message.into()), now, false);
    if let Some(progress) = progress(observed, &status, now, plan) {
        let is_step = has_progressed(old, &status);
        set_condition(&mut status, "Progressing", progress, now, is_step);
    }
    status
}

type Verdict = (&'static str, &'static str, String);

/// `None` leaves the condition as it is.
fn progress(observed: &Observed<'_>, status: &DeploymentStatus, now: Timestamp, plan: &mut Plan) -> Option<Verdict> {
    let name = observed.deployment.name_any();
    let condition = condition(status, "Progressing");
    if observed.spec.paused == Some(true) {
        return Some(("Unknown", "DeploymentPaused", "Deployment is paused".into()));
    }
    let Some(new) = &observed.new else {
        return condition
            .is_none()
            .then(|| ("True", "NewReplicaSetCreated", format!("Created new replica set for deployment \"{name}\"")));
    };
    let set = new.name_any();
    if is_complete(observed) {
        return Some(("True", "NewReplicaSetAvailable", format!("ReplicaSet \"{set}\" has successfully progressed.")));
    }
    if has_progressed(observed.deployment.status.as_ref(), status)
        || condition.is_none_or(|condition| condition.reason.as_deref() == Some("DeploymentPaused"))
    {
        look_again(observed, now, now, plan);
        return Some(("True", "ReplicaSetUpdated", format!("ReplicaSet \"{set}\" is progressing.")));
    }
    let since = condition?.last_update_time.as_ref().map_or(now, |time| time.0);
    let deadline = after(since, deadline(observed)?);
    if condition?.reason.as_deref() == Some("NewReplicaSetAvailable") {
        // It was complete, and is not any more: pods were lost, no rollout is under way.
        return has_new_generation(observed)
            .then(|| ("True", "ReplicaSetUpdated", format!("ReplicaSet \"{set}\" is progressing.")));
    }
    if now >= deadline {
        return Some(("False", "ProgressDeadlineExceeded", format!("ReplicaSet \"{set}\" has timed out progressing.")));
    }
    look_again(observed, since, now, plan);
    None
}

fn has_new_generation(observed: &Observed<'_>) -> bool {
    observed.deployment.status.as_ref().and_then(|status| status.observed_generation)
        < observed.deployment.metadata.generation
}

/// `None`: no deadline, which validation writes as the largest number.
fn deadline(observed: &Observed<'_>) -> Option<SignedDuration> {
    let seconds = observed.spec.progress_deadline_seconds.unwrap_or(600);
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

fn look_again(observed: &Observed<'_>, since: Timestamp, now: Timestamp, plan: &mut Plan) {
    if let Some(deadline) = deadline(observed) {
        plan.look_again_at(after(since, deadline).max(now));
    }
}

/// A step of the rollout: more updated, fewer old, or more available than the last status said.
fn has_progressed(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let count =
        |status: Option<&DeploymentStatus>, of: fn(&DeploymentStatus) -> Option<i32>| status.and_then(of).unwrap_or(0);
    let outdated = |status: Option<&DeploymentStatus>| {
        count(status, |s| s.replicas).saturating_sub(count(status, |s| s.updated_replicas))
    };
    let new = Some(new);
    count(new, |s| s.updated_replicas) > count(old, |s| s.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new, |s| s.ready_replicas) > count(old, |s| s.ready_replicas)
        || count(new, |s| s.available_replicas) > count(old, |s| s.available_replicas)
}

/// All pods are of the new template, all are available, none of an old one is left.
pub(super) fn is_complete(observed: &Observed<'_>) -> bool {
    let wanted = observed.replicas();
    observed.new.as_ref().is_some_and(|new| {
        replicas(new) == wanted
            && available_of(new) == wanted
            && replicas_of(new) == wanted
            && sum(observed, replicas) == wanted
    })
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Times change only with what they date: the state its transition, anything else (or a step) the update.
fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    (state, reason, message): Verdict,
    now: Timestamp,
    is_step: bool,
) {
    let time = Some(Time(whole_seconds(now)));
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter_mut().find(|condition| condition.type_ == kind);
    match old {
        Some(old) => {
            let is_same = old.status == state
                && old.reason.as_deref() == Some(reason)
                && old.message.as_deref() == Some(message.as_str());
            if is_same && !is_step {
                return;
            }
            if old.status != state {
                old.last_transition_time.clone_from(&time);
            }
            old.last_update_time = time;
            old.status = state.into();
            old.reason = Some(reason.into());
            old.message = Some(message);
        }
        None => conditions.push(DeploymentCondition {
            type_: kind.into(),
            status: state.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: time.clone(),
            last_update_time: time,
        }),
    }
}
