//! What is wrong with an object: causes with field paths, in upstream's words.
//!
//! Runs on objects that have their defaults. Invariant: an object that upstream stores passes; one that was stored passes
//! an update that changes nothing.

mod affinity;
mod config;
mod container;
mod metadata;
mod network;
mod pod;
mod policy;
mod required;
mod resources;
mod storage;
mod volume;
mod workload;

use serde_json::Value;

use crate::schema;
use crate::{Cause, Object, Row};

/// What is found; in the order of the fields.
type Causes = Vec<Cause>;

/// The faults of a new object. Its name, uid and defaults are set.
pub fn create(row: &Row, object: &Object) -> Causes {
    let mut causes = Causes::new();
    metadata::check(row, object, &mut causes);
    body(row, object, None, &mut causes);
    if (row.group, row.kind) == ("", "Pod") && !object.list_at(&["spec", "ephemeralContainers"]).is_empty() {
        causes.push(Cause::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    causes
}

/// The faults of an update through `subresource` (empty: the object itself).
pub fn update(row: &Row, subresource: &str, new: &Object, old: &Object) -> Causes {
    let mut causes = Causes::new();
    metadata::check(row, new, &mut causes);
    metadata::check_update(new, old, &mut causes);
    // A status is written by controllers, and its parts are not judged here.
    if subresource == "status" || subresource == "approval" || subresource == "finalize" {
        return causes;
    }
    // What is going away may lose its finalizers whatever else has become wrong with it since.
    let body_changed = new.get("spec") != old.get("spec") || new.get("spec").is_none();
    if body_changed {
        body(row, new, Some(old), &mut causes);
    }
    match (row.group, row.kind) {
        ("", "Pod") => pod::check_update(subresource, new, old, &mut causes),
        ("", "Service") => network::check_service_update(new, old, &mut causes),
        ("", "ConfigMap" | "Secret") => config::check_update(new, old, &mut causes),
        ("", "PersistentVolumeClaim") => storage::check_claim_update(new, old, &mut causes),
        ("apps" | "batch", _) => workload::check_update(row, new, old, &mut causes),
        ("rbac.authorization.k8s.io", _) | ("storage.k8s.io" | "scheduling.k8s.io", _) => {
            policy::check_update(row, new, old, &mut causes);
        }
        _ => {}
    }
    causes
}

fn body(row: &Row, object: &Object, old: Option<&Object>, causes: &mut Causes) {
    if let Some(of) = schema::find(&row.schema) {
        required::check(of, object, causes);
    }
    let spec = object.get("spec").unwrap_or(&Value::Null);
    match (row.group, row.kind) {
        ("", "Pod") => pod::check(spec, "spec", causes),
        ("", "PodTemplate") => pod::check(&object.to_value()["template"]["spec"], "template.spec", causes),
        ("", "Service") => network::check_service(spec, causes),
        ("", "Endpoints") => network::check_endpoints(object, causes),
        ("", "ConfigMap") => config::check_config_map(object, causes),
        ("", "Secret") => config::check_secret(object, causes),
        ("", "Node") => policy::check_node(spec, causes),
        ("", "ResourceQuota") => resources::check_amounts(&spec["hard"], "spec.hard", causes),
        ("", "LimitRange") => resources::check_limit_range(spec, causes),
        ("", "PersistentVolume") => storage::check_volume(spec, causes),
        ("", "PersistentVolumeClaim") => storage::check_claim(spec, "spec", causes),
        ("", "ReplicationController") | ("apps" | "batch", _) => workload::check(row, object, causes),
        ("autoscaling", _) => policy::check_autoscaler(spec, causes),
        ("policy", "PodDisruptionBudget") => policy::check_budget(spec, causes),
        ("networking.k8s.io", "Ingress") => network::check_ingress(spec, causes),
        ("networking.k8s.io", "NetworkPolicy") => network::check_policy(spec, causes),
        ("discovery.k8s.io", _) => network::check_endpoint_slice(object, causes),
        ("rbac.authorization.k8s.io", _) => policy::check_rbac(row, object, causes),
        ("scheduling.k8s.io", _) => policy::check_priority_class(object, old.is_none(), causes),
        _ => {}
    }
}

/// The text under `key`; empty when absent.
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The check of a name's syntax: what is wrong with the text.
type Syntax = fn(&str) -> Vec<String>;

/// Each fault of a text as an invalid value.
fn refuse(path: &str, value: &str, faults: impl IntoIterator<Item = String>, causes: &mut Causes) {
    causes.extend(faults.into_iter().map(|why| Cause::invalid_str(path, value, &why)));
}

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

/// The fields of `value` that must not be negative.
fn not_negative(value: &Value, path: &str, keys: &[&str], causes: &mut Causes) {
    for key in keys {
        if value.get(*key).and_then(Value::as_i64).is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(format!("{path}.{key}"), &value[*key], NOT_NEGATIVE));
        }
    }
}

/// The text under `key`, when there is one, must be one of `allowed`.
fn one_of(value: &Value, path: &str, key: &str, allowed: &[&str], causes: &mut Causes) {
    let given = text(value, key);
    if !given.is_empty() && !allowed.contains(&given) {
        causes.push(Cause::not_supported(format!("{path}.{key}"), &given.into(), allowed));
    }
}

fn unchanged(new: &Object, old: &Object, path: &[&str], causes: &mut Causes) {
    let (now, before) = (new.at(path).unwrap_or(&Value::Null), old.at(path).unwrap_or(&Value::Null));
    if now != before {
        causes.push(Cause::invalid(path.join("."), now, IMMUTABLE));
    }
}

#[cfg(test)]
mod tests;
