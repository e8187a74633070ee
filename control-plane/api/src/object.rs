//! The untyped object: a JSON map with typed access to its metadata.
//!
//! It knows `apiVersion`, `kind` and `metadata`; the rest is the business of rows, defaults and validation.
//! Invariant: what was put in comes out, field by field, in any case this room does not name.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A Kubernetes object of any kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(Map<String, Value>);

/// Why bytes or a value are no object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is not valid JSON")]
    Syntax(#[source] serde_json::Error),
    #[error("an object must be a JSON object, not {found}; send one with apiVersion and kind")]
    NotAnObject { found: &'static str },
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// The JSON name of a value's type, as error messages spell it.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Follows `path` through nested maps. Lists are not entered.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

impl Object {
    pub fn new(api_version: &str, kind: &str) -> Self {
        let mut map = Map::new();
        map.insert("apiVersion".into(), api_version.into());
        map.insert("kind".into(), kind.into());
        Self(map)
    }

    pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_value(serde_json::from_slice(bytes).map_err(Error::Syntax)?)
    }

    pub fn from_value(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(Error::NotAnObject { found: type_name(&other) }),
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("a map of JSON values always encodes")
    }

    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    pub fn as_map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The value under nested keys: `["spec", "replicas"]`.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        at(self.0.get(*first)?, rest)
    }

    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path)?.as_i64()
    }

    pub fn bool_at(&self, path: &[&str]) -> Option<bool> {
        self.at(path)?.as_bool()
    }

    pub fn list_at(&self, path: &[&str]) -> &[Value] {
        self.at(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Sets the value under nested keys, making the maps on the way. A non-map on the way is replaced.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut map = &mut self.0;
        for key in parents {
            map = map_entry(map, key);
        }
        map.insert((*last).into(), value.into());
    }

    /// Removes the value under nested keys, and returns it.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut map = &mut self.0;
        for key in parents {
            map = map.get_mut(*key)?.as_object_mut()?;
        }
        map.remove(*last)
    }

    /// Replaces the value under `key` by the one in `other`, or removes it when `other` has none.
    pub fn copy_from(&mut self, key: &str, other: &Object) {
        match other.0.get(key) {
            Some(value) => self.0.insert(key.into(), value.clone()),
            None => self.0.remove(key),
        };
    }

    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"]).unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.str_at(&["kind"]).unwrap_or_default()
    }

    pub fn set_type(&mut self, api_version: &str, kind: &str) {
        self.set(&["apiVersion"], api_version);
        self.set(&["kind"], kind);
    }

    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.0.get("metadata")?.as_object()
    }

    /// The metadata map, made when missing.
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        map_entry(&mut self.0, "metadata")
    }

    fn meta_str(&self, key: &str) -> Option<&str> {
        self.metadata()?.get(key)?.as_str()
    }

    pub fn name(&self) -> &str {
        self.meta_str("name").unwrap_or_default()
    }

    pub fn set_name(&mut self, name: &str) {
        self.metadata_mut().insert("name".into(), name.into());
    }

    pub fn generate_name(&self) -> &str {
        self.meta_str("generateName").unwrap_or_default()
    }

    /// The namespace; empty for a cluster-wide object or when it was left out.
    pub fn namespace(&self) -> &str {
        self.meta_str("namespace").unwrap_or_default()
    }

    pub fn set_namespace(&mut self, namespace: &str) {
        self.metadata_mut().insert("namespace".into(), namespace.into());
    }

    pub fn uid(&self) -> &str {
        self.meta_str("uid").unwrap_or_default()
    }

    pub fn set_uid(&mut self, uid: &str) {
        self.metadata_mut().insert("uid".into(), uid.into());
    }

    /// The resource version as written; empty when absent.
    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion").unwrap_or_default()
    }

    pub fn set_resource_version(&mut self, revision: u64) {
        self.metadata_mut().insert("resourceVersion".into(), revision.to_string().into());
    }

    pub fn generation(&self) -> i64 {
        self.metadata().and_then(|meta| meta.get("generation")).and_then(Value::as_i64).unwrap_or(0)
    }

    pub fn set_generation(&mut self, generation: i64) {
        self.metadata_mut().insert("generation".into(), generation.into());
    }

    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        self.meta_str("creationTimestamp")?.parse().ok()
    }

    pub fn set_creation_timestamp(&mut self, now: Timestamp) {
        self.metadata_mut().insert("creationTimestamp".into(), rfc3339(now).into());
    }

    pub fn deletion_timestamp(&self) -> Option<Timestamp> {
        self.meta_str("deletionTimestamp")?.parse().ok()
    }

    pub fn is_deleting(&self) -> bool {
        self.meta_str("deletionTimestamp").is_some()
    }

    pub fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.metadata()?.get("deletionGracePeriodSeconds")?.as_i64()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("labels")?.get(key)?.as_str()
    }

    /// The labels; values that are no strings are left out (validation refuses them before they are stored).
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.string_map("labels")
    }

    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.string_map("annotations")
    }

    fn string_map(&self, key: &str) -> impl Iterator<Item = (&str, &str)> {
        let map = self.metadata().and_then(|meta| meta.get(key)).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("annotations")?.get(key)?.as_str()
    }

    pub fn set_annotation(&mut self, key: &str, value: &str) {
        map_entry(self.metadata_mut(), "annotations").insert(key.into(), value.into());
    }

    pub fn set_label(&mut self, key: &str, value: &str) {
        map_entry(self.metadata_mut(), "labels").insert(key.into(), value.into());
    }

    pub fn finalizers(&self) -> Vec<&str> {
        self.list_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect()
    }

    /// Sets the finalizers; an empty list removes the field, as upstream's omitempty does.
    pub fn set_finalizers(&mut self, finalizers: &[&str]) {
        let meta = self.metadata_mut();
        if finalizers.is_empty() {
            meta.remove("finalizers");
        } else {
            meta.insert("finalizers".into(), finalizers.iter().map(|name| Value::from(*name)).collect());
        }
    }

    /// Owner references that parse; validation refuses the others before they are stored.
    pub fn owner_references(&self) -> Vec<OwnerReference> {
        let list = self.list_at(&["metadata", "ownerReferences"]);
        list.iter().filter_map(|reference| OwnerReference::deserialize(reference).ok()).collect()
    }

    pub fn controller(&self) -> Option<OwnerReference> {
        self.owner_references().into_iter().find(|reference| reference.controller == Some(true))
    }

    /// The entries of `metadata.managedFields`, as they stand.
    pub fn managed_fields(&self) -> &[Value] {
        self.list_at(&["metadata", "managedFields"])
    }

    pub fn set_managed_fields(&mut self, entries: Vec<Value>) {
        let meta = self.metadata_mut();
        if entries.is_empty() {
            meta.remove("managedFields");
        } else {
            meta.insert("managedFields".into(), entries.into());
        }
    }
}

