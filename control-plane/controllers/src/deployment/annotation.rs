//! Revisions and sizes that Deployments and their sets remember in annotations. `kubectl rollout` reads the same ones.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Observed, patch_set, replicas_of};
use crate::action::{Action, Part};
use crate::kind::Kind;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn revision(object: &impl ResourceExt) -> i64 {
    object.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The number of the newest template: one above every older set's, or the one it already has.
pub(super) fn next_revision(observed: &Observed<'_>) -> i64 {
    let highest_old = observed.old.iter().map(|set| revision(set.as_ref())).max().unwrap_or(0);
    let own = observed.new.as_ref().map_or(0, |set| revision(set.as_ref()));
    if own > highest_old { own } else { highest_old.saturating_add(1) }
}

/// Writes revision and sizes where they are not yet what they should be.
pub(super) fn record(observed: &Observed<'_>, next: i64) -> Vec<Action> {
    let mut actions = Vec::new();
    if let Some(new) = &observed.new {
        let wanted = of_set(observed, new, next);
        let is_there = |(key, value): (&String, &String)| new.annotations().get(key) == Some(value);
        let min_ready = observed.spec.min_ready_seconds.unwrap_or(0);
        let has_min_ready = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0) == min_ready;
        if !wanted.iter().all(is_there) || !has_min_ready {
            actions.push(patch_set(
                new,
                json!({"metadata": {"annotations": wanted}, "spec": {"minReadySeconds": min_ready}}),
            ));
        }
    }
    let has_set = observed.new.is_some();
    if has_set && revision(observed.deployment) != next {
        actions.push(Action::Patch {
            kind: Kind::Deployment,
            namespace: observed.deployment.namespace().unwrap_or_default(),
            name: observed.deployment.name_any(),
            part: Part::Whole,
            patch: json!({"metadata": {"annotations": {REVISION: next.to_string()}}}),
        });
    }
    actions
}

/// The deployment's own annotations go along (`kubernetes.io/change-cause` among them), the machinery's do not.
fn of_set(observed: &Observed<'_>, set: &ReplicaSet, next: i64) -> BTreeMap<String, String> {
    let mut annotations = inherited(observed);
    let own = revision(set);
    annotations.insert(REVISION.into(), next.to_string());
    if own > 0 && own != next {
        let mut history: Vec<String> =
            set.annotations().get(HISTORY).map(|text| text.split(',').map(String::from).collect()).unwrap_or_default();
        history.push(own.to_string());
        annotations.insert(HISTORY.into(), history.join(","));
    }
    annotations
}

fn inherited(observed: &Observed<'_>) -> BTreeMap<String, String> {
    let machinery = [REVISION, HISTORY, DESIRED, MAX, LAST_APPLIED];
    let own = observed.deployment.annotations().iter();
    own.filter(|(key, _)| !machinery.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(super) fn of_new_set(observed: &Observed<'_>, next: i64) -> Value {
    let mut annotations = inherited(observed);
    annotations.insert(REVISION.into(), next.to_string());
    annotations.extend(sizes(observed));
    json!(annotations)
}

/// How large the deployment was when a set was last sized: what proportional scaling goes by.
pub(super) fn sizes(observed: &Observed<'_>) -> [(String, String); 2] {
    let (surge, _) = observed.limits();
    [
        (DESIRED.into(), observed.replicas().to_string()),
        (MAX.into(), observed.replicas().saturating_add(surge).to_string()),
    ]
}

pub(super) fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    set.annotations().get(MAX).and_then(|text| text.parse().ok())
}

/// Whether somebody changed `spec.replicas` since the sets were sized.
pub(super) fn was_scaled(observed: &Observed<'_>) -> bool {
    let desired = |set: &ReplicaSet| set.annotations().get(DESIRED).and_then(|text| text.parse::<i32>().ok());
    observed
        .all()
        .filter(|set| replicas_of(set) > 0)
        .any(|set| desired(set).is_some_and(|desired| desired != observed.replicas()))
}
