//! How large each set of a deployment should be now. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt;
use serde_json::json;

use super::{Observed, annotation, available_of, event, patch_set, replicas_of};
use crate::action::Action;

/// What a rollout does next.
pub(super) enum Steps {
    /// There is no set for the template yet.
    Create {
        replicas: i32,
    },
    Resize(Vec<Action>),
}

/// Grows the new set as far as the surge allows, and shrinks the old ones as far as availability allows.
pub(super) fn rolling(observed: &Observed<'_>) -> Steps {
    let (surge, unavailable) = observed.limits();
    let wanted = observed.replicas();
    let old_total: i32 = observed.old.iter().map(|set| replicas_of(set)).sum();
    let room = (wanted + surge - old_total).max(0);
    let Some(new) = &observed.new else { return Steps::Create { replicas: room.min(wanted) } };

    let current = replicas_of(new);
    let target = if current > wanted { wanted } else { (current + (room - current).max(0)).min(wanted) };
    let mut actions = resize(observed, new, target);
    if !actions.is_empty() || old_total == 0 {
        return Steps::Resize(actions);
    }
    let floor = wanted - unavailable;
    let new_missing = (current - available_of(new)).max(0);
    let mut removable = old_total + current - floor - new_missing;
    let mut sizes: Vec<i32> = observed.old.iter().map(|set| replicas_of(set)).collect();
    // First those that serve nobody: they cost no availability.
    for (set, size) in observed.old.iter().zip(&mut sizes) {
        let broken = (*size - available_of(set)).clamp(0, removable.max(0));
        *size -= broken;
        removable -= broken;
    }
    let available: i32 = observed.all().map(|set| available_of(set)).sum();
    let mut spare = (available - floor).min(removable);
    for size in &mut sizes {
        let taken = (*size).min(spare.max(0));
        *size -= taken;
        spare -= taken;
    }
    for (set, size) in observed.old.iter().zip(sizes) {
        actions.extend(resize(observed, set, size));
    }
    Steps::Resize(actions)
}

/// All old pods go before the first new one comes.
pub(super) fn recreate(observed: &Observed<'_>) -> Steps {
    let shrink: Vec<Action> = observed.old.iter().flat_map(|set| resize(observed, set, 0)).collect();
    let is_occupied = observed.old.iter().any(|set| (observed.has_pods)(set));
    match &observed.new {
        _ if !shrink.is_empty() => Steps::Resize(shrink),
        _ if is_occupied => Steps::Resize(Vec::new()),
        Some(new) => Steps::Resize(resize(observed, new, observed.replicas())),
        None => Steps::Create { replicas: observed.replicas() },
    }
}

/// After `spec.replicas` changed in the middle of a rollout: every set keeps its share.
pub(super) fn proportionally(observed: &Observed<'_>) -> Vec<Action> {
    let active: Vec<&Arc<ReplicaSet>> = observed.all().filter(|set| replicas_of(set) > 0).collect();
    match active.as_slice() {
        [] => observed.new.as_ref().map(|new| resize(observed, new, observed.replicas())).unwrap_or_default(),
        [only] => resize(observed, only, observed.replicas()),
        several => {
            several.iter().zip(shares(observed, several)).flat_map(|(set, size)| resize(observed, set, size)).collect()
        }
    }
}

fn shares(observed: &Observed<'_>, sets: &[&Arc<ReplicaSet>]) -> Vec<i32> {
    let (surge, _) = observed.limits();
    let allowed = if observed.replicas() > 0 { observed.replicas() + surge } else { 0 };
    let total: i32 = sets.iter().map(|set| replicas_of(set)).sum();
    let mut rest = allowed - total;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in sets {
        let size = i64::from(replicas_of(set));
        let was_allowed = i64::from(annotation::max_replicas(set).filter(|max| *max > 0).unwrap_or(total.max(1)));
        // Rounded to the nearest, as far as the rest reaches.
        let share =
            i32::try_from((2 * size * i64::from(allowed) + was_allowed) / (2 * was_allowed) - size).unwrap_or(0);
        let part = if rest >= 0 { share.clamp(0, rest) } else { share.clamp(rest, 0) };
        rest -= part;
        sizes.push((replicas_of(set) + part).max(0));
    }
    // What rounding left over goes to the largest.
    if rest != 0
        && let Some(largest) = sizes.iter_mut().max()
    {
        *largest = (*largest + rest).max(0);
    }
    sizes
}

/// The patch that gives a set its size and notes the deployment's, and the event if the size is another.
fn resize(observed: &Observed<'_>, set: &ReplicaSet, size: i32) -> Vec<Action> {
    let current = replicas_of(set);
    let sizes = annotation::sizes(observed);
    let is_noted = sizes.iter().all(|(key, value)| set.annotations().get(key) == Some(value));
    if current == size && (is_noted || size == 0) {
        return Vec::new();
    }
    let annotations: serde_json::Map<_, _> = sizes.into_iter().map(|(key, value)| (key, json!(value))).collect();
    let patch = json!({"metadata": {"uid": set.uid(), "annotations": annotations}, "spec": {"replicas": size}});
    let mut actions = vec![patch_set(set, patch)];
    if current != size {
        let direction = if size > current { "up" } else { "down" };
        let note = format!("Scaled {direction} replica set {} from {current} to {size}", set.name_any());
        actions.push(event(observed.deployment, "ScalingReplicaSet", note));
    }
    actions
}
