//! The fields of each resource that a field selector may name, beside `metadata.name` and `metadata.namespace`.
//!
//! Invariant: a selector that names another field is refused, never ignored.

use control_plane_api::{Object, Row, Status, selector::FieldSelector};
use serde_json::Value;

use crate::status::Outcome;

/// The selectable fields of a row.
pub(crate) fn of(row: &Row) -> &'static [&'static str] {
    match (row.storage.group, row.resource) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        _ => &[],
    }
}

/// events.k8s.io names some fields differently than the stored core event.
fn alias<'a>(row: &Row, path: &'a str) -> &'a str {
    if row.group != "events.k8s.io" {
        return path;
    }
    match path {
        "regarding.kind" => "involvedObject.kind",
        "regarding.namespace" => "involvedObject.namespace",
        "regarding.name" => "involvedObject.name",
        "regarding.uid" => "involvedObject.uid",
        "regarding.apiVersion" => "involvedObject.apiVersion",
        "regarding.resourceVersion" => "involvedObject.resourceVersion",
        "regarding.fieldPath" => "involvedObject.fieldPath",
        "reportingController" => "reportingComponent",
        other => other,
    }
}

/// The value of a selectable field, as selectors compare it.
pub(crate) fn value(object: &Object, field: &str) -> String {
    let path: Vec<&str> = match field {
        "source" => vec!["source", "component"],
        "status.successful" => vec!["status", "succeeded"],
        field => field.split('.').collect(),
    };
    match (field, object.at(&path)) {
        ("reportingComponent", found) => {
            let found = found.and_then(Value::as_str).filter(|text| !text.is_empty());
            found.or_else(|| object.str_at(&["source", "component"])).unwrap_or("").to_owned()
        }
        ("source", found) => {
            let found = found.and_then(Value::as_str).filter(|text| !text.is_empty());
            found.or_else(|| object.str_at(&["reportingComponent"])).unwrap_or("").to_owned()
        }
        ("spec.unschedulable" | "spec.hostNetwork", found) => {
            found.and_then(Value::as_bool).unwrap_or(false).to_string()
        }
        ("status.replicas" | "status.successful", found) => found.and_then(Value::as_i64).unwrap_or(0).to_string(),
        ("status.podIPs", Some(Value::Array(list))) => {
            let addresses = list.iter().filter_map(|one| one.get("ip").and_then(Value::as_str));
            addresses.collect::<Vec<_>>().join(",")
        }
        (_, Some(Value::String(text))) => text.clone(),
        (_, Some(Value::Bool(flag))) => flag.to_string(),
        (_, Some(Value::Number(number))) => number.to_string(),
        _ => String::new(),
    }
}

/// Parses a field selector and refuses fields that this row does not offer.
pub(crate) fn parse(row: &Row, text: &str) -> Outcome<FieldSelector> {
    let terms: Vec<String> = FieldSelector::parse(text)
        .map_err(|error| Status::bad_request(format!("unable to parse the field selector: {error}")))?
        .requirements()
        .iter()
        .map(|term| {
            let path = alias(row, &term.path);
            let known =
                path == "metadata.name" || (path == "metadata.namespace" && row.namespaced) || of(row).contains(&path);
            if !known {
                return Err(Box::new(Status::bad_request(format!("field label not supported: {}", term.path))));
            }
            Ok(format!("{path}{}{}", if term.equal { "=" } else { "!=" }, escape(&term.value)))
        })
        .collect::<Result<_, Box<Status>>>()
        .map_err(crate::status::Failure)?;
    Ok(FieldSelector::parse(&terms.join(","))
        .map_err(|error| Status::bad_request(format!("unable to parse the field selector: {error}")))?)
}

/// The selector with one requirement more: exactly this name.
pub(crate) fn with_name(selector: &FieldSelector, name: &str) -> Outcome<FieldSelector> {
    let comma = if selector.is_empty() { "" } else { "," };
    Ok(FieldSelector::parse(&format!("{selector}{comma}metadata.name={}", escape(name)))
        .map_err(|error| Status::bad_request(format!("unable to select the name {name:?}: {error}")))?)
}

/// One requirement as a field selector writes it.
pub(crate) fn term(path: &str, value: &str) -> String {
    format!("{path}={}", escape(value))
}

/// A value as a field selector writes it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}
