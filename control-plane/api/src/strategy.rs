//! What a write may touch: which parts a create, an update or a subresource sets, and when the generation rises.
//!
//! Runs before defaults and validation. Invariant: a write through one door leaves the parts of the other doors alone.

mod service;

use serde_json::{Map, Value, json};

use crate::object::map_entry;
use crate::{Object, Row, qos};

/// Kinds whose `metadata.generation` counts changes of what was asked for.
fn has_generation(row: &Row) -> bool {
    match row.group {
        "apps" => row.kind != "ControllerRevision",
        "" => matches!(row.kind, "Pod" | "ReplicationController"),
        "batch" | "policy" | "discovery.k8s.io" => true,
        "networking.k8s.io" => matches!(row.kind, "Ingress" | "IngressClass" | "NetworkPolicy"),
        "scheduling.k8s.io" => true,
        _ => false,
    }
}

/// Whether `status` is written by its own path only.
fn has_status(row: &Row) -> bool {
    row.subresource("status").is_some()
}

/// The top-level fields that a write to `subresource` (empty: the object) cannot set: for server-side apply.
pub fn ignored_fields(row: &Row, subresource: &str) -> &'static [&'static str] {
    match subresource {
        "" if has_status(row) => &["status"],
        "status" => &["spec"],
        _ => &[],
    }
}

/// Brings a new object into the state it is created in. `metadata.uid` and the name must be set already.
pub fn prepare_create(row: &Row, object: &mut Object) {
    // Nodes report their status in the first write; upstream lets them.
    if has_status(row) && row.kind != "Node" {
        object.remove(&["status"]);
    }
    match (row.group, row.kind) {
        ("", "Pod") => {
            let class = qos::class(object.get("spec").unwrap_or(&Value::Null));
            object.set(&["status"], json!({"phase": "Pending", "qosClass": class.as_str()}));
            // Ephemeral containers come by their own path only; a create that carries them is refused by validation.
        }
        ("", "Namespace") => {
            let finalizers = map_entry(object.as_map_mut(), "spec").entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = finalizers.as_array_mut()
                && !list.iter().any(|one| one == "kubernetes")
            {
                list.push("kubernetes".into());
            }
            object.set(&["status"], json!({"phase": "Active"}));
        }
        ("", "Service") => service::prepare_create(object),
        ("batch", "Job") => label_job(object),
        _ => {}
    }
    if has_generation(row) {
        object.set_generation(1);
    } else {
        object.metadata_mut().remove("generation");
    }
}

/// A job without a selector of its own selects its pods by its uid.
fn label_job(object: &mut Object) {
    if object.bool_at(&["spec", "manualSelector"]) == Some(true) {
        return;
    }
    let (uid, name) = (object.uid().to_owned(), object.name().to_owned());
    let spec = map_entry(object.as_map_mut(), "spec");
    let labels = map_entry(map_entry(map_entry(spec, "template"), "metadata"), "labels");
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.insert(format!("{prefix}controller-uid"), uid.clone().into());
        labels.insert(format!("{prefix}job-name"), name.clone().into());
    }
    let selector = map_entry(map_entry(spec, "selector"), "matchLabels");
    selector.insert("batch.kubernetes.io/controller-uid".into(), uid.into());
}

