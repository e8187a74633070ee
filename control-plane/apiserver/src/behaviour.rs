//! The server's way to the vocabulary: what rows do (defaults, validation, strategy, conversion, printing, encoding), called in
//! one place. Holds no behaviour of its own.

use bytes::{BufMut, Bytes, BytesMut};
use control_plane_api::{
    Cause, Object, Row, Status, convert, defaults,
    merge::{self, apply::Writer},
    print, proto, schema, strategy, validate,
};
use serde_json::Value;

use crate::{
    status::Outcome,
    verb::{Call, respond::ListMeta},
};

/// The schema type of the call's body: the row's, or its subresource's.
pub(crate) fn body_type(call: &Call) -> Option<&'static schema::Type> {
    match call.row.subresource(&call.path.subresource) {
        Some(sub) => schema::find_kind(sub.group, sub.version, sub.kind),
        None => schema::find(&call.row.schema),
    }
}

/// A stored object in the row's version.
pub(crate) fn from_storage(row: &Row, object: Object) -> Object {
    if convert::is_needed(row) { convert::from_storage(row, object) } else { object }
}

/// An object of the row in the version it is stored in.
pub(crate) fn to_storage(row: &Row, object: Object) -> Object {
    if convert::is_needed(row) { convert::to_storage(row, object) } else { object }
}

pub(crate) fn defaults(row: &Row, object: &mut Object) {
    defaults::apply(row, object);
}

pub(crate) fn prepare_for_create(row: &Row, object: &mut Object) {
    strategy::prepare_create(row, object);
}

/// Limits an update to what its path may change, and raises the generation. Both objects carry their defaults already: an
/// absent field and its default are no difference.
pub(crate) fn prepare_for_update(row: &Row, next: &mut Object, live: &Object, subresource: &str) {
    strategy::prepare_update(row, subresource, next, live);
}

pub(crate) fn validate_create(row: &Row, object: &Object) -> Vec<Cause> {
    validate::create(row, object)
}

pub(crate) fn validate_update(row: &Row, next: &Object, live: &Object, subresource: &str) -> Vec<Cause> {
    // A binding is the one change of a pod's node that is allowed, and it was checked where it was made.
    let subresource = if subresource == "binding" { "status" } else { subresource };
    validate::update(row, subresource, next, live)
}

/// The type of a row's own objects, whatever subresource is asked.
fn row_type(row: &Row) -> Option<&'static schema::Type> {
    schema::find(&row.schema)
}

/// Records the writer of what changed in managedFields.
pub(crate) fn track(call: &Call, live: Option<&Object>, next: &mut Object, manager: &str, subresource: &str) {
    let Some(of) = row_type(call.row) else { return };
    let api_version = call.row.api_version();
    let writer = Writer { manager, api_version: &api_version, subresource, now: call.now };
    merge::apply::update(of, live, next, writer, strategy::ignored_fields(call.row, subresource));
}

/// Server-side apply of an intent to what is there.
pub(crate) fn apply(call: &Call, live: &Object, intent: &Object, manager: &str, force: bool) -> Outcome<Object> {
    let of = row_type(call.row).ok_or_else(|| Status::internal("the kind has no schema"))?;
    let api_version = call.row.api_version();
    let subresource = call.path.subresource.as_str();
    let writer = Writer { manager, api_version: &api_version, subresource, now: call.now };
    let ignored = strategy::ignored_fields(call.row, subresource);
    let complete = |object: &mut Object| defaults::apply(call.row, object);
    let applied = merge::apply::apply(of, live, intent, writer, ignored, force, complete);
    Ok(applied.map_err(|error| match error {
        merge::apply::Error::Conflict(causes) => Status::apply_conflict(causes),
        error => untyped(call, intent, &error.to_string()),
    })?)
}

/// An intent that the schema cannot take: in upstream's words, which helm's and Flux's users know.
pub(crate) fn untyped(call: &Call, intent: &Object, why: &str) -> Status {
    let (namespace, name) = (&call.path.namespace, &call.path.name);
    let (api_version, kind) = (intent.api_version(), intent.kind());
    // Go writes the core group as nothing before the slash.
    let group_version = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
    Status::bad_request(format!(
        "failed to create typed patch object ({namespace}/{name}; {group_version}, Kind={kind}): {why}"
    ))
}

/// Brings an object of the row, in the row's version, into its normal form.
pub(crate) fn normalize(row: &Row, object: &mut Object) {
    if let Some(of) = row_type(row) {
        schema::normal::normalize(of, object);
    }
}

pub(crate) fn strategic(of: &'static schema::Type, original: Value, patch: &Value) -> Outcome<Value> {
    let merged = merge::strategic::merge(of, original, patch);
    Ok(merged.map_err(|error| Status::bad_request(error.to_string()))?)
}

pub(crate) fn from_protobuf(bytes: &[u8]) -> Outcome<Object> {
    Ok(proto::decode(bytes, None).map_err(|error| Status::bad_request(format!("error decoding protobuf: {error}")))?)
}

pub(crate) fn from_protobuf_as(bytes: &[u8], api_version: &str, kind: &str) -> Outcome<Object> {
    let decoded = proto::decode(bytes, Some((api_version, kind)));
    Ok(decoded.map_err(|error| Status::bad_request(format!("error decoding protobuf: {error}")))?)
}

pub(crate) fn to_protobuf(object: &Object) -> Outcome<Bytes> {
    let encoded = proto::encode(object).map_err(|error| Status::internal(format!("encode as protobuf: {error}")))?;
    Ok(Bytes::from(encoded))
}

/// A watch event, after its length in four bytes.
pub(crate) fn watch_event_protobuf(kind: &str, object: Value) -> Outcome<Bytes> {
    let object = Object::from_value(object).map_err(|error| Status::internal(error.to_string()))?;
    let encoded = proto::encode_watch_event(kind, &object)
        .map_err(|error| Status::internal(format!("encode as protobuf: {error}")))?;
    let length = u32::try_from(encoded.len()).map_err(|_| Status::internal("an event larger than 4 GiB"))?;
    let mut out = BytesMut::with_capacity(encoded.len() + 4);
    out.put_u32(length);
    out.put_slice(&encoded);
    Ok(out.freeze())
}

/// What the query asks each row of a Table to carry.
fn include(call: &Call) -> Outcome<print::Include> {
    match call.query.first("includeObject") {
        None | Some("Metadata") => Ok(print::Include::Metadata),
        Some("None") => Ok(print::Include::None),
        Some("Object") => Ok(print::Include::Object),
        Some(other) => {
            let why = format!("includeObject must be None, Metadata or Object, not {other:?}");
            Err(Status::bad_request(why).into())
        }
    }
}

/// The Table of one object: a Scale has columns of its own, whatever it is a scale of.
pub(crate) fn table_of(call: &Call, object: &Object) -> Outcome<Value> {
    if object.kind() == "Scale" {
        return Ok(print::scale_table(object, include(call)?, call.now));
    }
    table(call, std::slice::from_ref(object), object.resource_version(), None)
}

/// A Table of the objects.
pub(crate) fn table(call: &Call, objects: &[Object], version: &str, meta: Option<&ListMeta>) -> Outcome<Value> {
    let include = include(call)?;
    let metadata = match meta {
        Some(meta) => meta.to_value(),
        None => serde_json::json!({"resourceVersion": version}),
    };
    let metadata = metadata.as_object().cloned().unwrap_or_default();
    Ok(print::table(call.row, objects, metadata, include, call.now))
}
