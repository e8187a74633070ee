//! Required fields of every type, by the table: texts, lists and what they lie in.
//!
//! Numbers are left to the kinds: zero and absence are one to upstream. A status is never judged.

use super::Causes;
use super::field::Field;
use crate::Object;
use crate::schema::{self, Kind, Type};

/// Fields that are required on paper and may be empty in practice, or that their kind judges with more words.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    ("CSINodeSpec", "drivers"),
    ("ClusterRole", "rules"),
    ("DeviceRequest", "exactly"),
    ("Endpoint", "addresses"),
    ("EndpointSlice", "endpoints"),
    ("HTTPHeader", "name"),
    ("HTTPHeader", "value"),
    ("HTTPIngressPath", "pathType"),
    ("LabelSelectorRequirement", "key"),
    ("LabelSelectorRequirement", "operator"),
    ("LimitRangeItem", "type"),
    ("LimitRangeSpec", "limits"),
    ("NodeSelector", "nodeSelectorTerms"),
    ("NodeSelectorRequirement", "key"),
    ("NodeSelectorRequirement", "operator"),
    ("PodAffinityTerm", "topologyKey"),
    ("PodReadinessGate", "conditionType"),
    ("PodSchedulingGate", "name"),
    ("Role", "rules"),
    ("ScopedResourceSelectorRequirement", "operator"),
    ("ScopedResourceSelectorRequirement", "scopeName"),
    ("Sysctl", "value"),
    ("Taint", "key"),
    ("TokenRequest", "audience"),
];

/// Types that upstream stores with their texts empty.
const LENIENT: &[&str] = &["ObjectReference", "Event", "EventSeries", "LocalObjectReference", "CSINodeDriver"];

pub(super) fn check(of: &'static Type, object: &Object, causes: &mut Causes) {
    for field in &of.fields {
        if ["metadata", "status", "apiVersion", "kind"].contains(&field.name) {
            continue;
        }
        check_field(of, field, &Field::top(object, field.name), causes);
    }
}

fn check_struct(of: &'static Type, value: &Field<'_, '_>, causes: &mut Causes) {
    if LENIENT.contains(&of.short_name()) {
        return;
    }
    for field in &of.fields {
        // Templates carry a status and metadata of their own that nobody requires.
        if ["metadata", "status"].contains(&field.name) {
            continue;
        }
        check_field(of, field, &value.key(field.name), causes);
    }
}

fn check_field(of: &'static Type, field: &schema::Field, value: &Field<'_, '_>, causes: &mut Causes) {
    let judged = field.required && !MAY_BE_EMPTY.contains(&(of.short_name(), field.name));
    if !value.is_set() {
        if judged {
            check_absent(field, value, causes);
        }
        return;
    }
    let empty = value.value.as_str() == Some("") || (value.value.is_array() && value.list().is_empty());
    if judged && empty && matches!(field.kind, Kind::String | Kind::Bytes | Kind::List(_)) {
        value.required("", causes);
    }
    check_value(&field.kind, value, causes);
}

fn check_absent(field: &schema::Field, value: &Field<'_, '_>, causes: &mut Causes) {
    match field.kind.as_struct() {
        // A struct that was left out is an empty one, except where its absence means something.
        Some(of) if of.short_name() != "LabelSelector" => check_struct(of, value, causes),
        Some(_) => value.required("", causes),
        None if matches!(field.kind, Kind::String | Kind::Bytes | Kind::List(_) | Kind::IntOrString) => {
            value.required("", causes);
        }
        None => {}
    }
}

fn check_value(kind: &Kind, value: &Field<'_, '_>, causes: &mut Causes) {
    match kind {
        Kind::Struct(_) if value.value.is_object() => {
            if let Some(of) = kind.as_struct() {
                check_struct(of, value, causes);
            }
        }
        Kind::List(inner) => {
            for item in value.items() {
                check_value(inner, &item, causes);
            }
        }
        Kind::Map(inner) => {
            for (_, item) in value.entries() {
                check_value(inner, &item, causes);
            }
        }
        _ => {}
    }
}