/// Limits an update through `subresource` (empty: the object itself) to the parts it may change.
pub fn prepare_update(row: &Row, subresource: &str, new: &mut Object, old: &Object) {
    keep_identity(new, old);
    match subresource {
        "" => {
            if has_status(row) {
                new.copy_from("status", old);
            }
            if (row.group, row.kind) == ("", "Pod") {
                restrict(new, old, &[&["spec", "ephemeralContainers"]]);
            }
            if (row.group, row.kind) == ("", "Namespace") {
                new.copy_from("spec", old);
            }
            if (row.group, row.kind) == ("", "Service") {
                service::prepare_update(new, old);
            }
        }
        "status" => {
            for key in keys_but(new, old, &["status", "metadata", "apiVersion", "kind"]) {
                new.copy_from(&key, old);
            }
            if row.group == "apps" || row.group == "batch" {
                restrict(new, old, &[&["metadata", "labels"]]);
            }
            restrict(new, old, &[&["metadata", "ownerReferences"]]);
        }
        "ephemeralcontainers" => only(new, old, &["spec", "ephemeralContainers"]),
        "resize" => resize(new, old),
        "finalize" => only(new, old, &["spec", "finalizers"]),
        // Who approves may note why, in annotations say: the metadata is the request's.
        "approval" => {
            let conditions = new.at(&["status", "conditions"]).cloned();
            for key in keys_but(new, old, &["metadata", "apiVersion", "kind"]) {
                new.copy_from(&key, old);
            }
            match conditions {
                Some(conditions) => new.set(&["status", "conditions"], conditions),
                None => drop(new.remove(&["status", "conditions"])),
            }
        }
        _ => {}
    }
    if has_generation(row) {
        // A binding is the scheduler's answer, not a change of what was asked for.
        let risen = i64::from(subresource != "binding" && is_asked_change(row, new, old));
        new.set_generation(old.generation().max(1) + risen);
    } else if let Some(generation) = old.metadata().and_then(|meta| meta.get("generation")) {
        let generation = generation.clone();
        new.metadata_mut().insert("generation".into(), generation);
    }
}

/// What the server wrote into the metadata stays, whatever the client sends back.
fn keep_identity(new: &mut Object, old: &Object) {
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        let kept = old.metadata().and_then(|meta| meta.get(key)).cloned();
        // A uid that the client did send is compared by validation; only an absent one is filled in.
        if key == "uid" && !new.uid().is_empty() {
            continue;
        }
        match kept {
            Some(value) => new.metadata_mut().insert(key.into(), value),
            None => new.metadata_mut().remove(key),
        };
    }
}

fn is_asked_change(row: &Row, new: &Object, old: &Object) -> bool {
    let without = |object: &Object| {
        let mut map = object.as_map().clone();
        for key in ["metadata", "status", "apiVersion", "kind"] {
            map.remove(key);
        }
        map
    };
    // The deletion of an object is a change of what was asked for, too.
    let deleted = new.is_deleting() != old.is_deleting() && row.kind != "Pod";
    without(new) != without(old) || deleted
}

fn keys_but(new: &Object, old: &Object, kept: &[&str]) -> Vec<String> {
    let keys = new.as_map().keys().chain(old.as_map().keys());
    keys.filter(|key| !kept.contains(&key.as_str())).cloned().collect()
}

/// Puts the old values back at `paths`.
fn restrict(new: &mut Object, old: &Object, paths: &[&[&str]]) {
    for path in paths {
        match old.at(path).cloned() {
            Some(value) => new.set(path, value),
            None => drop(new.remove(path)),
        }
    }
}

/// The old object with one value of the new.
fn only(new: &mut Object, old: &Object, path: &[&str]) {
    let value = new.at(path).cloned();
    let revision = new.resource_version().to_owned();
    let managed = new.managed_fields().to_vec();
    *new = old.clone();
    match value {
        Some(value) => new.set(path, value),
        None => drop(new.remove(path)),
    }
    if !revision.is_empty() {
        new.metadata_mut().insert("resourceVersion".into(), revision.into());
    }
    if !managed.is_empty() {
        new.set_managed_fields(managed);
    }
}

/// The old pod with the new containers' resources and resize policies.
fn resize(new: &mut Object, old: &Object) {
    let sent = new.clone();
    *new = old.clone();
    if !sent.resource_version().is_empty() {
        let revision = sent.resource_version().to_owned();
        new.metadata_mut().insert("resourceVersion".into(), revision.into());
    }
    let spec = map_entry(new.as_map_mut(), "spec");
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let wanted = sent.list_at(&["spec", list]).iter().find(|one| one.get("name") == container.get("name"));
            copy_keys(container, wanted, &["resources", "resizePolicy"]);
        }
    }
}

