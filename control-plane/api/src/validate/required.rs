//! Required fields of every type, by the table: texts, lists and what they lie in.
//!
//! Numbers are left to the kinds: zero and absence are one to upstream. A status is never judged.

use serde_json::{Map, Value};

use super::Causes;
use crate::schema::{Field, Kind, Type};
use crate::{Cause, Object};

/// Fields that are required on paper and may be empty in practice, or that their kind judges with more words.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    ("EndpointSlice", "endpoints"),
    ("Role", "rules"),
    ("ClusterRole", "rules"),
    ("Endpoint", "addresses"),
    ("CSINodeSpec", "drivers"),
    ("LimitRangeSpec", "limits"),
    ("HTTPHeader", "value"),
    ("Sysctl", "value"),
    ("TokenRequest", "audience"),
    ("HTTPIngressPath", "pathType"),
    ("PodAffinityTerm", "topologyKey"),
];

/// Types that upstream stores with their texts empty.
const LENIENT: &[&str] = &["ObjectReference", "Event", "EventSeries", "LocalObjectReference", "CSINodeDriver"];

pub(super) fn check(of: &'static Type, object: &Object, causes: &mut Causes) {
    for field in &of.fields {
        if ["metadata", "status", "apiVersion", "kind"].contains(&field.name) {
            continue;
        }
        check_field(of, field, object.get(field.name), field.name, causes);
    }
}

fn check_struct(of: &'static Type, map: &Map<String, Value>, path: &str, causes: &mut Causes) {
    if LENIENT.contains(&of.short_name()) {
        return;
    }
    for field in &of.fields {
        // Templates carry a status and metadata of their own that nobody requires.
        if ["metadata", "status"].contains(&field.name) {
            continue;
        }
        check_field(of, field, map.get(field.name), &format!("{path}.{}", field.name), causes);
    }
}

fn check_field(of: &'static Type, field: &Field, value: Option<&Value>, path: &str, causes: &mut Causes) {
    let value = value.filter(|value| !value.is_null());
    let Some(value) = value else {
        if field.required && !MAY_BE_EMPTY.contains(&(of.short_name(), field.name)) {
            check_absent(field, path, causes);
        }
        return;
    };
    let empty = value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
    let judged = matches!(field.kind, Kind::String | Kind::Bytes | Kind::List(_));
    if field.required && empty && judged && !MAY_BE_EMPTY.contains(&(of.short_name(), field.name)) {
        causes.push(Cause::required(path, ""));
    }
    check_value(&field.kind, value, path, causes);
}

fn check_absent(field: &Field, path: &str, causes: &mut Causes) {
    match field.kind.as_struct() {
        // A struct that was left out is an empty one, except where its absence means something.
        Some(of) if of.short_name() != "LabelSelector" => check_struct(of, &Map::new(), path, causes),
        Some(_) => causes.push(Cause::required(path, "")),
        None if matches!(field.kind, Kind::String | Kind::Bytes | Kind::List(_) | Kind::IntOrString) => {
            causes.push(Cause::required(path, ""));
        }
        None => {}
    }
}

fn check_value(kind: &Kind, value: &Value, path: &str, causes: &mut Causes) {
    match (kind, value) {
        (Kind::Struct(_), Value::Object(map)) => {
            if let Some(of) = kind.as_struct() {
                check_struct(of, map, path, causes);
            }
        }
        (Kind::List(inner), Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                check_value(inner, item, &format!("{path}[{index}]"), causes);
            }
        }
        (Kind::Map(inner), Value::Object(map)) => {
            for (key, item) in map {
                check_value(inner, item, &format!("{path}[{key}]"), causes);
            }
        }
        _ => {}
    }
}
