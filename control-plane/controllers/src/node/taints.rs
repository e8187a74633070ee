//! Conditions as taints (kubernetes.io, "Taints and Tolerations: Taint based Evictions"). Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::condition;
use crate::clock::whole_seconds;

const NO_SCHEDULE: &str = "NoSchedule";
pub(super) const NO_EXECUTE: &str = "NoExecute";

/// Condition, its state, and the taint that stands for it.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", "node.kubernetes.io/not-ready"),
    ("Ready", "Unknown", "node.kubernetes.io/unreachable"),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The taints the node should have: everybody else's as they are, ours as the conditions say.
pub(super) fn wanted(node: &Node, now: Timestamp) -> Vec<Taint> {
    let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut ours = Vec::new();
    for (kind, state, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|condition| condition.status == state) {
            ours.push((key, NO_SCHEDULE));
            if kind == "Ready" {
                ours.push((key, NO_EXECUTE));
            }
        }
    }
    // A node that has never said that it is ready takes no pods.
    if condition(node, "Ready").is_none() {
        ours.push(("node.kubernetes.io/not-ready", NO_SCHEDULE));
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        ours.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let is_wanted = |taint: &Taint| ours.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current.into_iter().filter(|taint| !is_managed(taint) || is_wanted(taint)).collect();
    for (key, effect) in ours {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = (effect == NO_EXECUTE).then(|| Time(whole_seconds(now)));
            taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added });
        }
    }
    taints
}

fn is_managed(taint: &Taint) -> bool {
    taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key)
}
