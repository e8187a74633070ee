//! An object's bytes: stored without a resourceVersion (it is known only after the write), served with one spliced in.
//!
//! Invariant: stored bytes begin with apiVersion, kind, metadata in that order, so that the first `"metadata":{` is the object's own.

use bytes::{BufMut, Bytes, BytesMut};
use control_plane_api::Object;
use control_plane_store::Revision;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

const METADATA: &[u8] = b"\"metadata\":{";

/// Writes the object in the stored order, leaving out its resourceVersion.
struct Stored<'a>(&'a Object);

struct Metadata<'a>(&'a Map<String, Value>);

impl Serialize for Stored<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let map = self.0.as_map();
        let mut out = serializer.serialize_map(None)?;
        out.serialize_entry("apiVersion", self.0.api_version())?;
        out.serialize_entry("kind", self.0.kind())?;
        if let Some(metadata) = self.0.metadata() {
            out.serialize_entry("metadata", &Metadata(metadata))?;
        }
        for (key, value) in map {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                out.serialize_entry(key, value)?;
            }
        }
        out.end()
    }
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(None)?;
        for (key, value) in self.0 {
            if key != "resourceVersion" {
                out.serialize_entry(key, value)?;
            }
        }
        out.end()
    }
}

/// The bytes to store.
pub(crate) fn stored(object: &Object) -> Bytes {
    Bytes::from(serde_json::to_vec(&Stored(object)).expect("a map of JSON values always encodes"))
}

/// Stored bytes as they are served at a revision.
pub(crate) fn served(stored: &[u8], revision: Revision) -> Bytes {
    let Some(at) = metadata_start(stored) else { return Bytes::copy_from_slice(stored) };
    let (head, tail) = stored.split_at(at);
    let mut out = BytesMut::with_capacity(stored.len() + 48);
    out.put_slice(head);
    splice(&mut out, revision, tail);
    out.freeze()
}

fn splice(out: &mut BytesMut, revision: Revision, tail: &[u8]) {
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    out.put_slice(if tail.first() == Some(&b'}') { b"\"" } else { b"\"," });
    out.put_slice(tail);
}

/// Served bytes with another revision in place of the one they carry: what a deletion tells.
pub(crate) fn reserved(bytes: &[u8], revision: Revision) -> Bytes {
    const FIELD: &[u8] = b"\"resourceVersion\":\"";
    let Some(at) = metadata_start(bytes) else { return Bytes::copy_from_slice(bytes) };
    let (head, tail) = bytes.split_at(at);
    let Some(value) = tail.strip_prefix(FIELD) else { return served(bytes, revision) };
    let end = value.iter().position(|byte| *byte == b'"').map_or(value.len(), |end| end + 1);
    let rest = value.get(end..).unwrap_or_default();
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    out.put_slice(head);
    splice(&mut out, revision, rest.strip_prefix(b",").unwrap_or(rest));
    out.freeze()
}

fn metadata_start(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(METADATA.len()).position(|window| window == METADATA)?;
    Some(at + METADATA.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn splices_the_revision_where_it_belongs() {
        let object = Object::from_value(json!({
            "data": {"x": "\"metadata\":{", "metadata": {"a": "b"}}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "n", "resourceVersion": "old"},
        }))
        .unwrap();
        let bytes = stored(&object);
        let check = |bytes: &[u8], expect: &str| {
            let value: Value = serde_json::from_slice(bytes).unwrap();
            assert_eq!(value["metadata"], json!({"name": "n", "resourceVersion": expect}));
            assert_eq!(value["data"], object.to_value()["data"]);
        };
        assert!(!String::from_utf8_lossy(&bytes).contains("old"));
        let first = served(&bytes, Revision(7));
        check(&first, "7");
        check(&reserved(&first, Revision(1234)), "1234");
        check(&reserved(&bytes, Revision(5)), "5");
        let empty = Object::from_value(json!({"apiVersion": "v1", "kind": "X", "metadata": {}})).unwrap();
        let bytes = reserved(&served(&stored(&empty), Revision(1)), Revision(2));
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["metadata"], json!({"resourceVersion": "2"}));
    }
}
