//! What a kubelet may do: its own node, the pods bound to it, and the secrets, config maps, claims and accounts that those pods name.
//! Follows references through the cache; what is not reachable from a pod on the node is refused. Admission (`admission/node.rs`)
//! restricts what it may write in them.
//!
//! Invariant: a kubelet reads no object that has nothing to do with its node, the small public facts of `ANYWHERE` aside: lists and
//! watches must name the node, or an object that belongs to it (upstream's AuthorizeNodeWithSelectors).

use control_plane_api::{Object, selector::FieldSelector};
use serde_json::Value;

use super::{Attributes, Decision, Target};
use crate::cache::Cache;

/// What needs no relation to the node: small, public cluster facts that a kubelet works with, and what it asks of the server.
const ANYWHERE: [(&str, &str, &[&str]); 9] = [
    ("", "services", &["get", "list", "watch"]),
    ("", "events", &["create", "patch", "update"]),
    ("events.k8s.io", "events", &["create", "patch", "update"]),
    ("node.k8s.io", "runtimeclasses", &["get", "list", "watch"]),
    ("storage.k8s.io", "csidrivers", &["get", "list", "watch"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
];
/// A pod that shows what the kubelet runs by itself. It grants nothing: a kubelet makes it.
const MIRROR: &str = "kubernetes.io/config.mirror";
const NODE_NAME: &str = "spec.nodeName";

pub(crate) fn decide(cache: &Cache, node: &str, attributes: &Attributes) -> Decision {
    let Target::Resource { group, resource, subresource, namespace, name } = &attributes.target else {
        return Decision::refuse("");
    };
    let verb = attributes.verb.as_str();
    let (group, resource) = (group.as_str(), resource.as_str());
    let is_anywhere = |(g, r, verbs): &(&str, &str, &[&str])| (*g, *r) == (group, resource) && verbs.contains(&verb);
    if subresource.is_empty() && ANYWHERE.iter().any(is_anywhere) {
        return Decision::allow("node: every kubelet may");
    }
    let reads = matches!(verb, "get" | "list" | "watch");
    // Of a pod on this node, and never of one that the kubelet made itself.
    let used = |uses: &dyn Fn(&Object) -> bool| {
        !name.is_empty()
            && !namespace.is_empty()
            && pods(cache, node, namespace).any(|pod| pod.annotation(MIRROR).is_none() && uses(&pod))
    };
    let (allowed, otherwise) = match (group, resource, subresource.as_str()) {
        ("", "nodes", _) => own_node(node, verb, subresource, name),
        ("", "pods", _) => own_pods(cache, node, attributes, (verb, subresource, namespace, name)),
        ("", "secrets", "") => (
            reads && used(&|pod| names_secret(pod, name)),
            "no pod on this node uses this secret; ask for it by its name",
        ),
        ("", "configmaps", "") => (
            reads && used(&|pod| names_config_map(pod, name)),
            "no pod on this node uses this config map; ask for it by its name",
        ),
        ("", "serviceaccounts", "") => {
            (verb == "get" && used(&|pod| uses_account(pod, name)), "no pod on this node runs as this account")
        }
        ("", "serviceaccounts", "token") => {
            (verb == "create" && used(&|pod| uses_account(pod, name)), "no pod on this node runs as this account")
        }
        ("", "persistentvolumeclaims", "" | "status") => {
            let may = if subresource.is_empty() { verb == "get" } else { matches!(verb, "patch" | "update") };
            (may && used(&|pod| claims(pod).any(|claim| claim == *name)), "no pod on this node uses this claim")
        }
        ("", "persistentvolumes", "") => {
            (verb == "get" && volume_in_use(cache, node, name), "no pod on this node uses this volume")
        }
        ("storage.k8s.io", "volumeattachments", "") => {
            (verb == "get" && is_attached(cache, node, name), "the volume is not attached to this node")
        }
        ("coordination.k8s.io", "leases", "") => {
            let own = verb == "create" || (matches!(verb, "get" | "update" | "patch" | "delete") && name == node);
            (namespace == "kube-node-lease" && own, "a kubelet may only renew its own lease")
        }
        ("storage.k8s.io", "csinodes", "") => (
            verb == "create" || (matches!(verb, "get" | "update" | "patch" | "delete") && name == node),
            "a kubelet may only change its own CSINode",
        ),
        _ => (false, ""),
    };
    if allowed { Decision::allow("node: the object belongs to this node") } else { Decision::refuse(otherwise) }
}

/// Reads are of the own node alone, by its name; that writes are too is seen to by admission, which knows the object.
fn own_node(node: &str, verb: &str, subresource: &str, name: &str) -> (bool, &'static str) {
    match (subresource, verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => (true, ""),
        ("", "get" | "list" | "watch") => (name == node, "a kubelet may only read its own node, by its name"),
        _ => (false, "not a kubelet's business"),
    }
}

fn own_pods(
    cache: &Cache,
    node: &str,
    attributes: &Attributes,
    (verb, subresource, namespace, name): (&str, &str, &str, &str),
) -> (bool, &'static str) {
    let is_own = || {
        let found = cache.of("", "pods").and_then(|pods| Some((pods.get(namespace, name)?, pods.row())));
        found.is_some_and(|(pod, row)| pod.field(row, NODE_NAME) == node)
    };
    match (subresource, verb) {
        ("", "get") => (is_own(), "the pod is not bound to this node"),
        ("", "list" | "watch") => (
            names_node(&attributes.fields, node) || (!name.is_empty() && is_own()),
            "a kubelet may only list and watch pods with the field selector spec.nodeName=NODE",
        ),
        // Admission sees to it that they are this node's.
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => (true, ""),
        _ => (false, "not a kubelet's business"),
    }
}

fn names_node(fields: &FieldSelector, node: &str) -> bool {
    fields.requirements().iter().any(|one| one.equal && one.path == NODE_NAME && one.value == node)
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

/// Whether a pod leads to a secret, config map, claim or account, or to a bundle of certificates: what a mirror pod may not.
pub(crate) fn reference(pod: &Object) -> Option<&'static str> {
    let account = ["serviceAccountName", "serviceAccount"];
    let any_projected = |kind: &str| {
        volumes(pod).iter().filter_map(|volume| volume.get("projected")).any(|projected| {
            items(projected, "sources").iter().any(|source| source.get(kind).is_some_and(|one| !one.is_null()))
        })
    };
    let any_volume = |kind: &str| volumes(pod).iter().any(|volume| volume.get(kind).is_some_and(|one| !one.is_null()));
    if account.iter().any(|field| pod.str_at(&["spec", field]).is_some_and(|name| !name.is_empty())) {
        return Some("a service account");
    }
    if any_projected("serviceAccountToken") {
        return Some("a service account's token");
    }
    if any_projected("clusterTrustBundle") {
        return Some("a ClusterTrustBundle");
    }
    if any_projected("podCertificate") {
        return Some("a pod certificate");
    }
    if names_a_secret(pod, &|_| true) {
        return Some("a secret");
    }
    if names_a_config_map(pod, &|_| true) {
        return Some("a config map");
    }
    if any_volume("persistentVolumeClaim") || any_volume("ephemeral") {
        return Some("a persistent volume claim");
    }
    let claims = pod.list_at(&["spec", "resourceClaims"]);
    (!claims.is_empty()).then_some("a resource claim")
}

/// Whether a name stands there that is wanted.
type Wanted<'a> = dyn Fn(&str) -> bool + 'a;

fn named(value: Option<&Value>, key: &str, is_wanted: &Wanted<'_>) -> bool {
    value.and_then(|value| value.get(key)).and_then(Value::as_str).is_some_and(is_wanted)
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
    names_a_secret(pod, &|found| found == name)
}

fn names_a_secret(pod: &Object, name: &Wanted<'_>) -> bool {
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
    names_a_config_map(pod, &|found| found == name)
}

fn names_a_config_map(pod: &Object, name: &Wanted<'_>) -> bool {
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

fn is_attached(cache: &Cache, node: &str, name: &str) -> bool {
    let attachment = cache.of("storage.k8s.io", "volumeattachments").and_then(|all| all.get("", name));
    attachment.is_some_and(|one| one.object().str_at(&["spec", "nodeName"]) == Some(node))
}
