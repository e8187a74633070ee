//! The fields of each kind that a field selector may name.
//!
//! Invariant: `metadata.name` works everywhere, `metadata.namespace` wherever there is one.

use serde_json::Value;

use crate::selector::FieldSelector;
use crate::{Object, Row};

const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
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
];
const NEW_EVENT: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

/// What beyond the metadata may be selected.
fn selectable(row: &Row) -> &'static [&'static str] {
    match (row.group, row.kind) {
        ("", "Pod") => POD,
        ("", "Event") => EVENT,
        ("events.k8s.io", "Event") => NEW_EVENT,
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", _) => &["spec.signerName"],
        _ => &[],
    }
}

/// Whether the row's objects can be selected by `path`.
pub fn is_selectable(row: &Row, path: &str) -> bool {
    path == "metadata.name" || (path == "metadata.namespace" && row.namespaced) || selectable(row).contains(&path)
}

/// The first path of the selector that the row does not know, in the words of upstream's refusal.
pub fn check(row: &Row, selector: &FieldSelector) -> Result<(), String> {
    match selector.requirements().iter().find(|one| !is_selectable(row, &one.path)) {
        Some(one) => Err(format!("field label not supported: {}", one.path)),
        None => Ok(()),
    }
}

/// The value of a selectable field as text; empty when absent.
pub fn value(row: &Row, object: &Object, path: &str) -> String {
    let path = match (row.kind, path) {
        ("Job", "status.successful") => "status.succeeded",
        ("Event", "source") => "source.component",
        (_, path) => path,
    };
    let keys: Vec<&str> = path.split('.').collect();
    match object.at(&keys) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => match path {
            "spec.unschedulable" | "spec.hostNetwork" => "false".into(),
            "status.replicas" | "status.succeeded" => "0".into(),
            _ => String::new(),
        },
        Some(other) => other.to_string(),
    }
}

/// Whether the object passes the selector.
pub fn matches(row: &Row, selector: &FieldSelector, object: &Object) -> bool {
    selector.matches(|path| value(row, object, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row;
    use serde_json::json;

    #[test]
    fn selects_by_the_kinds_own_fields() {
        let pods = row("", "v1", "pods").unwrap();
        let pod = Object::from_value(json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}})).unwrap();
        let passes = |text: &str| matches(pods, &FieldSelector::parse(text).unwrap(), &pod);
        assert!(passes("status.phase=Running,metadata.name=a,spec.hostNetwork=false"));
        assert!(passes("spec.nodeName="));
        assert!(!passes("spec.nodeName!="));
        let odd = FieldSelector::parse("spec.foo=1").unwrap();
        assert_eq!(check(pods, &odd).unwrap_err(), "field label not supported: spec.foo");
        let nodes = row("", "v1", "nodes").unwrap();
        assert!(!is_selectable(nodes, "metadata.namespace"));
    }
}
