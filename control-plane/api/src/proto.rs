//! Kubernetes protobuf: bytes with the `k8s\0` magic <-> the untyped object, by the table of field numbers.
//!
//! No generated structs. Invariant: what the table numbers survives a round trip. A field that a user wrote and no type
//! has was warned about when it came; it stays in storage and in JSON, and protobuf has no place for it.

mod decode;
mod encode;
pub(crate) mod wire;

use serde_json::Value;

use crate::Object;
use crate::budget;
use crate::row::split_api_version;
use crate::schema;

/// The four bytes before every `runtime.Unknown`.
pub const MAGIC: &[u8; 4] = b"k8s\0";
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body does not begin with the protobuf magic \"k8s\\0\"")]
    Magic,
    #[error("the protobuf message ends within a field")]
    Truncated,
    #[error("the protobuf message has wire type {wire_type} at field {field}, which {of} does not allow")]
    WireType { of: String, field: u32, wire_type: u8 },
    #[error("the protobuf message holds text that is not UTF-8 in {of}")]
    Utf8 { of: String },
    #[error("the protobuf message nests deeper than {max} levels")]
    Depth { max: usize },
    #[error("the body is too large: {0}")]
    Budget(#[from] budget::Exceeded),
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    #[error("the embedded object is not valid JSON")]
    EmbeddedJson(#[source] serde_json::Error),
    #[error("{path} cannot be written as protobuf: {why}")]
    Unrepresentable { path: String, why: String },
}

/// Messages may nest as deep as this; beyond it the body is refused.
const DEPTH_MAX: usize = 64;

pub fn is_protobuf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Decodes an enveloped object of a built-in kind, a list, or `DeleteOptions` and its like.
///
/// The kind inside the envelope counts. Bodies that leave it out take `default_type` (apiVersion, kind).
pub fn decode(bytes: &[u8], default_type: Option<(&str, &str)>) -> Result<Object, Error> {
    let object = decode_at(bytes, default_type, 0)?;
    budget::check_map(object.as_map())?;
    Ok(object)
}

/// As [`decode`], for an object that lies this deep in another.
fn decode_at(bytes: &[u8], default_type: Option<(&str, &str)>, depth: usize) -> Result<Object, Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Depth { max: DEPTH_MAX });
    }
    let body = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let envelope = decode::envelope(body)?;
    let (mut api_version, mut kind) = (envelope.api_version, envelope.kind);
    if let Some((default_version, default_kind)) = default_type {
        if api_version.is_empty() {
            api_version = default_version.into();
        }
        if kind.is_empty() {
            kind = default_kind.into();
        }
    }
    if envelope.content_type == "application/json" {
        return serde_json::from_slice(envelope.raw).map_err(Error::EmbeddedJson);
    }
    let of = type_of(&api_version, &kind)?;
    let mut object = Object::new(&api_version, &kind);
    decode::message(of, envelope.raw, object.as_map_mut(), depth)?;
    object.set_type(&api_version, &kind);
    Ok(object)
}

/// Encodes an object of a built-in kind or a list, with magic and envelope.
pub fn encode(object: &Object) -> Result<Vec<u8>, Error> {
    let of = type_of(object.api_version(), object.kind())?;
    let mut raw = Vec::new();
    encode::message(of, object.as_map(), "", &mut raw)?;
    Ok(encode::envelope(object.api_version(), object.kind(), &raw))
}

/// Encodes a watch event around the object. The caller puts a 4-byte big-endian length before each.
pub fn encode_watch_event(event: &str, object: &Object) -> Result<Vec<u8>, Error> {
    Ok(wrap_watch_event(event, &encode(object)?))
}

/// As [`encode_watch_event`], around an object that is encoded already.
pub fn wrap_watch_event(event: &str, encoded: &[u8]) -> Vec<u8> {
    let mut extension = Vec::with_capacity(encoded.len() + 8);
    wire::put_bytes(&mut extension, 1, encoded);
    let mut raw = Vec::with_capacity(extension.len() + 24);
    wire::put_bytes(&mut raw, 1, event.as_bytes());
    wire::put_bytes(&mut raw, 2, &extension);
    // The frame is a bare meta.v1.WatchEvent; only the object within has magic and envelope.
    raw
}

/// Wraps JSON (a Table, say) so that a protobuf client can refuse it knowingly.
pub fn wrap_json(api_version: &str, kind: &str, value: &Value) -> Vec<u8> {
    let raw = value.to_string().into_bytes();
    encode::envelope_of(api_version, kind, &raw, "application/json")
}

