//! Names, labels, annotations, owners and finalizers of every kind.

use serde_json::Value;

use super::{Causes, IMMUTABLE, refuse};
use crate::{Cause, Object, Row, name};

const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

fn name_faults(row: &Row, text: &str) -> Vec<String> {
    match (row.group, row.kind) {
        ("", "Service") => name::dns1035_label(text),
        ("", "Namespace") => name::dns1123_label(text),
        ("rbac.authorization.k8s.io", _) => name::path_segment(text),
        ("batch", "CronJob") if text.len() > 52 => vec!["must be no more than 52 characters".into()],
        // An address is its own name, in IPv6 too.
        ("networking.k8s.io", "IPAddress") if text.parse::<std::net::IpAddr>().is_ok() => Vec::new(),
        _ => name::dns1123_subdomain(text),
    }
}

pub(super) fn check(row: &Row, object: &Object, causes: &mut Causes) {
    if row.is_ephemeral() {
        return;
    }
    if object.name().is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        refuse("metadata.name", object.name(), name_faults(row, object.name()), causes);
    }
    match (row.namespaced, object.namespace()) {
        (true, "") => causes.push(Cause::required("metadata.namespace", "")),
        (true, namespace) => refuse("metadata.namespace", namespace, name::dns1123_label(namespace), causes),
        (false, "") => {}
        (false, _) => causes.push(Cause::forbidden("metadata.namespace", "not allowed on this type")),
    }
    let metadata = object.metadata();
    labels(metadata.and_then(|meta| meta.get("labels")), "metadata.labels", causes);
    annotations(metadata.and_then(|meta| meta.get("annotations")), causes);
    owners(object.list_at(&["metadata", "ownerReferences"]), causes);
    for finalizer in object.finalizers() {
        finalizer_name(finalizer, causes);
    }
}

/// A map of labels: keys are qualified names, values label values.
pub(super) fn labels(labels: Option<&Value>, path: &str, causes: &mut Causes) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        refuse(path, key, name::qualified(key), causes);
        let value = value.as_str().unwrap_or_default();
        refuse(path, value, name::label_value(value), causes);
    }
}

fn annotations(annotations: Option<&Value>, causes: &mut Causes) {
    let mut bytes = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        refuse("metadata.annotations", key, name::qualified(&key.to_lowercase()), causes);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
}

fn owners(owners: &[Value], causes: &mut Causes) {
    const PATH: &str = "metadata.ownerReferences";
    for owner in owners {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if super::text(owner, key).is_empty() {
                let detail = format!("{key} must not be empty");
                causes.push(Cause::invalid(format!("{PATH}.{key}"), &owner[key], &detail));
            }
        }
    }
    let controllers = owners.iter().filter(|owner| owner["controller"].as_bool() == Some(true));
    if controllers.count() > 1 {
        let detail =
            "Only one reference can have Controller set to true. Found \"true\" in references for several owners";
        causes.push(Cause::invalid(PATH, &Value::from(owners.to_vec()), detail));
    }
}

fn finalizer_name(finalizer: &str, causes: &mut Causes) {
    const PATH: &str = "metadata.finalizers";
    let faults = name::qualified(finalizer);
    if !faults.is_empty() {
        refuse(PATH, finalizer, faults, causes);
    } else if !finalizer.contains('/') && !["foregroundDeletion", "orphan", "kubernetes"].contains(&finalizer) {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        causes.push(Cause::invalid_str(PATH, finalizer, detail));
    }
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let value = |object: &Object| object.metadata().and_then(|meta| meta.get(key)).cloned().unwrap_or_default();
        let (now, before) = (value(new), value(old));
        if now != before {
            causes.push(Cause::invalid(format!("metadata.{key}"), &now, IMMUTABLE));
        }
    }
    if old.is_deleting() {
        let before = old.finalizers();
        let added: Vec<String> =
            new.finalizers().into_iter().filter(|one| !before.contains(one)).map(|one| format!("{one:?}")).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
}
