//! Nodes, and what kubelets may write: their own Node without widening it, and pods that are bound to them.

use control_plane_api::{Object, Status};
use serde_json::{Value, json};

use super::{Operation, is};
use crate::{authz::node, status::Outcome, verb::Call};

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

/// Refuses what a kubelet may not write, upstream's NodeRestriction.
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
        return own_node(call, node, object, live);
    }
    if is(row, "", "persistentvolumeclaims") {
        return claim_status(call, node, subresource, object, live);
    }
    let in_lease_namespace = object.namespace() == "kube-node-lease";
    if is(row, "coordination.k8s.io", "leases") && !in_lease_namespace {
        return Err(refuse(call, object.name(), "a kubelet can only access leases in kube-node-lease"));
    }
    let own = is(row, "coordination.k8s.io", "leases") || is(row, "storage.k8s.io", "csinodes");
    if own && object.name() != node {
        return Err(refuse(call, object.name(), &format!("can only be written by node {:?}", object.name())));
    }
    Ok(())
}

fn own_node(call: &Call, node: &str, object: &Object, live: Option<&Object>) -> Outcome<()> {
    if object.name() != node {
        let why = format!("node {node:?} is not allowed to modify node {:?}", object.name());
        return Err(refuse(call, object.name(), &why));
    }
    let old_label = |key: &str| live.and_then(|live| live.label(key));
    let set = object.labels().filter(|(key, value)| old_label(key) != Some(value)).map(|(key, _)| key);
    let removed =
        live.into_iter().flat_map(Object::labels).map(|(key, _)| key).filter(|key| object.label(key).is_none());
    let forbidden: Vec<&str> = set.chain(removed).filter(|key| !may_label(key)).collect();
    if !forbidden.is_empty() {
        return Err(refuse(call, node, &format!("is not allowed to modify labels: {}", forbidden.join(", "))));
    }
    let differs = |path: &[&str]| {
        let empty = |value: Option<&Value>| {
            value.is_none_or(|value| value.is_null() || value.as_array().is_some_and(Vec::is_empty))
        };
        let (new, old) = (object.at(path), live.and_then(|live| live.at(path)));
        new != old && !(empty(new) && empty(old))
    };
    if object.at(&["spec", "configSource"]).is_some_and(|source| !source.is_null())
        && differs(&["spec", "configSource"])
    {
        return Err(refuse(call, node, "is not allowed to set spec.configSource"));
    }
    // An owner that does not exist has the garbage collector delete the node, and with it what keeps the kubelet's labels and taints.
    if differs(&["metadata", "ownerReferences"]) {
        return Err(refuse(call, node, &format!("node {node:?} is not allowed to modify ownerReferences")));
    }
    // A node may come with taints; it may not shed them.
    if live.is_some() && differs(&["spec", "taints"]) {
        return Err(refuse(call, node, &format!("node {node:?} is not allowed to modify taints")));
    }
    Ok(())
}

/// Of a claim a kubelet reports the size of the volume behind it, and nothing else.
fn claim_status(call: &Call, node: &str, subresource: &str, object: &Object, live: Option<&Object>) -> Outcome<()> {
    let (Some(live), "status") = (live, subresource) else {
        return Err(refuse(call, object.name(), &format!("node {node:?} may only update PVC status")));
    };
    let rest = |object: &Object| {
        let mut object = object.clone();
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            object.remove(&["status", field]);
        }
        for field in ["managedFields", "resourceVersion"] {
            object.metadata_mut().remove(field);
        }
        object
    };
    if rest(object) != rest(live) {
        let why =
            format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions");
        return Err(refuse(call, object.name(), &why));
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
    let refused = |why: String| Err(refuse(call, object.name(), &why));
    let live = match (operation, live) {
        (Operation::Create, _) | (_, None) => return mirror(call, node, object),
        (Operation::Update, Some(live)) => live,
    };
    if subresource != "status" {
        return refused(format!("node {node:?} can only update pod status"));
    }
    if bound(live) != node {
        return refused(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if object.at(&["metadata", "labels"]) != live.at(&["metadata", "labels"]) {
        return refused(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = ["status", "resourceClaimStatuses"];
    if object.at(&claims) != live.at(&claims) {
        return refused(format!("node {node:?} cannot update resource claim statuses"));
    }
    Ok(())
}

/// A kubelet creates nothing but mirrors of what it runs by itself, bound to it, owned by it, and leading nowhere: what a pod of the
/// node names is what the kubelet may read.
fn mirror(call: &Call, node: &str, pod: &Object) -> Outcome<()> {
    let refused = |why: String| Err(refuse(call, pod.name(), &why));
    if pod.annotation(MIRROR).is_none() {
        return refused(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if pod.str_at(&["spec", "nodeName"]) != Some(node) {
        return refused(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let [owner] = pod.list_at(&["metadata", "ownerReferences"]) else {
        return refused(format!("node {node:?} can only create pods with a single owner reference set to itself"));
    };
    let text = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or("");
    if (text("apiVersion"), text("kind"), text("name")) != ("v1", "Node", node) {
        return refused(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner.get("controller").and_then(Value::as_bool) != Some(true) {
        return refused(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner.get("blockOwnerDeletion").and_then(Value::as_bool) == Some(true) {
        return refused(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let own = call.kernel.cache.of("", "nodes").and_then(|nodes| nodes.get("", node));
    let Some(own) = own else { return Err(Status::not_found("", "nodes", node).into()) };
    if text("uid") != &*own.uid {
        return refused(format!("node {node} UID mismatch: expected {} got {}", own.uid, text("uid")));
    }
    match node::reference(pod) {
        Some(what) => refused(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
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
