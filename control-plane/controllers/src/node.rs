//! Nodes: their part of the pod network, whether they are still heard of, and what becomes of their pods if not.
//!
//! ```text
//!   lease renewed ─> heard of ── silent for 40 s ─> conditions Unknown ─> taints ─> pods not Ready ─> evicted as they tolerate
//!                        ^                                                                  │
//!                        └──────────────── lease renewed, kubelet says Ready ───────────────┘
//!   node deleted ─> gone for 40 s, and the API server confirms it ─> its pods are deleted: nobody is left to end them
//! ```
//! Silence is measured from when a renewal was *seen*, so that the clocks of nodes do not matter.

mod eviction;
mod orphans;
mod pod_cidr;
mod taints;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::action::{Action, Part, Plan, Propagation};
use crate::cache::Key;
use crate::clock::{after, whole_seconds};
use crate::kind::Kind;
use crate::runner::Controller;
use crate::world::{Changed, World};

pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A node that has been silent for so long is lost. Kubelets renew every ten seconds.
const SILENCE_MAX: SignedDuration = SignedDuration::from_secs(40);
/// The conditions that a kubelet vouches for.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(crate) struct Nodes {
    pub cluster_cidr: (Ipv4Addr, u8),
    pub node_prefix: u8,
    /// When the latest renewal of each node was first seen. After a restart every node gets its 40 seconds anew.
    pub heard: Mutex<HashMap<String, (Option<MicroTime>, Timestamp)>>,
    /// When each node that pods are bound to was first found missing; likewise.
    pub missing: Mutex<HashMap<String, Timestamp>>,
}

impl Controller for Nodes {
    const NAME: &'static str = "node-controller";
    /// Two nodes planned at once would be given the same part of the pod network.
    const WORKERS: usize = 1;

    fn keys(&self, _world: &World, changed: &Changed) -> Vec<Key> {
        let name = match changed {
            Changed::Node(change) => change.latest().map(|node| node.name_any()),
            Changed::Lease(change) => change.latest().map(|lease| lease.name_any()),
            Changed::Pod(change) => change.latest().and_then(|pod| node_of(pod).map(String::from)),
            _ => None,
        };
        name.map(|name| Key::new("", name)).into_iter().collect()
    }

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan {
        let pods: Vec<Arc<Pod>> =
            world.pods.all().into_iter().filter(|pod| node_of(pod) == Some(key.name.as_str())).collect();
        let Some(node) = world.nodes.get(key) else {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            if pods.is_empty() {
                missing.remove(&key.name);
                return Plan::default();
            }
            let since = *missing.entry(key.name.clone()).or_insert(now);
            return orphans::plan(&key.name, &pods, since, now);
        };
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
        let renewed = world.leases.get(&Key::new(LEASE_NAMESPACE, &key.name));
        let renewed = renewed.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        let is_new = !self.heard.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&key.name);
        let last_heard = self.last_heard(&key.name, renewed, now);
        let mut plan = plan(&node, &pods, last_heard, now);
        if is_new {
            let note = format!("Node {0} event: Registered Node {0} in Controller", key.name);
            let regarding = Box::new(node.object_ref(&()));
            plan.push(Action::Event { regarding, is_warning: false, reason: "RegisteredNode", note });
        }
        if node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref()).is_none() {
            plan.actions.extend(pod_cidr::assign(&node, &world.nodes.all(), self.cluster_cidr, self.node_prefix));
        }
        plan
    }
}

