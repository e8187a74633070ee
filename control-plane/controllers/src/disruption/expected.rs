//! How many pods a budget should find, and how many of them must stay healthy. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::cache::Key;
use crate::deployment::{replicas_of, share};
use crate::replica_set::controller_of;
use crate::world::World;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// What the workloads want to have.
    pub pods: i32,
    /// How many must be healthy at any time.
    pub healthy: i32,
}

/// Why nobody can say.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unknown {
    #[error(
        "pod {pod} belongs to no workload, so a percentage or maxUnavailable of its number is unknown; \
         set spec.minAvailable to a number"
    )]
    NoController { pod: String },
    #[error(
        "the number of pods that {kind} {name} wants is unknown; set spec.minAvailable to a number, which needs none"
    )]
    NotScalable { kind: String, name: String },
}

pub(super) fn count(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], world: &World) -> Result<Expected, Unknown> {
    let spec = budget.spec.as_ref();
    let found = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    if let Some(value) = spec.and_then(|spec| spec.max_unavailable.as_ref()) {
        let pods = wanted(pods, world)?;
        return Ok(Expected { pods, healthy: pods.saturating_sub(share(value, pods, true)).max(0) });
    }
    match spec.and_then(|spec| spec.min_available.as_ref()) {
        Some(IntOrString::Int(number)) => Ok(Expected { pods: found, healthy: (*number).max(0) }),
        Some(percentage) => {
            let pods = wanted(pods, world)?;
            Ok(Expected { pods, healthy: share(percentage, pods, true) })
        }
        // policy/v1 requires neither: such a budget lets everything go.
        None => Ok(Expected { pods: found, healthy: 0 }),
    }
}

/// The sizes of all workloads that the pods belong to.
fn wanted(pods: &[Arc<Pod>], world: &World) -> Result<i32, Unknown> {
    let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
    for pod in pods {
        let Some(owner) = controller_of(pod.as_ref()) else {
            return Err(Unknown::NoController { pod: pod.name_any() });
        };
        let unknown = || Unknown::NotScalable { kind: owner.kind.clone(), name: owner.name.clone() };
        if owner.kind != "ReplicaSet" {
            return Err(unknown());
        }
        let namespace = pod.namespace().unwrap_or_default();
        let Some(set) = world.replica_sets.get(&Key::new(&namespace, &owner.name)) else {
            return Err(unknown());
        };
        // A rollout has several sets; what their Deployment wants counts once.
        let above = controller_of(set.as_ref()).filter(|above| above.kind == "Deployment");
        let deployment = above.and_then(|above| world.deployments.get(&Key::new(&namespace, &above.name)));
        match deployment {
            Some(deployment) => {
                let size = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                sizes.insert(deployment.uid().unwrap_or_default(), size);
            }
            None => {
                sizes.insert(owner.uid.clone(), replicas_of(&set));
            }
        }
    }
    Ok(sizes.values().fold(0, |sum, size| sum.saturating_add(*size)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn owner(kind: &str, name: &str) -> Value {
        json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true}])
    }

    fn pod(name: &str, owners: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name, "ownerReferences": owners}}))
                .unwrap(),
        )
    }

    /// A Deployment of 10 whose sets have 7 and 5 pods just now, and a ReplicaSet of 4 on its own.
    fn world() -> World {
        let world = World::default();
        let object = |name: &str, owners: Value, replicas: i32| {
            let metadata = json!({"namespace": "d", "name": name, "uid": name, "ownerReferences": owners});
            json!({"metadata": metadata, "spec": {"replicas": replicas, "selector": {}, "template": {}}})
        };
        world.deployments.upsert(serde_json::from_value(object("web", json!([]), 10)).unwrap());
        for (name, owners, replicas) in
            [("new", owner("Deployment", "web"), 7), ("old", owner("Deployment", "web"), 5), ("lone", json!([]), 4)]
        {
            world.replica_sets.upsert(serde_json::from_value(object(name, owners, replicas)).unwrap());
        }
        world
    }

    #[test]
    fn counts() {
        let check = |spec: Value, owners: &[(&str, &str)], expect: Result<(i32, i32), &str>| {
            let budget = serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec})).unwrap();
            let pods: Vec<_> = owners
                .iter()
                .map(|(kind, name)| pod("p", if kind.is_empty() { json!([]) } else { owner(kind, name) }))
                .collect();
            let counted = count(&budget, &pods, &world());
            match (counted, expect) {
                (Ok(found), Ok((pods, healthy))) => assert_eq!(found, Expected { pods, healthy }, "{spec}"),
                (Err(unknown), Err(part)) => assert!(unknown.to_string().contains(part), "{unknown}"),
                other => panic!("{spec}: {other:?}"),
            }
        };
        let (new, old, lone) = (("ReplicaSet", "new"), ("ReplicaSet", "old"), ("ReplicaSet", "lone"));
        check(json!({"minAvailable": 2}), &[new, ("", "")], Ok((2, 2)));
        check(json!({"maxUnavailable": 1}), &[new, old], Ok((10, 9)));
        check(json!({"maxUnavailable": "25%"}), &[new, lone], Ok((14, 10)));
        check(json!({"minAvailable": "50%"}), &[lone], Ok((4, 2)));
        check(json!({"minAvailable": "51%"}), &[lone], Ok((4, 3)));
        check(json!({"maxUnavailable": 20}), &[lone], Ok((4, 0)));
        check(json!({"maxUnavailable": 1}), &[("", "")], Err("belongs to no workload"));
        check(json!({"minAvailable": "50%"}), &[("StatefulSet", "db")], Err("StatefulSet db"));
        check(json!({"maxUnavailable": 1}), &[], Ok((0, 0)));
    }
}
