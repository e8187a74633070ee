//! Answers: objects and lists in the form the caller asked for. Whole JSON objects leave as the bytes they are cached in.

use bytes::{BufMut, Bytes, BytesMut};
use control_plane_api::{Object, Status};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    behaviour,
    body::{self, Body},
    cache::{Cached, is_storage_row},
    gzip,
    negotiate::{Format, Shape},
    status::Outcome,
    verb::Call,
};

/// Warnings beyond these are left off: headers are small.
const WARNINGS_MAX: usize = 20;
const WARNING_BYTES_MAX: usize = 256;

/// A cached object, as it is when nothing else is asked for.
pub(crate) fn cached(call: &Call, cached: &Cached) -> Outcome<Response<Body>> {
    if is_plain(call) {
        return Ok(finish(call, StatusCode::OK, Format::Json, cached.bytes.clone()));
    }
    object(call, StatusCode::OK, &call.in_version(cached))
}

/// Whether cached bytes are the answer.
pub(crate) fn is_plain(call: &Call) -> bool {
    call.accept.format == Format::Json
        && call.accept.shape == Shape::Whole
        && !call.accept.pretty
        && is_storage_row(call.row)
}

pub(crate) fn object(call: &Call, code: StatusCode, object: &Object) -> Outcome<Response<Body>> {
    let bytes = match call.accept.shape {
        Shape::Whole => encode(call, object)?,
        Shape::Table => encode_value(call, &versioned(call, behaviour::table_of(call, object)?))?,
        Shape::PartialMetadata => encode(call, &partial(call, object))?,
    };
    Ok(finish(call, code, call.accept.format, bytes))
}

/// The metadata alone.
pub(crate) fn partial(call: &Call, object: &Object) -> Object {
    let mut out = Object::new(call.accept.meta_version, "PartialObjectMetadata");
    out.copy_from("metadata", object);
    out
}

/// A table in the version that is asked for.
pub(crate) fn versioned(call: &Call, mut table: Value) -> Value {
    table["apiVersion"] = call.accept.meta_version.into();
    table
}

pub(crate) fn encode(call: &Call, object: &Object) -> Outcome<Bytes> {
    match call.accept.format {
        Format::Protobuf => Ok(behaviour::to_protobuf(object)?),
        Format::Json | Format::Yaml => encode_value(call, object.as_map()),
    }
}

/// Encodes what has no protobuf form of its own here: tables go out as JSON then, which their clients accept.
pub(crate) fn encode_value(call: &Call, value: &impl serde::Serialize) -> Outcome<Bytes> {
    let failed = |error: String| Status::internal(format!("encode the answer: {error}"));
    match call.accept.format {
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| failed(error.to_string()))?;
            Ok(Bytes::from(text))
        }
        _ if call.accept.pretty => {
            Ok(Bytes::from(serde_json::to_vec_pretty(value).map_err(|error| failed(error.to_string()))?))
        }
        _ => Ok(Bytes::from(serde_json::to_vec(value).map_err(|error| failed(error.to_string()))?)),
    }
}

/// A plain JSON value, for answers that are no objects of a row.
pub(crate) fn value(call: &Call, code: StatusCode, value: &Value) -> Outcome<Response<Body>> {
    let format = match call.accept.format {
        Format::Protobuf => Format::Json,
        format => format,
    };
    Ok(finish(call, code, format, encode_value(call, value)?))
}

/// What a list says of itself beside its items.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) resource_version: String,
    pub(crate) continue_token: String,
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    pub(crate) fn to_value(&self) -> Value {
        let mut out = json!({"resourceVersion": self.resource_version});
        if !self.continue_token.is_empty() {
            out["continue"] = self.continue_token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            out["remainingItemCount"] = remaining.into();
        }
        out
    }
}

/// A list of cached objects, spliced from their bytes.
pub(crate) fn spliced<'a>(
    call: &Call,
    meta: &ListMeta,
    items: impl ExactSizeIterator<Item = &'a Bytes> + Clone,
) -> Response<Body> {
    let size: usize = items.clone().map(|item| item.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = json!({"kind": call.row.list_kind(), "apiVersion": call.row.api_version(), "metadata": meta.to_value()});
    let head = head.to_string();
    out.put_slice(&head.as_bytes()[..head.len() - 1]);
    out.put_slice(b",\"items\":[");
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.put_slice(item);
    }
    out.put_slice(b"]}");
    finish(call, StatusCode::OK, Format::Json, out.freeze())
}

/// A list in any other form.
pub(crate) fn list(call: &Call, meta: &ListMeta, objects: &[Object]) -> Outcome<Response<Body>> {
    let bytes = match call.accept.shape {
        Shape::Table => {
            let table = behaviour::table(call, objects, &meta.resource_version, Some(meta))?;
            encode_value(call, &versioned(call, table))?
        }
        shape => {
            let (api_version, kind, items): (_, _, Vec<Object>) = match shape {
                Shape::PartialMetadata => (
                    call.accept.meta_version.to_owned(),
                    "PartialObjectMetadataList".to_owned(),
                    objects.iter().map(|object| partial(call, object)).collect(),
                ),
                _ => (call.row.api_version(), call.row.list_kind(), objects.to_vec()),
            };
            let mut list = Object::new(&api_version, &kind);
            list.set(&["metadata"], meta.to_value());
            list.set(&["items"], items.into_iter().map(Object::into_value).collect::<Vec<_>>());
            encode(call, &list)?
        }
    };
    Ok(finish(call, StatusCode::OK, call.accept.format, bytes))
}

fn finish(call: &Call, code: StatusCode, format: Format, bytes: Bytes) -> Response<Body> {
    // A table asked for as protobuf is answered in JSON; it says so.
    let format = if call.accept.shape == Shape::Table && format == Format::Protobuf { Format::Json } else { format };
    let (bytes, packed) = gzip::pack(call.accept.gzip, bytes);
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    if packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    add_warnings(call, headers);
    response
}

/// Warning headers, RFC 7234 section 5.5 in the form that clients print.
pub(crate) fn add_warnings(call: &Call, headers: &mut http::HeaderMap) {
    for warning in call.warnings.iter().take(WARNINGS_MAX) {
        let text: String = warning.chars().filter(|one| !one.is_control()).take(WARNING_BYTES_MAX).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::try_from(format!("299 - \"{quoted}\"")) {
            headers.append(header::WARNING, value);
        }
    }
}
