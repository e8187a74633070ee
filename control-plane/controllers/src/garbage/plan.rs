//! What is to be done about one object, given its owners and dependents. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ApiResource;
use serde_json::json;

use super::graph::{Entry, Owner};
use crate::action::{Action, Propagation};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Act(Vec<Action>),
    /// Whether this owner exists must be asked at the API server.
    Ask {
        resource: Box<ApiResource>,
        namespace: String,
        name: String,
        owner_uid: String,
    },
}

/// What the graph knows of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    Solid,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
    Absent,
    Unknown,
}

pub(super) fn step(
    entry: &Entry,
    owner_state: impl Fn(&Owner) -> OwnerState,
    dependents: &[(&str, &Entry)],
) -> Option<Step> {
    if entry.is_deleting {
        return leaving(entry, dependents);
    }
    if entry.owners.is_empty() {
        return None;
    }
    let states: Vec<(&Owner, OwnerState)> = entry.owners.iter().map(|owner| (owner, owner_state(owner))).collect();
    if let Some((owner, _)) = states.iter().find(|(_, state)| *state == OwnerState::Unknown) {
        return ask(entry, owner);
    }
    let has = |wanted: OwnerState| states.iter().any(|(_, state)| *state == wanted);
    if has(OwnerState::Solid) {
        // A dependent of several owners lives as long as one of them does; the others are forgotten.
        let gone: Vec<&Owner> =
            states.iter().filter(|(_, state)| *state != OwnerState::Solid).map(|(owner, _)| *owner).collect();
        return (!gone.is_empty()).then(|| Step::Act(vec![without_owners(entry, &gone)]));
    }
    let how = if has(OwnerState::Waiting) && !dependents.is_empty() {
        // A dependent that waits for its own dependents, this one among them, may be a circle: whoever blocks in it is
        // released first, as upstream does. It may be none; then the owner goes before this one, which is no harm.
        let is_circle = dependents.iter().any(|(_, dependent)| is_waiting(dependent));
        if is_circle && entry.owners.iter().any(|owner| owner.is_blocking) {
            return Some(Step::Act(vec![unblocked(entry)]));
        }
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    Some(Step::Act(vec![delete(entry, how)]))
}

/// Being deleted in the foreground.
pub(super) fn is_waiting(entry: &Entry) -> bool {
    entry.is_deleting && entry.finalizers.iter().any(|own| own == FOREGROUND)
}

/// The same owners, and none of them waits for this one.
fn unblocked(entry: &Entry) -> Action {
    let owners: Vec<_> = entry
        .owners
        .iter()
        .map(|owner| {
            let block_owner_deletion = owner.reference.block_owner_deletion.map(|_| false);
            OwnerReference { block_owner_deletion, ..owner.reference.clone() }
        })
        .collect();
    patch(entry, json!({"ownerReferences": owners}))
}

fn leaving(entry: &Entry, dependents: &[(&str, &Entry)]) -> Option<Step> {
    let has = |finalizer: &str| entry.finalizers.iter().any(|own| own == finalizer);
    if has(ORPHAN) {
        let released: Vec<Action> = dependents
            .iter()
            .filter_map(|(_, dependent)| {
                let ours: Vec<&Owner> = dependent.owners.iter().filter(|owner| owner.uid == entry.uid).collect();
                (!ours.is_empty()).then(|| without_owners(dependent, &ours))
            })
            .collect();
        let act = if released.is_empty() { vec![without_finalizer(entry, ORPHAN)] } else { released };
        return Some(Step::Act(act));
    }
    if !has(FOREGROUND) {
        return None;
    }
    let blocking: Vec<&Entry> = dependents
        .iter()
        .filter(|(_, dependent)| dependent.owners.iter().any(|owner| owner.uid == entry.uid && owner.is_blocking))
        .map(|(_, dependent)| *dependent)
        .collect();
    if blocking.is_empty() {
        return Some(Step::Act(vec![without_finalizer(entry, FOREGROUND)]));
    }
    // The dependents become suspects with their owner's change and are deleted by their own step.
    None
}

fn ask(entry: &Entry, owner: &Owner) -> Option<Step> {
    let (group, version) = control_plane_api::row::split_api_version(&owner.api_version);
    // An owner of a kind that nobody serves can never be asked for: the object stays, as upstream leaves it.
    let row = control_plane_api::row_for_kind(group, version, &owner.kind)?;
    if row.namespaced && entry.namespace.is_empty() {
        // A cluster's object cannot be owned by a namespace's: the reference means nothing, and nothing is deleted for it.
        return None;
    }
    let namespace = if row.namespaced { entry.namespace.clone() } else { String::new() };
    let resource = Box::new(super::resource_of(row));
    Some(Step::Ask { resource, namespace, name: owner.name.clone(), owner_uid: owner.uid.clone() })
}

fn delete(entry: &Entry, how: Propagation) -> Action {
    Action::DeleteAny {
        resource: Box::new(entry.resource.as_ref().clone()),
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        uid: entry.uid.clone(),
        how,
    }
}

fn without_owners(entry: &Entry, gone: &[&Owner]) -> Action {
    let rest: Vec<_> =
        entry.owners.iter().filter(|owner| !gone.contains(owner)).map(|owner| &owner.reference).collect();
    patch(entry, json!({"ownerReferences": rest}))
}

fn without_finalizer(entry: &Entry, finalizer: &str) -> Action {
    let rest: Vec<_> = entry.finalizers.iter().filter(|own| *own != finalizer).collect();
    patch(entry, json!({"finalizers": rest}))
}

/// Lists are replaced whole, so a change that was not seen must make the patch fail.
fn patch(entry: &Entry, mut metadata: serde_json::Value) -> Action {
    metadata["uid"] = json!(entry.uid);
    metadata["resourceVersion"] = json!(entry.resource_version);
    Action::PatchAny {
        resource: Box::new(entry.resource.as_ref().clone()),
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        patch: json!({"metadata": metadata}),
    }
}
