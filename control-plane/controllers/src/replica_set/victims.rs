//! Which pods of a set go first when it shrinks. Pure.
//!
//! The order is upstream's (kubernetes.io, "ReplicaSet: Scaling a ReplicaSet"): those that serve nobody yet, then the cheap ones
//! by annotation, then those with most siblings on their node, then the younger.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::ready_since;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `count` pods of `active`, those to be missed least.
pub(super) fn choose(active: &[Arc<Pod>], count: usize) -> Vec<&Pod> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for node in active.iter().filter_map(|pod| node_of(pod)) {
        *per_node.entry(node).or_insert(0) += 1;
    }
    let mut ranked: Vec<&Pod> = active.iter().map(Arc::as_ref).collect();
    ranked.sort_by_cached_key(|pod| {
        let node = node_of(pod);
        let ready = ready_since(pod);
        (
            node.is_some(),
            phase_rank(pod),
            ready.is_some(),
            cost(pod),
            Reverse(node.and_then(|node| per_node.get(node)).copied().unwrap_or(0)),
            Reverse(ready.unwrap_or(Timestamp::MIN)),
            Reverse(restarts(pod)),
            Reverse(pod.creation_timestamp().map_or(Timestamp::MIN, |time| time.0)),
            pod.name_any(),
        )
    });
    ranked.truncate(count);
    ranked
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    }
}

/// What is no number was refused by the API server's validation, or costs nothing.
fn cost(pod: &Pod) -> i32 {
    pod.annotations().get(DELETION_COST).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order() {
        let pod = |name: &str, node: Option<&str>, phase: &str, ready: bool, cost: &str| {
            let status = if ready { "True" } else { "False" };
            let pod = json!({
                "metadata": {"name": name, "annotations": {DELETION_COST: cost}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods = [
            pod("dear", Some("n2"), "Running", true, "5"),
            pod("crowded", Some("n1"), "Running", true, "0"),
            pod("alone", Some("n2"), "Running", true, "0"),
            pod("unready", Some("n1"), "Running", false, "0"),
            pod("pending", Some("n1"), "Pending", false, "0"),
            pod("unplaced", None, "Pending", false, "0"),
        ];
        let names: Vec<String> = choose(&pods, 6).into_iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["unplaced", "pending", "unready", "crowded", "alone", "dear"]);
    }
}
