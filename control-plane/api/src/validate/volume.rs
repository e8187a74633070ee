//! A pod's volumes: one source each, with sound paths and modes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::relative;
use super::{Causes, items, refuse, text};
use crate::{Cause, Quantity, name};

/// Judges the volumes, and returns their names.
pub(super) fn check(volumes: &[Value], path: &str, causes: &mut Causes) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let given = text(volume, "name");
        if !given.is_empty() {
            refuse(&format!("{path}.name"), given, name::dns1123_label(given), causes);
            if !names.insert(given.to_owned()) {
                causes.push(Cause::duplicate(format!("{path}.name"), &given.into()));
            }
        }
        let sources =
            volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && value.is_object());
        for (count, (kind, source)) in sources.enumerate() {
            let path = format!("{path}.{kind}");
            if count > 0 {
                causes.push(Cause::forbidden(path, "may not specify more than 1 volume type"));
                continue;
            }
            check_source(kind, source, &path, causes);
        }
    }
    names
}

fn check_source(kind: &str, source: &Value, path: &str, causes: &mut Causes) {
    mode(&source["defaultMode"], &format!("{path}.defaultMode"), causes);
    check_items(source, path, causes);
    match kind {
        "secret" if text(source, "secretName").is_empty() => {
            causes.push(Cause::required(format!("{path}.secretName"), ""));
        }
        "configMap" if text(source, "name").is_empty() => causes.push(Cause::required(format!("{path}.name"), "")),
        "emptyDir" => {
            let negative = source["sizeLimit"].as_str().and_then(|text| Quantity::parse(text).ok());
            if negative.is_some_and(Quantity::is_negative) {
                let detail = "SizeLimit field must be a valid resource quantity";
                causes.push(Cause::forbidden(format!("{path}.sizeLimit"), detail));
            }
        }
        "hostPath" if text(source, "path").split('/').any(|part| part == "..") => {
            causes.push(Cause::invalid_str(format!("{path}.path"), text(source, "path"), "must not contain '..'"));
        }
        "projected" => {
            for (index, one) in items(source, "sources").iter().enumerate() {
                let path = format!("{path}.sources[{index}]");
                for (kind, inner) in one.as_object().into_iter().flatten() {
                    check_items(inner, &format!("{path}.{kind}"), causes);
                    if matches!(kind.as_str(), "secret" | "configMap") && text(inner, "name").is_empty() {
                        causes.push(Cause::required(format!("{path}.{kind}.name"), ""));
                    }
                }
                let token = &one["serviceAccountToken"]["expirationSeconds"];
                if token.as_i64().is_some_and(|seconds| seconds < 600) {
                    let field = format!("{path}.serviceAccountToken.expirationSeconds");
                    causes.push(Cause::invalid(field, token, "may not specify a duration less than 10 minutes"));
                }
            }
        }
        _ => {}
    }
}

fn check_items(source: &Value, path: &str, causes: &mut Causes) {
    for (index, item) in items(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        relative(text(item, "path"), &format!("{path}.path"), causes);
        mode(&item["mode"], &format!("{path}.mode"), causes);
    }
}

fn mode(value: &Value, path: &str, causes: &mut Causes) {
    if value.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        causes.push(Cause::invalid(path, value, detail));
    }
}
