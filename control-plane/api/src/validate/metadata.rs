//! Names, labels, annotations, owners, finalizers and managed fields of every kind.

use serde_json::{Value, json};

use super::field::{Field, Syntax};
use super::{Causes, IMMUTABLE, syntax};
use crate::{Cause, Object, Row, name};

const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// What a writer of fields may be called.
const MANAGER_BYTES_MAX: usize = 128;
const SUBRESOURCE_BYTES_MAX: usize = 256;
/// Kinds that can own nothing: they are gone before what they would own.
const BANNED_OWNERS: &[(&str, &str)] = &[("v1", "Event"), ("events.k8s.io/v1", "Event")];

/// The syntax of the names of a kind.
pub(super) fn name_syntax(row: &Row) -> Syntax {
    match (row.group, row.kind) {
        ("", "Service") => name::dns1035_label,
        ("", "Namespace") => name::dns1123_label,
        ("rbac.authorization.k8s.io", _) => name::path_segment,
        // An address is its own name, in IPv6 too.
        ("networking.k8s.io", "IPAddress") => |text| match text.parse::<std::net::IpAddr>() {
            Ok(_) => Vec::new(),
            Err(_) => name::dns1123_subdomain(text),
        },
        // Pods of an indexed job, and jobs of a cron job, carry the name as a part of theirs.
        ("batch", "CronJob") => |text| match text.len() {
            0..=52 => name::dns1123_subdomain(text),
            _ => vec!["must be no more than 52 characters".into()],
        },
        _ => name::dns1123_subdomain,
    }
}

pub(super) fn check(row: &Row, object: &Object, causes: &mut Causes) {
    if row.is_ephemeral() {
        return;
    }
    let metadata = Field::top(object, "metadata");
    let of_kind = name_syntax(row);
    let base = metadata.key("generateName");
    if !base.text().is_empty() {
        for fault in syntax::base(of_kind, base.text()) {
            base.invalid(&fault, causes);
        }
    }
    if object.name().is_empty() {
        metadata.key("name").required("name or generateName is required", causes);
    } else {
        metadata.key("name").must_be(of_kind, causes);
    }
    let namespace = metadata.key("namespace");
    match (row.namespaced, namespace.text()) {
        (true, "") => namespace.required("", causes),
        (true, _) => namespace.must_be(name::dns1123_label, causes),
        (false, "") => {}
        (false, _) => namespace.forbidden("not allowed on this type", causes),
    }
    metadata.key("generation").not_negative(causes);
    labels(&metadata.key("labels"), causes);
    annotations(&metadata.key("annotations"), causes);
    owners(&metadata.key("ownerReferences"), causes);
    finalizers(&metadata.key("finalizers"), causes);
    managed_fields(&metadata.key("managedFields"), causes);
}

/// A map of labels: keys are qualified names, values label values.
pub(super) fn labels(labels: &Field<'_, '_>, causes: &mut Causes) {
    for (key, value) in labels.entries() {
        for fault in name::qualified(key) {
            labels.invalid_as(&key.into(), &fault, causes);
        }
        for fault in name::label_value(value.text()) {
            labels.invalid_as(&value.text().into(), &fault, causes);
        }
    }
}

/// A map of annotations: keys are qualified names in any case, and all of it has an end.
pub(super) fn annotations(annotations: &Field<'_, '_>, causes: &mut Causes) {
    let mut bytes: usize = 0;
    for (key, value) in annotations.entries() {
        for fault in syntax::qualified_any_case(key) {
            annotations.invalid_as(&key.into(), &fault, causes);
        }
        bytes = bytes.saturating_add(key.len()).saturating_add(value.text().len());
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        annotations.too_long(ANNOTATIONS_BYTES_MAX, causes);
    }
}

