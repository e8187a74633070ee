//! Persistent volumes and claims.

use serde_json::Value;

use super::{Causes, items, one_of, resources};
use crate::{Cause, Object, Quantity};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Value, path: &str, causes: &mut Causes) {
    let modes = items(spec, "accessModes");
    let path = format!("{path}.accessModes");
    if modes.is_empty() {
        causes.push(Cause::required(&path, "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(&mode.as_str().unwrap_or_default())) {
        causes.push(Cause::not_supported(&path, mode, MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        causes.push(Cause::forbidden(path, detail));
    }
}

fn amount(value: &Value) -> Option<Quantity> {
    value.as_str().and_then(|text| Quantity::parse(text).ok())
}

pub(super) fn check_volume(spec: &Value, causes: &mut Causes) {
    const NO_SOURCE: &[&str] = &["capacity", "claimRef", "nodeAffinity"];
    access_modes(spec, "spec", causes);
    resources::check_amounts(&spec["capacity"], "spec.capacity", causes);
    if spec["capacity"]["storage"].is_null() {
        causes.push(Cause::required("spec.capacity", ""));
    }
    let fields = spec.as_object().into_iter().flatten();
    let sources = fields.filter(|(key, value)| value.is_object() && !NO_SOURCE.contains(&key.as_str())).count();
    match sources {
        0 => causes.push(Cause::required("spec", "must specify a volume type")),
        1 => {}
        _ => causes.push(Cause::forbidden("spec", "may not specify more than 1 volume type")),
    }
    one_of(spec, "spec", "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], causes);
    one_of(spec, "spec", "volumeMode", &["Block", "Filesystem"], causes);
}

pub(super) fn check_claim(spec: &Value, path: &str, causes: &mut Causes) {
    access_modes(spec, path, causes);
    resources::check_amounts(&spec["resources"]["requests"], &format!("{path}.resources.requests"), causes);
    let field = format!("{path}.resources[storage]");
    match amount(&spec["resources"]["requests"]["storage"]) {
        None if spec["resources"]["requests"]["storage"].is_null() => causes.push(Cause::required(field, "")),
        Some(size) if size.is_zero() => {
            causes.push(Cause::invalid_str(field, &size.to_string(), "must be greater than zero"));
        }
        _ => {}
    }
    one_of(spec, path, "volumeMode", &["Block", "Filesystem"], causes);
}

pub(super) fn check_claim_update(new: &Object, old: &Object, causes: &mut Causes) {
    let fixed = |object: &Object, bound: bool| {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        if let Some(map) = spec.as_object_mut() {
            map.remove("volumeAttributesClassName");
            map.remove("resources");
            if !bound {
                map.remove("volumeName");
                map.remove("storageClassName");
            }
        }
        spec
    };
    let bound = old.str_at(&["spec", "volumeName"]).is_some_and(|name| !name.is_empty());
    if fixed(new, bound) != fixed(old, bound) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", detail));
    }
    let size = |object: &Object| object.at(&["spec", "resources", "requests", "storage"]).and_then(amount);
    if let (Some(now), Some(before)) = (size(new), size(old))
        && now < before
    {
        let detail = "field can not be less than previous value";
        causes.push(Cause::forbidden("spec.resources.requests.storage", detail));
    }
}
