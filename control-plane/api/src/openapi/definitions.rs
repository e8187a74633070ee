//! Definitions of types in either dialect.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Descriptions, Dialect, group_version_kind};
use crate::schema::{self, Field, Kind, ListType, Type};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";

/// The definitions of the roots and of everything that they refer to.
pub(super) fn of_types(
    roots: &BTreeSet<&'static str>,
    dialect: Dialect,
    texts: &dyn Descriptions,
) -> Map<String, Value> {
    let mut out = scalars(dialect);
    for (name, definition) in &mut out {
        if let Some(text) = texts.describe(name, "") {
            definition["description"] = text.into();
        }
    }
    let mut pending: Vec<&'static Type> = roots.iter().filter_map(|name| schema::find(name)).collect();
    while let Some(of) = pending.pop() {
        let name = of.full_name();
        if out.contains_key(&name) {
            continue;
        }
        pending.extend(of.fields.iter().filter_map(|field| field.kind.innermost_struct()));
        out.insert(name, definition(of, dialect, texts));
    }
    out
}

fn scalars(dialect: Dialect) -> Map<String, Value> {
    let time = json!({"type": "string", "format": "date-time"});
    let (quantity, int_or_string) = match dialect {
        Dialect::V2 => (json!({"type": "string"}), json!({"type": "string", "format": "int-or-string"})),
        Dialect::V3 => (
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
        ),
    };
    let list = [
        (QUANTITY, quantity),
        (INT_OR_STRING, int_or_string),
        (RAW_EXTENSION, json!({"type": "object"})),
        (TIME, time.clone()),
        (MICRO_TIME, time),
        (FIELDS, json!({"type": "object"})),
    ];
    list.into_iter().map(|(name, definition)| (name.to_owned(), definition)).collect()
}

fn definition(of: &'static Type, dialect: Dialect, texts: &dyn Descriptions) -> Value {
    let name = of.full_name();
    let mut out = json!({"type": "object"});
    if let Some(text) = texts.describe(&name, "") {
        out["description"] = text.into();
    }
    let mut properties = Map::new();
    for field in &of.fields {
        let mut property = property(field, dialect);
        if let Some(text) = texts.describe(&name, field.name) {
            property["description"] = text.into();
        }
        properties.insert(field.name.into(), property);
    }
    if !properties.is_empty() {
        out["properties"] = properties.into();
    }
    let required: Vec<&str> = of.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    if !required.is_empty() {
        out["required"] = required.into();
    }
    if of.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some((group, version, kind)) = group_version_kind(of) {
        out["x-kubernetes-group-version-kind"] = json!([{"group": group, "version": version, "kind": kind}]);
    }
    out
}

fn property(field: &Field, dialect: Dialect) -> Value {
    let mut out = of_kind(&field.kind, dialect);
    let reference = out.get("$ref").is_some();
    // A reference cannot have neighbours in version 3.
    if reference && dialect == Dialect::V3 {
        out = json!({"allOf": [out]});
    }
    let is_list = matches!(field.kind, Kind::List(_));
    if is_list && field.list == ListType::Map {
        out["x-kubernetes-list-map-keys"] = field.keys.clone().into();
        out["x-kubernetes-list-type"] = "map".into();
    } else if is_list {
        // Lists without a type merge as atomic ones; saying so keeps clients and the server of one mind.
        out["x-kubernetes-list-type"] = if field.list == ListType::Set { "set".into() } else { "atomic".into() };
    }
    if field.map_atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if field.patch_merge || field.patch_retain_keys {
        let strategy = match (field.patch_merge, field.patch_retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            _ => "retainKeys",
        };
        out["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Some(key) = field.patch_merge_key {
        out["x-kubernetes-patch-merge-key"] = key.into();
    }
    if field.name == "protocol" && field.kind == Kind::String && dialect == Dialect::V3 {
        out["default"] = "TCP".into();
    }
    out
}

fn of_kind(kind: &Kind, dialect: Dialect) -> Value {
    let reference = |name: &str| json!({"$ref": dialect.reference(name)});
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Double => json!({"type": "number", "format": "double"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Quantity => reference(QUANTITY),
        Kind::IntOrString => reference(INT_OR_STRING),
        Kind::Time => reference(TIME),
        Kind::MicroTime => reference(MICRO_TIME),
        Kind::RawExtension => reference(RAW_EXTENSION),
        Kind::FieldsV1 => reference(FIELDS),
        Kind::Struct(_) => kind.as_struct().map_or_else(|| json!({"type": "object"}), |of| reference(&of.full_name())),
        Kind::List(inner) => json!({"type": "array", "items": of_kind(inner, dialect)}),
        Kind::Map(inner) => json!({"type": "object", "additionalProperties": of_kind(inner, dialect)}),
    }
}
