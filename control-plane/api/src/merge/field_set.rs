//! A set of field paths, as `managedFields` keeps it, with its FieldsV1 JSON form.
//!
//! A trie by path element in FieldsV1's own spelling: `f:name`, `k:{"name":"a"}`, `v:1`. A node is a member when its own
//! path is in the set. Invariant: a node without members below is not kept.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths, or the part of one below some path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// The path that leads here is itself in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

/// The element of a struct's field or a map's key.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The element of a list's item by its keys.
pub fn keyed(keys: &Map<String, Value>) -> String {
    format!("k:{}", Value::Object(keys.clone()))
}

/// The element of a set's item.
pub fn valued(value: &Value) -> String {
    format!("v:{value}")
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub fn from_value(value: &Value) -> Self {
        let mut set = Self::default();
        for (key, below) in value.as_object().into_iter().flatten() {
            if key == "." {
                set.member = true;
                continue;
            }
            let mut child = Self::from_value(below);
            // An empty map is the path itself.
            child.member |= child.children.is_empty();
            set.children.insert(canonical(key), child);
        }
        set
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_value());
        }
        Value::Object(map)
    }

    pub fn insert(&mut self, path: &[String]) {
        let mut node = self;
        for element in path {
            node = node.children.entry(element.clone()).or_default();
        }
        node.member = true;
    }

    pub fn child(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.absorb(other);
        union
    }

    pub fn absorb(&mut self, other: &Self) {
        self.member |= other.member;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().absorb(child);
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(key, child)| {
            let both = child.intersection(other.children.get(key)?);
            (!both.is_empty()).then(|| (key.clone(), both))
        });
        Self { member: self.member && other.member, children: children.collect() }
    }

    /// The members of this set that are not members of the other.
    pub fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(key, child)| {
            let left = match other.children.get(key) {
                Some(other) => child.difference(other),
                None => child.clone(),
            };
            (!left.is_empty()).then(|| (key.clone(), left))
        });
        Self { member: self.member && !other.member, children: children.collect() }
    }

    /// Drops the node at `path` with all below.
    pub fn remove_tree(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.children.remove(*first);
        } else if let Some(child) = self.children.get_mut(*first) {
            child.remove_tree(rest);
            if child.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// Drops the path itself and keeps what is below.
    pub fn remove_member(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            self.member = false;
            return;
        };
        if let Some(child) = self.children.get_mut(*first) {
            child.remove_member(rest);
            if child.is_empty() {
                self.children.remove(*first);
            }
        }
    }

    /// Every member as people read it: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: String, paths: &mut Vec<String>) {
        for (key, child) in &self.children {
            child.collect(format!("{path}{}", readable(key)), paths);
        }
        if self.member {
            paths.push(path);
        }
    }
}

/// Keys compare by value, so their JSON is written anew: `k:{ "b":1,"a":2 }` is `k:{"a":2,"b":1}`.
fn canonical(key: &str) -> String {
    let Some((kind @ ("k" | "v"), json)) = key.split_once(':') else { return key.to_owned() };
    match serde_json::from_str::<Value>(json) {
        Ok(value) => format!("{kind}:{value}"),
        Err(_) => key.to_owned(),
    }
}

fn readable(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let list: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", list.join(","))
        }
        _ => format!("[{key}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes_fields_v1() {
        let value = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers":
            {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}, "f:finalizers": {"v:\"x\"": {}}}});
        let set = FieldSet::from_value(&value);
        assert_eq!(set.to_value(), value);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels.a",
                ".metadata.labels",
                ".spec.containers[name=\"c\"].image",
                ".spec.containers[name=\"c\"]",
                ".spec.finalizers[=\"x\"]"
            ]
        );
    }

    #[test]
    fn set_algebra_works_on_members() {
        let a = FieldSet::from_value(&json!({"f:x": {".": {}, "f:y": {}}, "f:z": {}}));
        let b = FieldSet::from_value(&json!({"f:x": {"f:y": {}}}));
        assert_eq!(a.difference(&b).to_value(), json!({"f:x": {}, "f:z": {}}));
        assert_eq!(a.intersection(&b), b);
        assert_eq!(a.difference(&b).union(&b), a);
        assert!(a.difference(&a).is_empty());
    }
}
