//! ReplicaSets: as many pods as asked for, each owned by its set.
//!
//! Observed are the set and the pods of its namespace that it owns or could own. Pods that match and have no controller are
//! adopted, owned ones that no longer match are let go.

mod victims;

use std::sync::Arc;

use control_plane_api::selector::Selector;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::action::{Action, Announcement, Part, Plan, Propagation};
use crate::cache::Key;
use crate::clock::after;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::world::{Changed, World};

/// Pods created or deleted in one plan. The rest follows in the next, which the changes themselves bring about.
const BURST_MAX: usize = 500;

pub(crate) struct ReplicaSets;

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::ReplicaSet(change) => change.latest().map(|set| Key::of(set.as_ref())).into_iter().collect(),
            Changed::Pod(change) => change.states().flat_map(|pod| sets_of(world, pod)).collect(),
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = world.replica_sets.get(key) else { return Plan::default() };
        plan(&set, &world.pods.in_namespace(&key.namespace), now)
    }
}

/// The set that owns a pod, or those that might adopt it.
fn sets_of(world: &World, pod: &Pod) -> Vec<Key> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(owner) = controller_of(pod) {
        return if owner.kind == "ReplicaSet" { vec![Key::new(namespace, owner.name.clone())] } else { Vec::new() };
    }
    let sets = world.replica_sets.in_namespace(&namespace);
    sets.iter().filter(|set| selects(&set.spec, pod)).map(|set| Key::of(set.as_ref())).collect()
}

fn selects(spec: &Option<k8s_openapi::api::apps::v1::ReplicaSetSpec>, pod: &Pod) -> bool {
    spec.as_ref().is_some_and(|spec| matches(&spec.selector, pod))
}

/// An empty selector of a workload selects nothing: it would select everything by mistake.
pub(crate) fn matches<K: ResourceExt>(selector: &LabelSelector, object: &K) -> bool {
    let Ok(value) = serde_json::to_value(selector) else { return false };
    let Ok(selector) = Selector::from_value(&value) else { return false };
    !selector.is_empty() && selector.matches(|key| object.labels().get(key).map(String::as_str))
}

pub(crate) fn controller_of<K: ResourceExt>(
    object: &K,
) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

pub(crate) fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Since when the pod is Ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Pure: what is to be done about `set`, given the pods of its namespace.
fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let is_leaving = set.metadata.deletion_timestamp.is_some();
    let mut owned = Vec::new();
    for pod in pods {
        let is_ours = controller_of(pod.as_ref()).is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref());
        match (is_ours, selects(&set.spec, pod)) {
            (true, true) => owned.push(Arc::clone(pod)),
            (true, false) if !is_leaving => plan.push(release(set, pod)),
            (false, true) if !is_leaving && controller_of(pod.as_ref()).is_none() && is_active(pod) => {
                plan.push(adopt(set, pod));
                owned.push(Arc::clone(pod));
            }
            _ => {}
        }
    }
    let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    if !is_leaving {
        plan.actions.extend(scale(set, &active));
    }
    let status = status(set, &owned, &active, now, &mut plan);
    if set.status.as_ref() != Some(&status) {
        plan.push(patch(set, json!({"status": nulled(&status, set.status.as_ref())}), Part::Status));
    }
    plan
}

fn scale(set: &ReplicaSet, active: &[Arc<Pod>]) -> Vec<Action> {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST_MAX);
        return std::iter::repeat_with(|| create_pod(set)).take(missing).collect();
    }
    let surplus = (active.len() - wanted).min(BURST_MAX);
    victims::choose(active, surplus).into_iter().map(|pod| delete_pod(set, pod)).collect()
}

fn create_pod(set: &ReplicaSet) -> Action {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let metadata = template.and_then(|template| template.metadata.as_ref());
    let body = json!({
        "metadata": {
            "generateName": format!("{}-", set.name_any()),
            "labels": metadata.and_then(|metadata| metadata.labels.clone()).unwrap_or_default(),
            "annotations": metadata.and_then(|metadata| metadata.annotations.clone()).unwrap_or_default(),
            "finalizers": metadata.and_then(|metadata| metadata.finalizers.clone()).unwrap_or_default(),
            "ownerReferences": [owner(set)],
        },
        "spec": template.and_then(|template| template.spec.as_ref()),
    });
    let announce = announce(set, "SuccessfulCreate", "Created pod: ");
    Action::Create { kind: Kind::Pod, namespace: set.namespace().unwrap_or_default(), body, announce }
}

fn delete_pod(set: &ReplicaSet, pod: &Pod) -> Action {
    Action::Delete {
        kind: Kind::Pod,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        how: Propagation::Background,
        announce: announce(set, "SuccessfulDelete", "Deleted pod: "),
    }
}

fn announce(set: &ReplicaSet, reason: &'static str, prefix: &'static str) -> Option<Announcement> {
    Some(Announcement { regarding: Box::new(set.object_ref(&())), reason, prefix, suffix: String::new() })
}

fn owner(set: &ReplicaSet) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set.name_any(), "uid": set.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

