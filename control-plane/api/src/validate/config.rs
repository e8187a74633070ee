//! ConfigMaps and Secrets: keys, sizes, and what each type of Secret must hold.

use serde_json::Value;

use super::field::Field;
use super::{Causes, unchanged};
use crate::schema::normal::decode_base64;
use crate::{Cause, Object, name};

const BYTES_MAX: usize = 1024 * 1024;
const ACCOUNT: &str = "kubernetes.io/service-account.name";

/// Bytes that a text in base64 stands for.
fn decoded_bytes(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4).saturating_mul(3).saturating_sub(padding)
}

fn check_keys(data: &Field<'_, '_>, causes: &mut Causes) {
    for (key, value) in data.entries() {
        for fault in name::config_key(key) {
            value.invalid_as(&key.into(), &fault, causes);
        }
    }
}

pub(super) fn check_config_map(object: &Object, causes: &mut Causes) {
    let (data, binary) = (Field::top(object, "data"), Field::top(object, "binaryData"));
    check_keys(&data, causes);
    check_keys(&binary, causes);
    let mut bytes: usize = 0;
    for (key, value) in data.entries() {
        if binary.entry(key).is_set() {
            value.invalid_as(&key.into(), "duplicate of key present in binaryData", causes);
        }
        bytes = bytes.saturating_add(value.text().len());
    }
    for (_, value) in binary.entries() {
        bytes = bytes.saturating_add(decoded_bytes(value.text()));
    }
    if bytes > BYTES_MAX {
        // The object as a whole.
        causes.push(Cause::too_long("", BYTES_MAX));
    }
}

pub(super) fn check_secret(object: &Object, causes: &mut Causes) {
    let data = Field::top(object, "data");
    check_keys(&data, causes);
    let bytes = data.entries().fold(0_usize, |sum, (_, value)| sum.saturating_add(decoded_bytes(value.text())));
    if bytes > BYTES_MAX {
        data.too_long(BYTES_MAX, causes);
    }
    let has = |key: &str| data.entry(key).is_set();
    match object.str_at(&["type"]).unwrap_or_default() {
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)) {
                data.entry(key).required("", causes);
            }
        }
        "kubernetes.io/ssh-auth" if data.entry("ssh-privatekey").text().is_empty() => {
            data.entry("ssh-privatekey").required("", causes);
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            data.entry("username").required("", causes);
            data.entry("password").required("", causes);
        }
        "kubernetes.io/dockerconfigjson" => docker_config(&data.entry(".dockerconfigjson"), causes),
        "kubernetes.io/dockercfg" => docker_config(&data.entry(".dockercfg"), causes),
        "kubernetes.io/service-account-token" if object.annotation(ACCOUNT).unwrap_or_default().is_empty() => {
            causes.push(Cause::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
        }
        _ => {}
    }
}

fn docker_config(value: &Field<'_, '_>, causes: &mut Causes) {
    if !value.is_set() {
        value.required("", causes);
        return;
    }
    let decoded = decode_base64(value.text()).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
        value.invalid_as(&"<secret contents redacted>".into(), &error.to_string(), causes);
    }
}

pub(super) fn check_secret_update(new: &Object, old: &Object, causes: &mut Causes) {
    unchanged(new, old, &["type"], causes);
    check_update(new, old, causes);
}

/// What is marked as immutable stays, and stays marked.
pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if old.bool_at(&["immutable"]) != Some(true) {
        return;
    }
    if new.bool_at(&["immutable"]) != Some(true) {
        causes.push(Cause::forbidden("immutable", DETAIL));
    }
    for key in ["data", "binaryData"] {
        if new.get(key) != old.get(key) {
            causes.push(Cause::forbidden(key, DETAIL));
        }
    }
}
