//! Pods on a node that does not exist: deleted once it has been gone for a while and the API server confirms it. Pure.
//!
//! As upstream's pod garbage collector: a node that is deleted and registers again, or one that a pod was bound to before it
//! came, keeps its pods.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::delete;
use crate::action::{Action, Part, Plan, Propagation};
use crate::clock::{after, whole_seconds};
use crate::kind::Kind;

/// How long a node has to be gone.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);

/// `missing_since` is when the node was first found missing by this process.
pub(super) fn plan(node: &str, pods: &[Arc<Pod>], missing_since: Timestamp, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let gone_at = after(missing_since, QUARANTINE);
    if now < gone_at {
        plan.look_again_at(gone_at);
        if now == missing_since {
            let seconds = QUARANTINE.as_secs();
            let note =
                |_: &Pod| format!("Node {node} does not exist; the pod is deleted in {seconds} s unless it comes");
            plan.actions.extend(pods.iter().map(|pod| event(pod, note(pod))));
        }
        return plan;
    }
    let then = pods.iter().map(|pod| remove(node, pod, now)).collect();
    plan.push(Action::UnlessNodeExists { node: node.to_owned(), then });
    plan
}

/// In this order.
fn remove(node: &str, pod: &Pod, now: Timestamp) -> Vec<Action> {
    let mut actions = vec![event(pod, format!("Node {node} does not exist; deleting the pod"))];
    if let Some(patch) = disrupted(pod, now) {
        actions.push(patch);
    }
    actions.push(delete(pod, Propagation::Now));
    actions
}

fn event(pod: &Pod, note: String) -> Action {
    Action::Event { regarding: Box::new(pod.object_ref(&())), is_warning: true, reason: "NodeNotFound", note }
}

/// For workloads that go by why a pod ended (core/v1, PodConditionType DisruptionTarget). `None`: it has ended already.
fn disrupted(pod: &Pod, now: Timestamp) -> Option<Action> {
    let status = pod.status.as_ref();
    if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return None;
    }
    let others = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<_> = others.filter(|one| one.type_ != "DisruptionTarget").map(|one| json!(one)).collect();
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists", "lastTransitionTime": Time(whole_seconds(now)),
    }));
    Some(Action::Patch {
        kind: Kind::Pod,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        part: Part::Status,
        patch: json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": conditions}}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"namespace": "d", "name": "p", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_node_has_time_to_come_back() {
        let pods = [pod("Running")];
        let first = plan("n1", &pods, at(5), at(5));
        assert_eq!(first.again_at, Some(at(45)));
        assert!(matches!(first.actions.as_slice(), [Action::Event { reason: "NodeNotFound", .. }]), "{first:?}");
        let second = plan("n1", &pods, at(5), at(44));
        assert_eq!((second.again_at, second.actions.len()), (Some(at(45)), 0), "said once");
    }

    #[test]
    fn then_its_pods_go_if_it_is_really_gone() {
        let check = |phase: &str, expect: usize| {
            let plan = plan("n1", &[pod(phase)], at(5), at(45));
            let [Action::UnlessNodeExists { node, then }] = plan.actions.as_slice() else { panic!("{plan:?}") };
            assert_eq!((node.as_str(), then[0].len()), ("n1", expect), "{phase}");
            let Some(Action::Delete { how: Propagation::Now, .. }) = then[0].last() else { panic!("{then:?}") };
        };
        check("Running", 3);
        check("Pending", 3);
        check("Failed", 2);
    }
}
