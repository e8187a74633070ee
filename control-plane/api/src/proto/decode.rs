//! Protobuf -> JSON values, by the table.
//!
//! Fields without a number in the table are skipped, as every protobuf reader does with what it does not know.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::wire::{Payload, Reader};
use super::{DEPTH_MAX, Error};
use crate::object::{map_entry, rfc3339, rfc3339_micro};
use crate::schema::normal::encode_base64;
use crate::schema::{Field, Kind, Type};

/// `runtime.Unknown`.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) raw: &'a [u8],
    pub(super) content_type: String,
}

pub(super) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        match (number, payload) {
            (1, Payload::Bytes(bytes)) => {
                let mut inner = Reader::new(bytes);
                while let Some((number, payload)) = inner.next()? {
                    match (number, payload) {
                        (1, Payload::Bytes(bytes)) => envelope.api_version = text(bytes, "apiVersion")?,
                        (2, Payload::Bytes(bytes)) => envelope.kind = text(bytes, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(bytes)) => envelope.raw = bytes,
            (4, Payload::Bytes(bytes)) => envelope.content_type = text(bytes, "contentType")?,
            _ => {}
        }
    }
    Ok(envelope)
}

fn text(bytes: &[u8], of: &str) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Utf8 { of: of.into() })
}

/// The fields of `of` whose path of numbers begins with `prefix`, by the next number.
fn numbered<'t>(of: &'t Type, prefix: &[u32]) -> BTreeMap<u32, Vec<&'t Field>> {
    let mut fields: BTreeMap<u32, Vec<&Field>> = BTreeMap::new();
    for field in &of.fields {
        if let Some([number, ..]) = field.numbers.strip_prefix(prefix) {
            fields.entry(*number).or_default().push(field);
        }
    }
    fields
}

pub(super) fn message(of: &Type, bytes: &[u8], out: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    level(of, &mut Vec::new(), bytes, out, depth)
}

/// One level of a message: the struct itself, or a struct that JSON inlines into it.
fn level(
    of: &Type,
    prefix: &mut Vec<u32>,
    bytes: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Depth { max: DEPTH_MAX });
    }
    let fields = numbered(of, prefix);
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        let Some(candidates) = fields.get(&number).filter(|_| number != 0) else { continue };
        let inlined = candidates.iter().any(|field| field.numbers.len() > prefix.len() + 1);
        match (inlined, payload) {
            (true, Payload::Bytes(bytes)) => {
                prefix.push(number);
                level(of, prefix, bytes, out, depth + 1)?;
                prefix.pop();
            }
            _ => field_value(of, candidates[0], payload, out, depth)?,
        }
    }
    Ok(())
}

fn field_value(
    of: &Type,
    field: &Field,
    payload: Payload<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    let at = Place { of, field, depth };
    match &field.kind {
        Kind::List(inner) => {
            let entry = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Some(list) = entry.as_array_mut() else { return Ok(()) };
            match (payload, &**inner) {
                (Payload::Bytes(bytes), Kind::Int32 | Kind::Int64 | Kind::Bool) => {
                    let mut packed = Reader::new(bytes);
                    while !packed.is_empty() {
                        list.push(at.scalar(inner, Payload::Varint(packed.varint()?))?.unwrap_or(Value::Null));
                    }
                }
                _ => list.push(at.scalar(inner, payload)?.unwrap_or(Value::Null)),
            }
        }
        Kind::Map(inner) => {
            let Payload::Bytes(bytes) = payload else { return Err(at.wire_type(payload)) };
            let (key, value) = at.map_entry(inner, bytes)?;
            map_entry(out, field.name).insert(key, value);
        }
        kind => {
            if let Some(value) = at.scalar(kind, payload)?.filter(|value| !means_absence(field, value)) {
                out.insert(field.name.into(), value);
            }
        }
    }
    Ok(())
}

/// Go writes fields that are no pointers even when they are zero; JSON's omitempty leaves them out.
fn means_absence(field: &Field, value: &Value) -> bool {
    if field.pointer || !field.omit_empty {
        return false;
    }
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        // An empty message of a field that is no pointer says nothing: Go writes it always.
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

struct Place<'a> {
    of: &'a Type,
    field: &'a Field,
    depth: usize,
}

