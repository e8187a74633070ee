//! The decision: one pod, all nodes, one answer. Pure.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;

use crate::filter::Wanted;
use crate::score;
use crate::snapshot::Snapshot;

/// Why one node cannot take the pod. Printed as upstream prints it, since people search for these words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Unschedulable,
    Taint { key: String, value: String },
    Affinity,
    Ports,
    TooManyPods,
    Insufficient { resource: String },
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => formatter.write_str("node(s) were unschedulable"),
            Self::Taint { key, value } => write!(formatter, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::Affinity => formatter.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => formatter.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => formatter.write_str("Too many pods"),
            Self::Insufficient { resource } => write!(formatter, "Insufficient {resource}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bind {
        node: String,
    },
    /// Nowhere; how many nodes gave each reason. Empty where there are no nodes.
    Nowhere {
        nodes: usize,
        reasons: BTreeMap<Reason, usize>,
    },
}

impl Decision {
    /// What the pod's condition and event say about a pod that fits nowhere.
    pub fn message(&self) -> String {
        match self {
            Self::Bind { node } => format!("fits on {node}"),
            Self::Nowhere { nodes: 0, .. } => "no nodes available to schedule pods".into(),
            Self::Nowhere { nodes, reasons } => {
                let mut parts: Vec<String> =
                    reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                parts.sort();
                format!("0/{nodes} nodes are available: {}.", parts.join(", "))
            }
        }
    }
}

/// Equal input, equal decision.
pub fn decide(snapshot: &Snapshot, pod: &Pod) -> Decision {
    let wanted = Wanted::of(pod);
    let mut feasible = Vec::new();
    let mut reasons = BTreeMap::new();
    let mut nodes = 0;
    for (name, node) in snapshot.nodes() {
        nodes += 1;
        let refusals = wanted.refusals(name, node);
        if refusals.is_empty() {
            feasible.push((name, node));
        }
        for reason in refusals {
            *reasons.entry(reason).or_insert(0) += 1;
        }
    }
    match score::best(&wanted, &feasible) {
        Some(node) => Decision::Bind { node: node.to_owned() },
        None => Decision::Nowhere { nodes, reasons },
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, cpu: &str, extra: Value) -> Node {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        node["spec"] = extra;
        serde_json::from_value(node).unwrap()
    }

    fn pod(name: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true}]},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    fn snapshot(nodes: &[Node]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.upsert_node(node);
        }
        snapshot
    }

    #[test]
    fn messages() {
        let check =
            |nodes: &[Node], expect: &str| assert_eq!(decide(&snapshot(nodes), &pod("p", "4")).message(), expect);
        check(&[], "no nodes available to schedule pods");
        check(
            &[
                node("a", "2", json!({})),
                node("b", "8", json!({"unschedulable": true})),
                node("c", "8", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})),
                node("d", "1", json!({})),
            ],
            "0/4 nodes are available: 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable, 2 Insufficient cpu.",
        );
    }

    #[test]
    fn replicas_spread() {
        let mut snapshot = snapshot(&[node("a", "8", json!({})), node("b", "8", json!({})), node("c", "8", json!({}))]);
        for index in 0..6 {
            let pod = pod(&format!("p{index}"), "100m");
            let Decision::Bind { node } = decide(&snapshot, &pod) else { panic!("fits") };
            snapshot.assume(&pod, &node);
        }
        for (name, node) in snapshot.nodes() {
            assert_eq!(node.pods, 2, "{name}");
        }
    }

    proptest! {
        /// A node is never given more than it has, and a pod is refused only if no node has the room.
        #[test]
        fn room_is_never_given_twice(pods in prop::collection::vec(1..3000i64, 1..40)) {
            let mut snapshot = snapshot(&[node("a", "4", json!({})), node("b", "8", json!({}))]);
            for (index, millis) in pods.into_iter().enumerate() {
                let pod = pod(&format!("p{index}"), &format!("{millis}m"));
                let decision = decide(&snapshot, &pod);
                prop_assert_eq!(&decision, &decide(&snapshot, &pod));
                match decision {
                    Decision::Bind { node } => snapshot.assume(&pod, &node),
                    Decision::Nowhere { .. } => {
                        for (_, node) in snapshot.nodes() {
                            prop_assert!(node.allocatable.get("cpu") - node.requested.get("cpu") < i128::from(millis));
                        }
                    }
                }
                for (_, node) in snapshot.nodes() {
                    prop_assert!(node.requested.get("cpu") <= node.allocatable.get("cpu"));
                }
            }
        }
    }
}
