//! JSON values -> protobuf, by the table.
//!
//! Nulls and fields that no type has are left out; a value of the wrong type is an error that names it.

use serde_json::{Map, Value};

use super::wire::{put_bytes, put_double, put_varint_field};
use super::{Error, MAGIC};
use crate::schema::normal::decode_base64;
use crate::schema::{Field, Kind, Type};

pub(super) fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    envelope_of(api_version, kind, raw, "")
}

pub(super) fn envelope_of(api_version: &str, kind: &str, raw: &[u8], content_type: &str) -> Vec<u8> {
    let mut type_meta = Vec::new();
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 16);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, content_type.as_bytes());
    out
}

pub(super) fn message(of: &Type, map: &Map<String, Value>, path: &str, out: &mut Vec<u8>) -> Result<(), Error> {
    let mut fields = Vec::with_capacity(map.len());
    for (name, value) in map {
        let Some(field) = of.field(name) else { continue };
        // apiVersion and kind of the message travel in the envelope.
        if field.numbers != [0] && !value.is_null() {
            fields.push((field, value));
        }
    }
    fields.sort_by(|(a, _), (b, _)| a.numbers.cmp(&b.numbers));
    level(&fields, 0, path, out)
}

/// Writes fields that share their first `depth` numbers; deeper paths become embedded messages.
fn level(fields: &[(&Field, &Value)], depth: usize, path: &str, out: &mut Vec<u8>) -> Result<(), Error> {
    for group in fields.chunk_by(|(a, _), (b, _)| a.numbers[depth] == b.numbers[depth]) {
        let (field, value) = group[0];
        let number = field.numbers[depth];
        if field.numbers.len() > depth + 1 {
            let mut inner = Vec::new();
            level(group, depth + 1, path, &mut inner)?;
            put_bytes(out, number, &inner);
        } else {
            put_field(field, number, value, &join(path, field.name), out)?;
        }
    }
    Ok(())
}

fn put_field(field: &Field, number: u32, value: &Value, path: &str, out: &mut Vec<u8>) -> Result<(), Error> {
    match &field.kind {
        Kind::List(inner) => {
            let list = value.as_array().ok_or_else(|| unrepresentable(path, "it is no list"))?;
            list.iter().try_for_each(|item| put_value(inner, number, item, path, out))
        }
        Kind::Map(inner) => {
            let map = value.as_object().ok_or_else(|| unrepresentable(path, "it is no map"))?;
            map.iter().try_for_each(|(key, item)| {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                put_value(inner, 2, item, &join(path, key), &mut entry)?;
                put_bytes(out, number, &entry);
                Ok(())
            })
        }
        kind => put_value(kind, number, value, path, out),
    }
}

fn put_value(kind: &Kind, number: u32, value: &Value, path: &str, out: &mut Vec<u8>) -> Result<(), Error> {
    match (kind, value) {
        (Kind::Bool, Value::Bool(flag)) => put_varint_field(out, number, u64::from(*flag)),
        (Kind::Int32 | Kind::Int64, Value::Number(_)) => {
            let value = value.as_i64().ok_or_else(|| unrepresentable(path, "it is no 64-bit integer"))?;
            put_varint_field(out, number, value.cast_unsigned());
        }
        (Kind::Double, Value::Number(_)) => put_double(out, number, value.as_f64().unwrap_or_default()),
        (Kind::String, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        (Kind::Bytes, Value::String(text)) => {
            let bytes = decode_base64(text).ok_or_else(|| unrepresentable(path, "it is not base64"))?;
            put_bytes(out, number, &bytes);
        }
        (Kind::Quantity, Value::String(text)) => put_inner(out, number, |inner| put_bytes(inner, 1, text.as_bytes())),
        (Kind::Quantity, Value::Number(amount)) => {
            put_inner(out, number, |inner| put_bytes(inner, 1, amount.to_string().as_bytes()));
        }
        (Kind::IntOrString, Value::Number(_)) => {
            let value = value.as_i64().ok_or_else(|| unrepresentable(path, "it is no integer"))?;
            put_inner(out, number, |inner| {
                put_varint_field(inner, 1, 0);
                put_varint_field(inner, 2, value.cast_unsigned());
                put_bytes(inner, 3, b"");
            });
        }
        (Kind::IntOrString, Value::String(text)) => put_inner(out, number, |inner| {
            put_varint_field(inner, 1, 1);
            put_varint_field(inner, 2, 0);
            put_bytes(inner, 3, text.as_bytes());
        }),
        (Kind::Time | Kind::MicroTime, Value::String(text)) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| unrepresentable(path, "it is no time"))?;
            put_inner(out, number, |inner| {
                put_varint_field(inner, 1, time.as_second().cast_unsigned());
                // metav1.Time has whole seconds on the wire too; MicroTime keeps its fraction.
                let nanos = if *kind == Kind::MicroTime { time.subsec_nanosecond() } else { 0 };
                put_varint_field(inner, 2, i64::from(nanos).cast_unsigned());
            });
        }
        (Kind::RawExtension | Kind::FieldsV1, value) => {
            let raw = value.to_string();
            put_inner(out, number, |inner| put_bytes(inner, 1, raw.as_bytes()));
        }
        (Kind::Struct(_), Value::Object(map)) => {
            let of = kind.as_struct().ok_or_else(|| unrepresentable(path, "its type is unknown"))?;
            let mut inner = Vec::new();
            message(of, map, path, &mut inner)?;
            put_bytes(out, number, &inner);
        }
        (Kind::List(items), Value::Array(list)) => {
            let mut inner = Vec::new();
            list.iter().try_for_each(|item| put_value(items, 1, item, path, &mut inner))?;
            put_bytes(out, number, &inner);
        }
        (_, Value::Null) => {}
        _ => return Err(unrepresentable(path, "its value is of another type")),
    }
    Ok(())
}

fn put_inner(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put_bytes(out, number, &inner);
}

fn unrepresentable(path: &str, why: &str) -> Error {
    Error::Unrepresentable { path: path.into(), why: why.into() }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