impl Place<'_> {
    fn name(&self) -> String {
        format!("{}.{}", self.of.name, self.field.name)
    }

    fn wire_type(&self, payload: Payload<'_>) -> Error {
        let field = self.field.numbers.last().copied().unwrap_or(0);
        Error::WireType { of: self.name(), field, wire_type: payload.wire_type() }
    }

    /// One value; nothing for a zero time.
    fn scalar(&self, kind: &Kind, payload: Payload<'_>) -> Result<Option<Value>, Error> {
        Ok(Some(match (kind, payload) {
            (Kind::Bool, Payload::Varint(number)) => Value::Bool(number != 0),
            (Kind::Int32 | Kind::Int64, Payload::Varint(number)) => number.cast_signed().into(),
            (Kind::Double, Payload::Fixed64(bits)) => f64::from_bits(bits).into(),
            (Kind::String, Payload::Bytes(bytes)) => text(bytes, &self.name())?.into(),
            (Kind::Bytes, Payload::Bytes(bytes)) => encode_base64(bytes).into(),
            (Kind::Quantity, Payload::Bytes(bytes)) => self.first_text(bytes, 1)?.unwrap_or_else(|| "0".into()).into(),
            (Kind::IntOrString, Payload::Bytes(bytes)) => self.int_or_string(bytes)?,
            (Kind::Time, Payload::Bytes(bytes)) => return Ok(self.time(bytes)?.map(|time| rfc3339(time).into())),
            (Kind::MicroTime, Payload::Bytes(bytes)) => {
                return Ok(self.time(bytes)?.map(|time| rfc3339_micro(time).into()));
            }
            (Kind::RawExtension | Kind::FieldsV1, Payload::Bytes(bytes)) => return self.embedded(bytes),
            (Kind::Struct(_), Payload::Bytes(bytes)) => {
                let mut map = Map::new();
                if let Some(of) = kind.as_struct() {
                    message(of, bytes, &mut map, self.depth + 1)?;
                }
                Value::Object(map)
            }
            // A list within a list or map travels as a message with the items at 1.
            (Kind::List(inner), Payload::Bytes(bytes)) => {
                let mut list = Vec::new();
                let mut reader = Reader::new(bytes);
                while let Some((number, payload)) = reader.next()? {
                    if number == 1 {
                        list.extend(self.scalar(inner, payload)?);
                    }
                }
                Value::Array(list)
            }
            _ => return Err(self.wire_type(payload)),
        }))
    }

    fn map_entry(&self, kind: &Kind, bytes: &[u8]) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(bytes);
        while let Some((number, payload)) = reader.next()? {
            match (number, payload) {
                (1, Payload::Bytes(bytes)) => key = text(bytes, &self.name())?,
                (2, payload) => value = self.scalar(kind, payload)?,
                _ => {}
            }
        }
        let zero = || match kind {
            Kind::Struct(_) | Kind::Map(_) => Value::Object(Map::new()),
            Kind::List(_) => Value::Array(Vec::new()),
            Kind::Quantity => "0".into(),
            Kind::Time | Kind::MicroTime => Value::Null,
            _ => "".into(),
        };
        Ok((key, value.unwrap_or_else(zero)))
    }

    fn first_text(&self, bytes: &[u8], wanted: u32) -> Result<Option<String>, Error> {
        let mut found = None;
        let mut reader = Reader::new(bytes);
        while let Some((number, payload)) = reader.next()? {
            if let (true, Payload::Bytes(bytes)) = (number == wanted, payload) {
                found = Some(text(bytes, &self.name())?);
            }
        }
        Ok(found)
    }

    fn int_or_string(&self, bytes: &[u8]) -> Result<Value, Error> {
        let (mut is_text, mut number_value, mut text_value) = (false, 0_i64, String::new());
        let mut reader = Reader::new(bytes);
        while let Some((number, payload)) = reader.next()? {
            match (number, payload) {
                (1, Payload::Varint(kind)) => is_text = kind == 1,
                (2, Payload::Varint(value)) => number_value = value.cast_signed(),
                (3, Payload::Bytes(bytes)) => text_value = text(bytes, &self.name())?,
                _ => {}
            }
        }
        Ok(if is_text { text_value.into() } else { number_value.into() })
    }

    fn time(&self, bytes: &[u8]) -> Result<Option<jiff::Timestamp>, Error> {
        let (mut seconds, mut nanos) = (None, 0_i64);
        let mut reader = Reader::new(bytes);
        while let Some((number, payload)) = reader.next()? {
            match (number, payload) {
                (1, Payload::Varint(value)) => seconds = Some(value.cast_signed()),
                (2, Payload::Varint(value)) => nanos = value.cast_signed(),
                _ => {}
            }
        }
        // Go's zero time is the year 1, and an empty message; both mean that there is none.
        let Some(seconds) = seconds.filter(|seconds| *seconds != -62_135_596_800) else { return Ok(None) };
        let nanos = i32::try_from(nanos).unwrap_or(0);
        Ok(jiff::Timestamp::new(seconds, nanos).ok())
    }

    /// `Raw` at 1: JSON for FieldsV1 and unknown extensions, or again an enveloped object.
    fn embedded(&self, bytes: &[u8]) -> Result<Option<Value>, Error> {
        let mut reader = Reader::new(bytes);
        while let Some((number, payload)) = reader.next()? {
            let (1, Payload::Bytes(raw)) = (number, payload) else { continue };
            if raw.is_empty() {
                return Ok(None);
            }
            if super::is_protobuf(raw) {
                return Ok(Some(super::decode_at(raw, None, self.depth + 1)?.into_value()));
            }
            return serde_json::from_slice(raw).map(Some).map_err(Error::EmbeddedJson);
        }
        Ok(None)
    }
}