fn adopt(set: &ReplicaSet, pod: &Pod) -> Action {
    let mut owners: Vec<Value> =
        pod.owner_references().iter().filter_map(|owner| serde_json::to_value(owner).ok()).collect();
    owners.push(owner(set));
    patch_owners(pod, &owners)
}

fn release(set: &ReplicaSet, pod: &Pod) -> Action {
    let others = pod.owner_references().iter().filter(|owner| Some(&owner.uid) != set.metadata.uid.as_ref());
    let owners: Vec<Value> = others.filter_map(|owner| serde_json::to_value(owner).ok()).collect();
    patch_owners(pod, &owners)
}

/// A merge patch replaces the whole list, so it must not overwrite a change that was not seen.
fn patch_owners(pod: &Pod, owners: &[Value]) -> Action {
    let metadata = json!({"uid": pod.uid(), "resourceVersion": pod.resource_version(), "ownerReferences": owners});
    Action::Patch {
        kind: Kind::Pod,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        part: Part::Whole,
        patch: json!({"metadata": metadata}),
    }
}

fn patch(set: &ReplicaSet, patch: Value, part: Part) -> Action {
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    Action::Patch { kind: Kind::ReplicaSet, namespace, name, part, patch }
}

fn count(pods: impl Iterator) -> i32 {
    i32::try_from(pods.count()).unwrap_or(i32::MAX)
}

fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    active: &[Arc<Pod>],
    now: Timestamp,
    plan: &mut Plan,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let needed = SignedDuration::from_secs(i64::from(spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0)));
    let mut available = 0;
    for since in active.iter().filter_map(|pod| ready_since(pod)) {
        let counts_from = after(since, needed);
        if needed.is_zero() || counts_from <= now {
            available = i32::saturating_add(available, 1)
        } else {
            plan.look_again_at(counts_from)
        }
    }
    let template_labels =
        spec.and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let is_fully_labeled = |pod: &Pod| template_labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value));
    let nonzero = |count: i32| (count > 0).then_some(count);
    ReplicaSetStatus {
        replicas: count(active.iter()),
        fully_labeled_replicas: nonzero(count(active.iter().filter(|pod| is_fully_labeled(pod)))),
        ready_replicas: nonzero(count(active.iter().filter(|pod| ready_since(pod).is_some()))),
        available_replicas: nonzero(available),
        terminating_replicas: Some(count(owned.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()))),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

/// The new status as a merge patch: what is no longer there is `null`.
pub(crate) fn nulled<S: serde::Serialize>(new: &S, old: Option<&S>) -> Value {
    let mut patch = serde_json::to_value(new).unwrap_or_default();
    let old = serde_json::to_value(old).unwrap_or_default();
    if let (Value::Object(patch), Value::Object(old)) = (&mut patch, old) {
        for key in old.into_iter().map(|(key, _)| key) {
            patch.entry(key).or_insert(Value::Null);
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": "web", "uid": "s1", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}}))
        .unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, label: &str, ready: bool) -> Arc<Pod> {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let status = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": label}, "ownerReferences": owners},
            "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn summary(plan: &Plan) -> Vec<String> {
        let describe = |action: &Action| match action {
            Action::Create { .. } => "create".to_owned(),
            Action::Delete { name, .. } => format!("delete {name}"),
            Action::Patch { part: Part::Status, patch, .. } => format!("status {}", patch["status"]["replicas"]),
            Action::Patch { name, patch, .. } => {
                format!("owners of {name}: {}", patch["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len))
            }
            other => format!("{other:?}"),
        };
        plan.actions.iter().map(describe).collect()
    }

    #[test]
    fn plans() {
        let check = |replicas: i32, pods: &[Arc<Pod>], expect: &[&str]| {
            assert_eq!(summary(&plan(&set(replicas), pods, Timestamp::UNIX_EPOCH)), expect);
        };
        let (a, b) = (pod("a", Some("s1"), "web", true), pod("b", Some("s1"), "web", false));
        check(2, &[], &["create", "create", "status 0"]);
        check(2, &[a.clone(), b.clone()], &["status 2"]);
        check(1, &[a.clone(), b.clone()], &["delete b", "status 2"]);
        check(1, &[pod("o", None, "web", true)], &["owners of o: 1", "status 1"]);
        check(1, &[pod("x", Some("s1"), "other", true)], &["owners of x: 0", "create", "status 0"]);
        check(1, &[a.clone(), pod("theirs", Some("s2"), "web", true)], &["status 1"]);
    }

    #[test]
    fn a_settled_set_plans_nothing() {
        let mut set = set(1);
        let pods = [pod("a", Some("s1"), "web", true)];
        let mut ignored = Plan::default();
        set.status = Some(status(&set, &pods, &pods, Timestamp::UNIX_EPOCH, &mut ignored));
        assert_eq!(plan(&set, &pods, Timestamp::UNIX_EPOCH), Plan::default());
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let pods = [pod("a", Some("s1"), "web", true)];
        let early = plan(&set, &pods, Timestamp::UNIX_EPOCH);
        assert_eq!(early.again_at, Some(Timestamp::from_second(10).unwrap()));
        let late = plan(&set, &pods, Timestamp::from_second(10).unwrap());
        assert_eq!(late.again_at, None);
    }
}