fn copy_keys(target: &mut Map<String, Value>, source: Option<&Value>, keys: &[&str]) {
    let Some(source) = source else { return };
    for key in keys {
        match source.get(*key) {
            Some(value) => target.insert((*key).into(), value.clone()),
            None => target.remove(*key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    #[test]
    fn an_approval_sets_conditions_and_metadata_alone() {
        let row = row("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
        let old = object(json!({"metadata": {"name": "r"}, "spec": {"request": "x"}, "status": {"certificate": "c"}}));
        let mut new =
            object(json!({"metadata": {"name": "r", "annotations": {"why": "asked"}}, "spec": {"request": "y"},
            "status": {"certificate": "d", "conditions": [{"type": "Approved"}]}}));
        prepare_update(row, "approval", &mut new, &old);
        let expect = json!({"metadata": {"name": "r", "annotations": {"why": "asked"}}, "spec": {"request": "x"},
            "status": {"certificate": "c", "conditions": [{"type": "Approved"}]}});
        assert_eq!(new.into_value(), expect);
    }

    #[test]
    fn a_create_sets_no_status_and_starts_at_generation_one() {
        let mut deployment = object(json!({"metadata": {"name": "d"}, "spec": {}, "status": {"replicas": 9}}));
        prepare_create(row("apps", "v1", "deployments").unwrap(), &mut deployment);
        assert_eq!((deployment.get("status"), deployment.generation()), (None, 1));
        let mut pod = object(json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}}));
        prepare_create(row("", "v1", "pods").unwrap(), &mut pod);
        assert_eq!(pod.get("status"), Some(&json!({"phase": "Pending", "qosClass": "BestEffort"})));
        let mut job = object(json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}}));
        prepare_create(row("batch", "v1", "jobs").unwrap(), &mut job);
        assert_eq!(job.str_at(&["spec", "selector", "matchLabels", "batch.kubernetes.io/controller-uid"]), Some("u"));
        assert_eq!(job.str_at(&["spec", "template", "metadata", "labels", "job-name"]), Some("j"));
    }

    #[test]
    fn each_door_changes_only_its_part() {
        let row = row("apps", "v1", "deployments").unwrap();
        let old = object(json!({"metadata": {"name": "d", "uid": "u", "generation": 3}, "spec": {"replicas": 1},
            "status": {"replicas": 1}}));
        let changed = json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"replicas": 2}, "status": {"replicas": 2}});
        let mut main = object(changed.clone());
        prepare_update(row, "", &mut main, &old);
        assert_eq!((main.i64_at(&["spec", "replicas"]), main.i64_at(&["status", "replicas"])), (Some(2), Some(1)));
        assert_eq!((main.generation(), main.uid(), main.label("a")), (4, "u", Some("b")));
        let mut status = object(changed);
        prepare_update(row, "status", &mut status, &old);
        assert_eq!((status.i64_at(&["spec", "replicas"]), status.i64_at(&["status", "replicas"])), (Some(1), Some(2)));
        assert_eq!((status.generation(), status.label("a")), (3, None));
    }

    #[test]
    fn a_binding_is_no_new_generation() {
        let row = row("", "v1", "pods").unwrap();
        let old = object(json!({"metadata": {"name": "p", "generation": 1}, "spec": {"containers": []}}));
        let mut bound = old.clone();
        bound.set(&["spec", "nodeName"], "n");
        prepare_update(row, "binding", &mut bound, &old);
        assert_eq!((bound.generation(), bound.str_at(&["spec", "nodeName"])), (1, Some("n")));
    }

    #[test]
    fn resize_touches_resources_alone() {
        let row = row("", "v1", "pods").unwrap();
        let old = object(json!({"spec": {"containers": [{"name": "c", "image": "a", "resources": {}}]}}));
        let mut new = object(json!({"spec": {"containers": [{"name": "c", "image": "b",
            "resources": {"limits": {"cpu": "1"}}}], "nodeName": "x"}}));
        prepare_update(row, "resize", &mut new, &old);
        let spec = json!({"containers": [{"name": "c", "image": "a", "resources": {"limits": {"cpu": "1"}}}]});
        assert_eq!(new.get("spec"), Some(&spec));
        assert_eq!(new.generation(), 2);
    }
}