impl Nodes {
    fn last_heard(&self, node: &str, renewed: Option<MicroTime>, now: Timestamp) -> Timestamp {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = heard.entry(node.to_owned()).or_insert((renewed.clone(), now));
        if entry.0 != renewed {
            *entry = (renewed, now);
        }
        entry.1
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn delete(pod: &Pod, how: Propagation) -> Action {
    Action::Delete {
        kind: Kind::Pod,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        how,
        announce: None,
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|condition| condition.type_ == kind)
}

fn plan(node: &Node, pods: &[Arc<Pod>], last_heard: Timestamp, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut node = node.clone();
    let lost_at = after(last_heard, SILENCE_MAX);
    if now < lost_at {
        plan.look_again_at(lost_at);
    } else if CONDITIONS.iter().any(|kind| condition(&node, kind).is_none_or(|condition| condition.status != "Unknown"))
    {
        plan.push(lose(&mut node, now));
    }
    let wanted = taints::wanted(&node, now);
    if node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default() != wanted.as_slice() {
        // A merge patch replaces the list, so it must not overwrite a taint that was not seen.
        let metadata = json!({"uid": node.uid(), "resourceVersion": node.resource_version()});
        plan.push(patch(&node, Part::Whole, json!({"metadata": metadata, "spec": {"taints": wanted}})));
    }
    if condition(&node, "Ready").is_some_and(|ready| ready.status == "Unknown") {
        plan.actions.extend(pods.iter().filter_map(|pod| unready(pod, now)));
    }
    eviction::plan(&wanted, pods, now, &mut plan);
    plan
}

/// All conditions become Unknown: nobody vouches for them any more.
fn lose(node: &mut Node, now: Timestamp) -> Action {
    let time = Time(whole_seconds(now));
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in CONDITIONS {
        let unknown = NodeCondition {
            type_: kind.into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(time.clone()),
            last_heartbeat_time: None,
        };
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                *condition = NodeCondition { last_heartbeat_time: condition.last_heartbeat_time.clone(), ..unknown }
            }
            None => conditions.push(unknown),
        }
    }
    let conditions = json!(conditions);
    patch(node, Part::Status, json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}}))
}

/// A pod on a lost node leaves its Services: its Ready condition becomes false.
fn unready(pod: &Pod, now: Timestamp) -> Option<Action> {
    let mut conditions = pod.status.as_ref()?.conditions.clone()?;
    let ready = conditions.iter_mut().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    ready.status = "False".into();
    ready.reason = Some("NodeNotReady".into());
    ready.message = Some("The node of this pod has not been heard of.".into());
    ready.last_transition_time = Some(Time(whole_seconds(now)));
    Some(Action::Patch {
        kind: Kind::Pod,
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        part: Part::Status,
        patch: json!({"metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()}, "status": {"conditions": conditions}}),
    })
}

fn patch(node: &Node, part: Part, patch: Value) -> Action {
    Action::Patch { kind: Kind::Node, namespace: String::new(), name: node.name_any(), part, patch }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Node {
        let conditions: Vec<Value> = CONDITIONS
            .iter()
            .map(|kind| json!({"type": kind, "status": if *kind == "Ready" { ready } else { "False" }}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"conditions": conditions}})).unwrap()
    }

    fn pod(tolerations: Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"namespace": "d", "name": "p", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": [], "tolerations": tolerations},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_healthy_node_needs_nothing_until_it_could_be_lost() {
        let plan = plan(&node("True"), &[pod(json!([]))], at(0), at(10));
        assert_eq!(plan, Plan { actions: Vec::new(), again_at: Some(at(40)) });
    }

    #[test]
    fn a_silent_node_is_lost() {
        let tolerant = pod(
            json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
        );
        let plan = plan(&node("True"), &[tolerant], at(0), at(40));
        let [
            Action::Patch { part: Part::Status, patch, .. },
            Action::Patch { patch: taints, .. },
            Action::Patch { kind: Kind::Pod, .. },
        ] = plan.actions.as_slice()
        else {
            panic!("{:?}", plan.actions)
        };
        assert_eq!(patch["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(taints["spec"]["taints"].as_array().unwrap().len(), 2);
        assert_eq!(plan.again_at, Some(at(340)), "the pod tolerates it for five minutes");
    }

    #[test]
    fn who_does_not_tolerate_goes_at_once() {
        let plan = plan(&node("False"), &[pod(json!([]))], at(0), at(1));
        assert!(
            plan.actions.iter().any(|action| matches!(action, Action::Delete { name, .. } if name == "p")),
            "{plan:?}"
        );
    }
}
