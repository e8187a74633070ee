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

/// Sizes are summed in 64 bits: a set's may be any number of 32, and somebody may make many sets.
fn size_of(set: &ReplicaSet) -> i64 {
    i64::from(replicas_of(set))
}

/// A size that a set can have.
fn size(count: i64) -> i32 {
    i32::try_from(count.max(0)).unwrap_or(i32::MAX)
}

/// Grows the new set as far as the surge allows, and shrinks the old ones as far as availability allows.
pub(super) fn rolling(observed: &Observed<'_>) -> Steps {
    let (surge, unavailable) = observed.limits();
    let (surge, unavailable, wanted) = (i64::from(surge), i64::from(unavailable), i64::from(observed.replicas()));
    let old_total: i64 = observed.old.iter().map(|set| size_of(set)).sum();
    let room = (wanted + surge - old_total).max(0);
    let Some(new) = &observed.new else { return Steps::Create { replicas: size(room.min(wanted)) } };

    let current = size_of(new);
    let target = if current > wanted { wanted } else { (current + (room - current).max(0)).min(wanted) };
    let mut actions = resize(observed, new, size(target));
    if !actions.is_empty() || old_total == 0 {
        return Steps::Resize(actions);
    }
    let floor = wanted - unavailable;
    let available = |set: &ReplicaSet| i64::from(available_of(set));
    let new_missing = (current - available(new)).max(0);
    let mut removable = old_total + current - floor - new_missing;
    let mut sizes: Vec<i64> = observed.old.iter().map(|set| size_of(set)).collect();
    // First those that serve nobody: they cost no availability.
    for (set, size) in observed.old.iter().zip(&mut sizes) {
        let broken = (*size - available(set)).clamp(0, removable.max(0));
        *size -= broken;
        removable -= broken;
    }
    let all_available: i64 = observed.all().map(|set| available(set)).sum();
    let mut spare = (all_available - floor).min(removable);
    for size in &mut sizes {
        let taken = (*size).min(spare.max(0));
        *size -= taken;
        spare -= taken;
    }
    for (set, count) in observed.old.iter().zip(sizes) {
        actions.extend(resize(observed, set, size(count)));
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
    let wanted = i64::from(observed.replicas());
    let allowed = if wanted > 0 { wanted + i64::from(surge) } else { 0 };
    let total: i64 = sets.iter().map(|set| size_of(set)).sum();
    let mut rest = allowed - total;
    let mut sizes: Vec<i64> = Vec::with_capacity(sets.len());
    for set in sets {
        let current = size_of(set);
        let was_allowed = annotation::max_replicas(set).map(i64::from).filter(|max| *max > 0).unwrap_or(total.max(1));
        // Rounded to the nearest, as far as the rest reaches. In 128 bits: two sizes are multiplied.
        let (size, was_allowed) = (i128::from(current), i128::from(was_allowed));
        let share = (2 * size * i128::from(allowed) + was_allowed) / (2 * was_allowed) - size;
        let share = i64::try_from(share).unwrap_or(i64::MAX);
        let part = if rest >= 0 { share.clamp(0, rest) } else { share.clamp(rest, 0) };
        rest -= part;
        sizes.push((current + part).max(0));
    }
    // What rounding left over goes to the largest.
    if rest != 0
        && let Some(largest) = sizes.iter_mut().max()
    {
        *largest = (*largest + rest).max(0);
    }
    sizes.into_iter().map(size).collect()
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
