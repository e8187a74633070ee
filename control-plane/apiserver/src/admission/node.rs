//! Nodes, and what kubelets may write: their own Node without widening it, and pods that are bound to them.

use control_plane_api::{Object, Status};
use serde_json::{Value, json};

use super::{Operation, is};
use crate::{status::Outcome, verb::Call};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels that say what a node may be trusted with: only administrators set them.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";
/// Labels under kubernetes.io that a kubelet may set on itself.
const ALLOWED_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// A new node takes no pods until it has said that it is ready; the node lifecycle controller removes the taint then.
pub(super) fn complete(node: &mut Object) {
    let mut taints = node.list_at(&["spec", "taints"]).to_vec();
    let has = taints.iter().any(|taint| {
        taint.get("key").and_then(Value::as_str) == Some(NOT_READY)
            && taint.get("effect").and_then(Value::as_str) == Some("NoSchedule")
    });
    if !has {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        node.set(&["spec", "taints"], taints);
    }
}

fn refuse(call: &Call, name: &str, why: &str) -> crate::status::Failure {
    Status::forbidden(call.row.group, call.row.resource, name, why).into()
}

pub(super) fn restrict(
    call: &Call,
    node: &str,
    operation: Operation,
    subresource: &str,
    object: &Object,
    live: Option<&Object>,
) -> Outcome<()> {
    let row = call.row;
    if is(row, "", "pods") {
        return pod(call, node, operation, subresource, object, live);
    }
    if is(row, "", "nodes") {
        if object.name() != node {
            return Err(refuse(
                call,
                object.name(),
                &format!("node {node:?} is not allowed to modify node {:?}", object.name()),
            ));
        }
        let old_label = |key: &str| live.and_then(|live| live.label(key));
        for (key, value) in object.labels().filter(|(key, value)| old_label(key) != Some(value)) {
            if !may_label(key) {
                return Err(refuse(call, node, &format!("is not allowed to modify labels: {key}={value}")));
            }
        }
        if let Some(live) = live {
            let removed = live.labels().find(|(key, _)| object.label(key).is_none() && !may_label(key));
            if let Some((key, _)) = removed {
                return Err(refuse(call, node, &format!("is not allowed to modify labels: {key}")));
            }
            if subresource.is_empty() && object.at(&["spec", "taints"]) != live.at(&["spec", "taints"]) {
                return Err(refuse(call, node, "is not allowed to modify taints"));
            }
        }
    }
    let own = is(row, "coordination.k8s.io", "leases") || is(row, "storage.k8s.io", "csinodes");
    if own && object.name() != node {
        return Err(refuse(call, object.name(), &format!("can only be written by node {:?}", object.name())));
    }
    Ok(())
}

fn may_label(key: &str) -> bool {
    if key.starts_with(RESTRICTED_LABELS) || key.contains(&format!(".{RESTRICTED_LABELS}")) {
        return false;
    }
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let belongs = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !belongs("kubernetes.io") && !belongs("k8s.io") {
        return true;
    }
    ALLOWED_LABELS.contains(&key) || belongs("kubelet.kubernetes.io") || belongs("node.kubernetes.io")
}

fn pod(
    call: &Call,
    node: &str,
    operation: Operation,
    subresource: &str,
    object: &Object,
    live: Option<&Object>,
) -> Outcome<()> {
    let bound = |pod: &Object| pod.str_at(&["spec", "nodeName"]).unwrap_or("").to_owned();
    match operation {
        Operation::Create if object.annotation(MIRROR).is_none() => Err(refuse(
            call,
            object.name(),
            "pods created by a kubelet must be mirror pods: they need the annotation kubernetes.io/config.mirror",
        )),
        Operation::Create if bound(object) != node => Err(refuse(
            call,
            object.name(),
            &format!("node {node:?} can only create pods with spec.nodeName set to itself"),
        )),
        Operation::Create => Ok(()),
        Operation::Update if !matches!(subresource, "status" | "resize" | "eviction") => {
            Err(refuse(call, object.name(), &format!("node {node:?} can only update pod status")))
        }
        Operation::Update if live.is_some_and(|live| bound(live) != node) => Err(refuse(
            call,
            object.name(),
            &format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"),
        )),
        Operation::Update => Ok(()),
    }
}

pub(super) fn restrict_delete(call: &Call, node: &str, live: &Object) -> Outcome<()> {
    if is(call.row, "", "pods") && live.str_at(&["spec", "nodeName"]) != Some(node) {
        return Err(refuse(
            call,
            live.name(),
            &format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
        ));
    }
    if is(call.row, "", "nodes") {
        return Err(refuse(call, live.name(), "a kubelet may not delete nodes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_kubelet() {
        for (key, expect) in [
            ("kubernetes.io/hostname", true),
            ("example.com/anything", true),
            ("plain", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/secure", false),
            ("node.kubernetes.io/instance-type", true),
            ("kubelet.kubernetes.io/x", true),
            ("k8s.io/x", false),
        ] {
            assert_eq!(may_label(key), expect, "{key}");
        }
    }
}
