//! An OpenAPI version 2 document as gnostic's `openapi.v2.Document` message.
//!
//! Definitions only: the paths carry nothing that a client of this form reads.

use serde_json::{Map, Value};

use crate::proto::wire::put_bytes;

/// The numbers of `openapi.v2.Schema` that a definition uses.
mod number {
    pub(super) const REFERENCE: u32 = 1;
    pub(super) const FORMAT: u32 = 2;
    pub(super) const DESCRIPTION: u32 = 4;
    pub(super) const REQUIRED: u32 = 19;
    pub(super) const ADDITIONAL_PROPERTIES: u32 = 21;
    pub(super) const TYPE: u32 = 22;
    pub(super) const ITEMS: u32 = 23;
    pub(super) const PROPERTIES: u32 = 25;
    pub(super) const VENDOR_EXTENSION: u32 = 31;
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, text(document, "swagger").unwrap_or("2.0").as_bytes());
    let mut info = Vec::new();
    put_bytes(&mut info, 1, text(&document["info"], "title").unwrap_or_default().as_bytes());
    put_bytes(&mut info, 2, text(&document["info"], "version").unwrap_or_default().as_bytes());
    put_bytes(&mut out, 2, &info);
    // Readers demand that there are paths, not that there is one.
    put_bytes(&mut out, 8, b"");
    put_bytes(&mut out, 9, &named_schemas(document["definitions"].as_object()));
    out
}

/// `Definitions` and `Properties` alike: a list of named schemas at 1.
fn named_schemas(schemas: Option<&Map<String, Value>>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in schemas.into_iter().flatten() {
        let mut named = Vec::new();
        put_bytes(&mut named, 1, name.as_bytes());
        put_bytes(&mut named, 2, &schema(value));
        put_bytes(&mut out, 1, &named);
    }
    out
}

fn schema(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, number) in [("$ref", number::REFERENCE), ("format", number::FORMAT), ("description", number::DESCRIPTION)]
    {
        if let Some(text) = text(value, key) {
            put_bytes(&mut out, number, text.as_bytes());
        }
    }
    for name in value["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        put_bytes(&mut out, number::REQUIRED, name.as_bytes());
    }
    let wrap = |inner: &Value| {
        let mut wrapped = Vec::new();
        put_bytes(&mut wrapped, 1, &schema(inner));
        wrapped
    };
    if let Some(inner) = value.get("additionalProperties") {
        put_bytes(&mut out, number::ADDITIONAL_PROPERTIES, &wrap(inner));
    }
    if let Some(kind) = text(value, "type") {
        let mut item = Vec::new();
        put_bytes(&mut item, 1, kind.as_bytes());
        put_bytes(&mut out, number::TYPE, &item);
    }
    if let Some(items) = value.get("items") {
        put_bytes(&mut out, number::ITEMS, &wrap(items));
    }
    if let Some(properties) = value["properties"].as_object() {
        put_bytes(&mut out, number::PROPERTIES, &named_schemas(Some(properties)));
    }
    for (name, extension) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        // JSON is YAML.
        let mut any = Vec::new();
        put_bytes(&mut any, 2, extension.to_string().as_bytes());
        let mut named = Vec::new();
        put_bytes(&mut named, 1, name.as_bytes());
        put_bytes(&mut named, 2, &any);
        put_bytes(&mut out, number::VENDOR_EXTENSION, &named);
    }
    out
}
