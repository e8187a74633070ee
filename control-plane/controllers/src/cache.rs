//! Objects of one kind as last seen, by the watch or in the answer to our own write, whichever is newer.
//!
//! A controller that has just created a pod sees it in its next plan, whether or not the watch has shown it: no object is
//! created twice for a slow watch. What we deleted is remembered by uid until the watch confirms it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;

/// Namespace and name; the namespace is empty for cluster-wide kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of<K: ResourceExt>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            formatter.write_str(&self.name)
        } else {
            write!(formatter, "{}/{}", self.namespace, self.name)
        }
    }
}

#[derive(Debug)]
struct State<K> {
    namespaces: HashMap<String, BTreeMap<String, Arc<K>>>,
    deleted_uids: HashSet<String>,
}

#[derive(Debug)]
pub(crate) struct Cache<K>(Mutex<State<K>>);

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self(Mutex::new(State { namespaces: HashMap::new(), deleted_uids: HashSet::new() }))
    }
}

impl<K: ResourceExt> Cache<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Every change of the state is one call: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state().namespaces.get(&key.namespace)?.get(&key.name).cloned()
    }

    /// All objects of a namespace, by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.state().namespaces.get(namespace).into_iter().flat_map(|objects| objects.values().cloned()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.state().namespaces.values().flat_map(|objects| objects.values().cloned()).collect()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        let state = self.state();
        let pairs =
            state.namespaces.iter().flat_map(|(namespace, objects)| objects.keys().map(move |name| (namespace, name)));
        pairs.map(|(namespace, name)| Key::new(namespace.clone(), name.clone())).collect()
    }

    /// Takes in a newer state; the state before, and whether anything was newer.
    pub(crate) fn upsert(&self, mut object: K) -> Upserted<K> {
        // Often the larger half of an object, and nobody here reads it.
        object.meta_mut().managed_fields = None;
        let key = Key::of(&object);
        let mut state = self.state();
        if object.uid().is_some_and(|uid| state.deleted_uids.contains(&uid)) {
            return Upserted::Stale;
        }
        let objects = state.namespaces.entry(key.namespace).or_default();
        let before = objects.get(&key.name).cloned();
        if before.as_ref().is_some_and(|before| revision(before.as_ref()) >= revision(&object)) {
            return Upserted::Stale;
        }
        let object = Arc::new(object);
        objects.insert(key.name, Arc::clone(&object));
        Upserted::Newer { before, object }
    }

    /// The watch says that the object is gone.
    pub(crate) fn remove(&self, key: &Key, uid: Option<&str>) -> Option<Arc<K>> {
        let mut state = self.state();
        if let Some(uid) = uid {
            state.deleted_uids.remove(uid);
        }
        remove_if(&mut state, key, uid)
    }

    /// We deleted it for good; an older event of the watch does not bring it back.
    pub(crate) fn remove_deleted(&self, key: &Key, uid: &str) -> Option<Arc<K>> {
        let mut state = self.state();
        let removed = remove_if(&mut state, key, Some(uid));
        if removed.is_some() {
            state.deleted_uids.insert(uid.to_owned());
        }
        removed
    }

    /// After a new list, everything older than it is settled.
    pub(crate) fn forget_deleted(&self) {
        self.state().deleted_uids = HashSet::new();
    }
}

/// Room for names of namespaces that is kept beyond four times what there is.
const SLACK: usize = 64;

fn remove_if<K: ResourceExt>(state: &mut State<K>, key: &Key, uid: Option<&str>) -> Option<Arc<K>> {
    let objects = state.namespaces.get_mut(&key.namespace)?;
    let found = objects.get(&key.name)?;
    if uid.is_some() && found.uid().as_deref() != uid {
        // The name has been taken by a newer object.
        return None;
    }
    let removed = objects.remove(&key.name);
    if objects.is_empty() {
        state.namespaces.remove(&key.namespace);
        if state.namespaces.capacity() > state.namespaces.len().saturating_mul(4).saturating_add(SLACK) {
            state.namespaces.shrink_to_fit();
        }
    }
    removed
}

/// Resource versions are comparable decimal numbers (KEP-5504); what is none counts as oldest.
fn revision<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[derive(Debug)]
pub(crate) enum Upserted<K> {
    Newer { before: Option<Arc<K>>, object: Arc<K> },
    Stale,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, revision: u32) -> Pod {
        let metadata = json!({"namespace": "d", "name": "p", "uid": uid, "resourceVersion": revision.to_string()});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn newest_wins() {
        let cache = Cache::default();
        assert!(matches!(cache.upsert(pod("a", 5)), Upserted::Newer { before: None, .. }));
        assert!(matches!(cache.upsert(pod("a", 4)), Upserted::Stale), "the watch is behind our write");
        assert!(matches!(cache.upsert(pod("a", 6)), Upserted::Newer { before: Some(_), .. }));
    }

    #[test]
    fn what_we_deleted_stays_deleted() {
        let cache = Cache::default();
        let key = Key::new("d", "p");
        cache.upsert(pod("a", 5));
        assert!(cache.remove_deleted(&key, "a").is_some());
        assert!(matches!(cache.upsert(pod("a", 6)), Upserted::Stale));
        cache.upsert(pod("b", 7));
        assert!(cache.remove(&key, Some("a")).is_none(), "the name belongs to b now");
        assert_eq!(cache.get(&key).unwrap().metadata.uid.as_deref(), Some("b"));
    }
}