fn type_of(api_version: &str, kind: &str) -> Result<&'static schema::Type, Error> {
    let (group, version) = split_api_version(api_version);
    schema::find_kind(group, version, kind)
        .ok_or_else(|| Error::UnknownKind { api_version: api_version.into(), kind: kind.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[track_caller]
    fn check(value: Value) {
        let object = Object::from_value(value.clone()).unwrap();
        let bytes = encode(&object).unwrap();
        assert!(is_protobuf(&bytes));
        assert_eq!(decode(&bytes, None).unwrap().to_value(), value);
    }

    #[test]
    fn round_trips_every_scalar() {
        check(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b", "c": ""},
            "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"manager": "m", "operation": "Apply",
            "apiVersion": "v1", "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {"f:a": {}}}}}]},
            "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "hostNetwork": true,
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "s", "projected": {"sources":
            [{"configMap": {"name": "c", "optional": false}}]}}],
            "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "n", "key": "k"}}}],
            "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3},
            "readinessProbe": {"tcpSocket": {"port": 80}}, "securityContext": {"runAsUser": -1}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "x"}]}}));
        check(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "AAEC/w==", "empty": ""}, "type": "Opaque"}));
        check(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "spec": {"renewTime": "2026-01-02T03:04:05.123456Z"}}));
        check(json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 0, "data": {"any": [1, "x"]}}));
        check(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview",
            "status": {"userInfo": {"username": "u", "extra": {"k": ["a", "b"]}}}}));
        check(json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"},
            "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}));
        check(json!({"apiVersion": "v1", "kind": "Status", "code": 404, "reason": "NotFound"}));
        check(json!({"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": "u"}}));
    }

    #[test]
    fn drops_gos_zero_values_where_they_mean_absence() {
        // What a Go client sends: every field that is no pointer, also the empty ones.
        let mut spec = Vec::new();
        wire::put_bytes(&mut spec, 16, b"");
        wire::put_varint_field(&mut spec, 11, 0);
        wire::put_varint_field(&mut spec, 4, 0);
        let mut raw = Vec::new();
        wire::put_bytes(&mut raw, 2, &spec);
        let bytes = encode::envelope("v1", "Pod", &raw);
        let object = decode(&bytes, None).unwrap();
        assert_eq!(object.get("spec"), Some(&json!({"terminationGracePeriodSeconds": 0})));
    }

    #[test]
    fn refuses_what_it_cannot_write_or_read() {
        let object = Object::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"hostPID": 1}})).unwrap();
        assert!(encode(&object).unwrap_err().to_string().starts_with("spec.hostPID"));
        let object = Object::from_value(json!({"apiVersion": "x/v1", "kind": "Odd"})).unwrap();
        assert!(matches!(encode(&object), Err(Error::UnknownKind { .. })));
        assert!(matches!(decode(b"{}", None), Err(Error::Magic)));
        assert!(matches!(decode(b"k8s\0\x0a\xff", None), Err(Error::Truncated)));
    }

    #[test]
    fn objects_within_objects_are_no_way_around_the_depth() {
        let mut bytes = encode::envelope("apps/v1", "ControllerRevision", b"");
        for _ in 0..10_000 {
            let (mut extension, mut raw) = (Vec::new(), Vec::new());
            wire::put_bytes(&mut extension, 1, &bytes);
            wire::put_bytes(&mut raw, 2, &extension);
            bytes = encode::envelope("apps/v1", "ControllerRevision", &raw);
        }
        assert!(matches!(decode(&bytes, None), Err(Error::Depth { .. })));
        let nested = format!("{}1{}", "[".repeat(126), "]".repeat(126));
        let (mut extension, mut raw) = (Vec::new(), Vec::new());
        wire::put_bytes(&mut extension, 1, nested.as_bytes());
        wire::put_bytes(&mut raw, 2, &extension);
        let bytes = encode::envelope("apps/v1", "ControllerRevision", &raw);
        assert!(matches!(decode(&bytes, None), Err(Error::Budget(budget::Exceeded::Depth))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let enveloped = encode::envelope("v1", "Pod", &bytes);
            let _any = decode(&enveloped, None);
            let mut magic = MAGIC.to_vec();
            magic.extend(&bytes);
            let _any = decode(&magic, Some(("v1", "Pod")));
        }

        #[test]
        fn strings_and_numbers_round_trip(name in "\\PC{0,40}", number in any::<i64>(), small in any::<i32>()) {
            let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {name.clone(): name}},
                "spec": {"activeDeadlineSeconds": number, "priority": small}});
            let object = Object::from_value(value).unwrap();
            prop_assert_eq!(decode(&encode(&object).unwrap(), None).unwrap(), object);
        }
    }
}
