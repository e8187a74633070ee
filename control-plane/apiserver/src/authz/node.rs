//! What a kubelet may do: its own node, the pods bound to it, and the secrets, config maps, claims and accounts that those pods name.
//! Follows references through the cache; what is not reachable from a pod on the node is refused. Admission (`admission/node.rs`)
//! restricts what it may write in them.

use control_plane_api::Object;
use serde_json::Value;

use super::{Attributes, Decision, Target};
use crate::cache::Cache;

/// Reads that need no relation to the node: small, public cluster facts that a kubelet works with.
const ANYWHERE: [(&str, &str, &[&str]); 8] = [
    ("", "services", &["get", "list", "watch"]),
    ("", "nodes", &["create", "get", "list", "watch"]),
    ("", "namespaces", &["get", "list", "watch"]),
    ("node.k8s.io", "runtimeclasses", &["get", "list", "watch"]),
    ("storage.k8s.io", "csidrivers", &["get", "list", "watch"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
];

pub(crate) fn decide(cache: &Cache, node: &str, attributes: &Attributes) -> Decision {
    let Target::Resource { group, resource, subresource, namespace, name } = &attributes.target else {
        return Decision::refuse("");
    };
    let verb = attributes.verb.as_str();
    let allow = |allowed: bool, reason: &str| match allowed {
        true => Decision::allow("node: the object belongs to this node"),
        false => Decision::refuse(reason.to_owned()),
    };
    let is_anywhere = subresource.is_empty()
        && ANYWHERE
            .iter()
            .any(|(g, r, verbs)| (g, r) == (&group.as_str(), &resource.as_str()) && verbs.contains(&verb));
    if is_anywhere {
        return Decision::allow("node: every kubelet may");
    }
    let reads = matches!(verb, "get" | "list" | "watch");
    match (group.as_str(), resource.as_str(), subresource.as_str()) {
        ("" | "events.k8s.io", "events", "") => {
            allow(matches!(verb, "create" | "patch" | "update"), "kubelets only write events")
        }
        ("", "nodes", "" | "status") => {
            allow(matches!(verb, "get" | "patch" | "update") && name == node, "a kubelet may only change its own node")
        }
        // Admission refuses pods of other nodes; lists and watches must name the node to be quick, not to be allowed.
        ("", "pods", "") => {
            allow(matches!(verb, "get" | "list" | "watch" | "create" | "delete"), "not a kubelet's business")
        }
        ("", "pods", "status" | "resize") => {
            allow(matches!(verb, "patch" | "update"), "kubelets only report pod status")
        }
        ("", "pods", "eviction") => allow(verb == "create", "not a kubelet's business"),
        ("", "secrets", "") => allow(
            reads && !name.is_empty() && pods(cache, node, namespace).any(|pod| names_secret(&pod, name)),
            "no pod on this node uses this secret",
        ),
        ("", "configmaps", "") => allow(
            reads && !name.is_empty() && pods(cache, node, namespace).any(|pod| names_config_map(&pod, name)),
            "no pod on this node uses this config map",
        ),
        ("", "serviceaccounts", "") => allow(
            verb == "get" && pods(cache, node, namespace).any(|pod| uses_account(&pod, name)),
            "no pod on this node runs as this account",
        ),
        ("", "serviceaccounts", "token") => allow(
            verb == "create" && pods(cache, node, namespace).any(|pod| uses_account(&pod, name)),
            "no pod on this node runs as this account",
        ),
        ("", "persistentvolumeclaims", "" | "status") => allow(
            matches!(verb, "get" | "patch" | "update")
                && pods(cache, node, namespace).any(|pod| claims(&pod).any(|claim| claim == *name)),
            "no pod on this node uses this claim",
        ),
        ("", "persistentvolumes", "") => {
            allow(verb == "get" && volume_in_use(cache, node, name), "no pod on this node uses this volume")
        }
        ("storage.k8s.io", "volumeattachments", "") => allow(verb == "get", "kubelets only read attachments"),
        ("coordination.k8s.io", "leases", "") => allow(
            namespace == "kube-node-lease"
                && (verb == "create" || (matches!(verb, "get" | "update" | "patch" | "delete") && name == node)),
            "a kubelet may only renew its own lease",
        ),
        ("storage.k8s.io", "csinodes", "") => allow(
            verb == "create" || (matches!(verb, "get" | "update" | "patch" | "delete") && name == node),
            "a kubelet may only change its own CSINode",
        ),
        _ => Decision::refuse(""),
    }
}

/// Pods in a namespace that are bound to the node.
fn pods(cache: &Cache, node: &str, namespace: &str) -> impl Iterator<Item = Object> {
    let found: Vec<Object> = cache
        .of("", "pods")
        .map(|pods| {
            let prefix = format!("{}{namespace}/", pods.prefix());
            let snapshot = pods.snapshot();
            let on_node = snapshot.range(&prefix, "").filter(|pod| pod.field(pods.row(), "spec.nodeName") == node);
            on_node.map(|pod| pod.object()).collect()
        })
        .unwrap_or_default();
    found.into_iter()
}

fn uses_account(pod: &Object, name: &str) -> bool {
    pod.str_at(&["spec", "serviceAccountName"]).unwrap_or("default") == name
}

fn named(value: Option<&Value>, key: &str, name: &str) -> bool {
    value.and_then(|value| value.get(key)).and_then(Value::as_str) == Some(name)
}

fn volumes(pod: &Object) -> &[Value] {
    pod.list_at(&["spec", "volumes"])
}

fn containers(pod: &Object) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers", "ephemeralContainers"].into_iter().flat_map(|list| pod.list_at(&["spec", list]))
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn names_secret(pod: &Object, name: &str) -> bool {
    // Every volume source that names a secret calls it secretName, or secretRef.name inside the source.
    const REFERENCES: [&str; 7] = ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos", "csi"];
    let in_volume = |volume: &Value| {
        named(volume.get("secret"), "secretName", name)
            || named(volume.get("azureFile"), "secretName", name)
            || REFERENCES.iter().any(|source| {
                let source = volume.get(*source);
                named(source.and_then(|source| source.get("secretRef")), "name", name)
                    || named(source.and_then(|source| source.get("nodePublishSecretRef")), "name", name)
            })
            || volume.get("projected").is_some_and(|projected| {
                items(projected, "sources").iter().any(|source| named(source.get("secret"), "name", name))
            })
    };
    let in_container = |container: &Value| {
        items(container, "envFrom").iter().any(|source| named(source.get("secretRef"), "name", name))
            || items(container, "env").iter().any(|variable| {
                named(variable.get("valueFrom").and_then(|from| from.get("secretKeyRef")), "name", name)
            })
    };
    pod.list_at(&["spec", "imagePullSecrets"]).iter().any(|one| named(Some(one), "name", name))
        || volumes(pod).iter().any(in_volume)
        || containers(pod).any(in_container)
}

fn names_config_map(pod: &Object, name: &str) -> bool {
    let in_volume = |volume: &Value| {
        named(volume.get("configMap"), "name", name)
            || volume.get("projected").is_some_and(|projected| {
                items(projected, "sources").iter().any(|source| named(source.get("configMap"), "name", name))
            })
    };
    let in_container = |container: &Value| {
        items(container, "envFrom").iter().any(|source| named(source.get("configMapRef"), "name", name))
            || items(container, "env").iter().any(|variable| {
                named(variable.get("valueFrom").and_then(|from| from.get("configMapKeyRef")), "name", name)
            })
    };
    volumes(pod).iter().any(in_volume) || containers(pod).any(in_container)
}

fn claims(pod: &Object) -> impl Iterator<Item = String> {
    volumes(pod).iter().filter_map(|volume| {
        let own = volume.get("persistentVolumeClaim").and_then(|claim| claim.get("claimName")).and_then(Value::as_str);
        let ephemeral = volume.get("ephemeral").and_then(|_| volume.get("name")).and_then(Value::as_str);
        own.map(str::to_owned).or_else(|| ephemeral.map(|volume| format!("{}-{volume}", pod.name())))
    })
}

fn volume_in_use(cache: &Cache, node: &str, volume: &str) -> bool {
    let Some(volume) = cache.of("", "persistentvolumes").and_then(|volumes| volumes.get("", volume)) else {
        return false;
    };
    let volume = volume.object();
    let (Some(namespace), Some(claim)) =
        (volume.str_at(&["spec", "claimRef", "namespace"]), volume.str_at(&["spec", "claimRef", "name"]))
    else {
        return false;
    };
    pods(cache, node, namespace).any(|pod| claims(&pod).any(|name| name == claim))
}
