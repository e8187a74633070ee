//! OpenAPI documents, as the vocabulary makes them. Encodes and tags them; describes nothing itself.
//!
//! Documents are made per request and not kept: clients keep them by their hash, and all of them together are larger than the rest
//! of the server.

use std::sync::LazyLock;

use bytes::Bytes;
use control_plane_api::{
    Status,
    openapi::{self, Published},
    row, rows, schema,
};
use http::{HeaderMap, Response, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{VERSION, fixed, json as answer};
use crate::{body::Body, negotiate, status::Outcome};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Changes when any document would.
static FINGERPRINT: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    hash.update(VERSION.2);
    hash.update(env!("CARGO_PKG_VERSION"));
    for of in schema::types() {
        hash.update(format!("{of:?}"));
    }
    for row in rows() {
        hash.update(format!("{row:?}"));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
});

fn tag(name: &str) -> String {
    Sha256::digest(format!("{}{name}", *FINGERPRINT)).iter().map(|byte| format!("{byte:02X}")).collect()
}

pub(super) fn v2(headers: &HeaderMap) -> Outcome<Response<Body>> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    // Clients ask with an at sign before the version; as a Content-Type that is no media type, and a dot stands there.
    let protobuf = accept.contains("openapi.spec.v2") && accept.contains("protobuf");
    let document = openapi::v2(VERSION.2, &Published::load());
    if protobuf {
        return fixed(headers, Bytes::from(openapi::v2_protobuf(&document)), V2_PROTOBUF, &tag("v2-protobuf"));
    }
    fixed(headers, Bytes::from(document.to_string()), negotiate::JSON, &tag("v2"))
}

/// `api/v1` and `apis/apps/v1`.
fn name(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

pub(super) fn v3_index() -> Outcome<Response<Body>> {
    let mut paths = Map::new();
    for (group, versions) in row::groups() {
        for version in versions {
            let name = name(group, version);
            let url = format!("/openapi/v3/{name}?hash={}", tag(&name));
            paths.insert(name, json!({"serverRelativeURL": url}));
        }
    }
    answer(&json!({"paths": Value::Object(paths)}))
}

pub(super) fn v3(path: &str, headers: &HeaderMap) -> Outcome<Response<Body>> {
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version) = match parts[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return Err(Status::no_such_path().into()),
    };
    let document = openapi::v3(group, version, VERSION.2, &Published::load()).ok_or_else(Status::no_such_path)?;
    fixed(headers, Bytes::from(document.to_string()), negotiate::JSON, &tag(&name(group, version)))
}