fn owners(owners: &Field<'_, '_>, causes: &mut Causes) {
    let mut controller = None;
    for owner in owners.items() {
        // Upstream names no index here.
        for (key, what) in [("apiVersion", "version"), ("kind", ""), ("name", ""), ("uid", "")] {
            let field = owners.named(key);
            let empty = owner.key(key).text().is_empty();
            let what = if what.is_empty() { key } else { what };
            if empty {
                field.invalid_as(&"".into(), &format!("{what} must not be empty"), causes);
            }
        }
        let own = (owner.key("apiVersion").text(), owner.key("kind").text());
        if BANNED_OWNERS.contains(&own) {
            let detail = format!("{}, Kind={} is disallowed from being an owner", own.0, own.1);
            owners.invalid_as(owner.value, &detail, causes);
        }
        if owner.key("controller").is_true() {
            let named = owner.key("name").text();
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {named}"
                );
                owners.invalid(&detail, causes);
            }
            controller = controller.or(Some(named));
        }
    }
}

fn finalizers(finalizers: &Field<'_, '_>, causes: &mut Causes) {
    for finalizer in finalizers.items() {
        let text = finalizer.text();
        let faults = name::qualified(text);
        for fault in &faults {
            finalizers.invalid_as(&text.into(), fault, causes);
        }
        if faults.is_empty() {
            standard_finalizer(&finalizer, causes);
        }
    }
    let has = |name: &str| finalizers.list().iter().any(|one| one == name);
    if has("orphan") && has("foregroundDeletion") {
        finalizers.invalid("finalizer orphan and foregroundDeletion cannot be both set", causes);
    }
}

/// A finalizer without a domain is one of upstream's own.
pub(super) fn standard_finalizer(finalizer: &Field<'_, '_>, causes: &mut Causes) {
    let text = finalizer.text();
    if !text.contains('/') && !["foregroundDeletion", "orphan", "kubernetes"].contains(&text) {
        finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified", causes);
    }
}

fn managed_fields(entries: &Field<'_, '_>, causes: &mut Causes) {
    for entry in entries.items() {
        let operation = entry.key("operation");
        if !["Apply", "Update"].contains(&operation.text()) {
            operation.invalid_as(&operation.text().into(), "must be `Apply` or `Update`", causes);
        }
        let kind = entry.key("fieldsType");
        if !["", "FieldsV1"].contains(&kind.text()) {
            kind.invalid("must be `FieldsV1`", causes);
        }
        let manager = entry.key("manager");
        if manager.text().len() > MANAGER_BYTES_MAX {
            manager.too_long(MANAGER_BYTES_MAX, causes);
        }
        if manager.text().chars().any(char::is_control) {
            manager.invalid("should only contain printable characters", causes);
        }
        let subresource = entry.key("subresource");
        if subresource.text().len() > SUBRESOURCE_BYTES_MAX {
            subresource.too_long(SUBRESOURCE_BYTES_MAX, causes);
        }
    }
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let value = |object: &Object| object.metadata().and_then(|meta| meta.get(key)).cloned().unwrap_or_default();
        let (now, before) = (value(new), value(old));
        if now != before {
            causes.push(Cause::invalid(format!("metadata.{key}"), &now, IMMUTABLE));
        }
    }
    if new.generation() < old.generation() {
        causes.push(Cause::invalid("metadata.generation", &new.generation().into(), "must not be decremented"));
    }
    if old.is_deleting() {
        let before = old.finalizers();
        let added: Vec<&str> = new.finalizers().into_iter().filter(|one| !before.contains(one)).collect();
        if !added.is_empty() {
            let listed: Vec<String> = added.iter().map(|one| json!(one).to_string()).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                listed.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
}

/// A kind's own metadata inside another's spec: a template's.
pub(super) fn check_template(template: &Field<'_, '_>, causes: &mut Causes) {
    let metadata = template.key("metadata");
    // Upstream's templates have their metadata inline, and its paths say so.
    labels(&template.place("labels", metadata.key("labels").value), causes);
    annotations(&template.place("annotations", metadata.key("annotations").value), causes);
}

/// Whether a value says nothing.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
