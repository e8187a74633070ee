//! ConfigMaps and Secrets: keys, sizes, and what each type of Secret must hold.

use serde_json::Value;

use super::{Causes, refuse, unchanged};
use crate::schema::normal::decode_base64;
use crate::{Cause, Object, name};

const BYTES_MAX: usize = 1024 * 1024;

pub(super) fn check_config_map(object: &Object, causes: &mut Causes) {
    let mut bytes = 0;
    for list in ["data", "binaryData"] {
        for (key, value) in object.get(list).and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{list}[{key}]");
            refuse(&path, key, name::config_key(key), causes);
            if list == "data" && object.at(&["binaryData", key]).is_some() {
                causes.push(Cause::invalid_str(path, key, "duplicate of key present in binaryData"));
            }
            let text = value.as_str().unwrap_or_default();
            bytes += if list == "data" { text.len() } else { text.len() / 4 * 3 };
        }
    }
    if bytes > BYTES_MAX {
        causes.push(Cause::too_long("", BYTES_MAX));
    }
}

pub(super) fn check_secret(object: &Object, causes: &mut Causes) {
    let mut bytes = 0;
    for (key, value) in object.get("data").and_then(Value::as_object).into_iter().flatten() {
        refuse(&format!("data[{key}]"), key, name::config_key(key), causes);
        bytes += value.as_str().map_or(0, |text| text.len() / 4 * 3);
    }
    if bytes > BYTES_MAX {
        causes.push(Cause::too_long("data", BYTES_MAX));
    }
    let has = |key: &str| object.at(&["data", key]).is_some() || object.at(&["stringData", key]).is_some();
    let mut needs = |key: &str| {
        if !has(key) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    };
    match object.str_at(&["type"]).unwrap_or_default() {
        "kubernetes.io/tls" => {
            needs("tls.crt");
            needs("tls.key");
        }
        "kubernetes.io/ssh-auth" => needs("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            needs("username");
            needs("password");
        }
        "kubernetes.io/dockerconfigjson" => docker_config(object, ".dockerconfigjson", causes),
        "kubernetes.io/dockercfg" => docker_config(object, ".dockercfg", causes),
        "kubernetes.io/service-account-token"
            if object.annotation("kubernetes.io/service-account.name").unwrap_or_default().is_empty() =>
        {
            causes.push(Cause::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        _ => {}
    }
}

fn docker_config(object: &Object, key: &str, causes: &mut Causes) {
    let path = format!("data[{key}]");
    let Some(encoded) = object.str_at(&["data", key]) else {
        causes.push(Cause::required(path, ""));
        return;
    };
    let decoded = decode_base64(encoded).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
        causes.push(Cause::invalid_str(path, "<secret contents redacted>", &error.to_string()));
    }
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    if new.kind() == "Secret" || old.kind() == "Secret" {
        unchanged(new, old, &["type"], causes);
    }
    if old.bool_at(&["immutable"]) != Some(true) {
        return;
    }
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if new.bool_at(&["immutable"]) != Some(true) {
        causes.push(Cause::forbidden("immutable", DETAIL));
    }
    for key in ["data", "binaryData"] {
        if new.get(key) != old.get(key) {
            causes.push(Cause::forbidden(key, DETAIL));
        }
    }
}
