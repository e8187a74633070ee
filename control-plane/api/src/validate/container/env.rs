//! Where a container's environment comes from.

use crate::validate::field::Field;
use crate::validate::{Causes, path, syntax};
use crate::{Cause, name};

use super::Context;

/// What a variable may take from its pod.
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What a file of a downward volume may hold of its pod.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SOURCES: &[&str] = &["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"];
const BYTES_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn check(container: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    for variable in container.key("env").items() {
        variable.key("name").may_be(name::env_name, causes);
        check_source(&variable, context, causes);
    }
    let list = container.key("envFrom");
    for from in list.items() {
        from.key("prefix").may_be(name::env_name, causes);
        let mut count = 0_usize;
        for source in ["configMapRef", "secretRef"] {
            let reference = from.key(source);
            if reference.is_set() {
                count += 1;
                required_name(&reference, causes);
            }
        }
        let detail = match count {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        list.invalid_as(&"".into(), detail, causes);
    }
}

fn required_name(reference: &Field<'_, '_>, causes: &mut Causes) {
    let given = reference.key("name");
    if given.text().is_empty() {
        given.required("", causes);
    } else {
        for fault in syntax::base(name::dns1123_subdomain, given.text()) {
            given.invalid(&fault, causes);
        }
    }
}

fn check_source(variable: &Field<'_, '_>, context: &Context<'_>, causes: &mut Causes) {
    let from = variable.key("valueFrom");
    if !from.is_set() {
        return;
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        let reference = from.key(source);
        if reference.is_set() {
            reference.key("name").must_be(name::dns1123_subdomain, causes);
            reference.key("key").may_be(name::config_key, causes);
        }
    }
    if from.key("fieldRef").is_set() {
        check_field(&from.key("fieldRef"), FIELDS, causes);
    }
    if from.key("resourceFieldRef").is_set() {
        check_resource(&from.key("resourceFieldRef"), causes);
    }
    let file = from.key("fileKeyRef");
    if file.is_set() {
        file.key("key").may_be(name::env_name, causes);
        let given = file.key("path");
        path::descending(&given, given.text(), causes);
        let volume = file.key("volumeName");
        if !volume.text().is_empty() && context.volumes.get(volume.text()) != Some(&"emptyDir") {
            volume.not_found(causes);
        }
    }
    let detail = match SOURCES.iter().filter(|source| from.key(source).is_set()).count() {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if !variable.key("value").text().is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    from.invalid_as(&"".into(), detail, causes);
}

/// A field of a file of a downward volume.
pub(in crate::validate) fn check_file_field(reference: &Field<'_, '_>, causes: &mut Causes) {
    check_field(reference, FILE_FIELDS, causes);
}

fn check_field(reference: &Field<'_, '_>, known: &[&str], causes: &mut Causes) {
    let field = reference.key("fieldPath");
    let version = reference.key("apiVersion");
    if version.text().is_empty() {
        version.required("", causes);
        return;
    }
    if field.text().is_empty() {
        return;
    }
    if version.text() != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {}", version.text());
        field.invalid(&detail, causes);
        return;
    }
    let all = FIELDS.iter().chain(FILE_FIELDS).chain(&["spec.host"]);
    let subscripted = field.text().strip_suffix("']").and_then(|rest| rest.split_once("['"));
    let Some((path, key)) = subscripted else {
        if !all.clone().any(|one| *one == field.text()) {
            let detail = format!("error converting fieldPath: field label not supported: {}", field.text());
            field.invalid(&detail, causes);
        } else if !known.contains(&field.text()) {
            field.unsupported(known, causes);
        }
        return;
    };
    let faults = match path {
        "metadata.annotations" => syntax::qualified_any_case(key),
        "metadata.labels" => name::qualified(key),
        _ => {
            let detail = format!("error converting fieldPath: field label does not support subscript: {path}");
            field.invalid(&detail, causes);
            return;
        }
    };
    for fault in faults {
        reference.invalid_as(&key.into(), &fault, causes);
    }
}

fn check_resource(reference: &Field<'_, '_>, causes: &mut Causes) {
    let resource = reference.key("resource");
    let of_pages =
        ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.text().starts_with(prefix));
    if !resource.text().is_empty() && !RESOURCES.contains(&resource.text()) && !of_pages {
        resource.unsupported(RESOURCES, causes);
    }
    let divisor = reference.key("divisor");
    let Some(amount) = divisor.quantity().filter(|amount| !amount.is_zero()) else { return };
    let (known, what): (&[&str], &str) = match resource.text() {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (BYTES_DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (BYTES_DIVISORS, "local ephemeral storage"),
        _ if of_pages => (BYTES_DIVISORS, "hugepages"),
        _ => return,
    };
    if !known.contains(&amount.to_string().as_str()) {
        let listed = known.join(if known.len() == 2 { " and " } else { ", " });
        let detail = format!("only divisor's values {listed} are supported with the {what} resource");
        divisor.invalid_as(resource.value, &detail, causes);
    }
}

/// A resource of a container, in a file of a downward volume, which must name the container.
pub(in crate::validate) fn check_file_resource(reference: &Field<'_, '_>, causes: &mut Causes) {
    if reference.key("containerName").text().is_empty() {
        causes.push(Cause::required(reference.key("containerName").path(), ""));
        return;
    }
    check_resource(reference, causes);
}