/// The map under `key`, made when missing or when something else stands there.
pub fn map_entry<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("just made a map")
}

/// A time as Kubernetes writes it: UTC, whole seconds.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A MicroTime as Kubernetes writes it: UTC, six digits.
pub fn rfc3339_micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keeps_what_it_does_not_know_and_reads_metadata() {
        let source = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"x": "y"}, "finalizers": ["f"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true}]},
            "strange": [1, {"deep": null}]});
        let object = Object::from_value(source.clone()).unwrap();
        assert_eq!((object.name(), object.generation(), object.label("x")), ("a", 3, Some("y")));
        assert_eq!(object.finalizers(), ["f"]);
        assert_eq!(object.controller().unwrap().uid, "u");
        assert_eq!(rfc3339(object.creation_timestamp().unwrap()), "2026-01-02T03:04:05Z");
        assert_eq!(serde_json::from_slice::<Value>(&object.to_vec()).unwrap(), source);
    }

    #[test]
    fn sets_and_removes_nested_values() {
        let mut object = Object::new("v1", "Pod");
        object.set(&["spec", "a", "b"], 1);
        assert_eq!(object.i64_at(&["spec", "a", "b"]), Some(1));
        assert_eq!(object.remove(&["spec", "a", "b"]), Some(json!(1)));
        assert_eq!(object.remove(&["spec", "none", "b"]), None);
        assert!(Object::from_slice(b"[1]").is_err());
    }

    #[test]
    fn writes_micro_times_with_six_digits() {
        let time: Timestamp = "2026-01-02T03:04:05.12Z".parse().unwrap();
        assert_eq!(rfc3339_micro(time), "2026-01-02T03:04:05.120000Z");
    }
}
