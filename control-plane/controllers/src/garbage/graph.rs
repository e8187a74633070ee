//! Every object's metadata: who owns whom, what is in which namespace, and who is to be looked at.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::ApiResource;

use super::plan::{self, OwnerState, Step};
use crate::queue::Queue;

/// Room that a map keeps beyond four times what it holds.
const SLACK: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owner {
    pub uid: String,
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub is_blocking: bool,
    pub reference: OwnerReference,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Which list it came from.
    pub list: usize,
    pub resource: Arc<ApiResource>,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub resource_version: String,
    pub owners: Vec<Owner>,
    pub finalizers: Vec<String>,
    pub is_deleting: bool,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    dependents: HashMap<String, BTreeSet<String>>,
    per_namespace: HashMap<String, usize>,
    resources: HashMap<usize, Arc<ApiResource>>,
    /// Uids seen in a list that is under way.
    listing: HashMap<usize, HashSet<String>>,
    listed_once: HashSet<usize>,
    absent: HashSet<String>,
    /// Found by asking, not yet shown by a watch.
    present: HashSet<String>,
}

#[derive(Default)]
pub(crate) struct Graph {
    state: Mutex<State>,
    /// Uids to look at.
    suspects: Queue<String>,
}

impl Graph {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one call: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many objects are known in a namespace, events aside.
    #[cfg(test)]
    fn count_in(&self, namespace: &str) -> usize {
        self.state().per_namespace.get(namespace).copied().unwrap_or(0)
    }

    pub(super) fn begin_list(&self, list: usize) {
        self.state().listing.insert(list, HashSet::new());
    }

    /// Whether it was the list's first time, and the namespaces that lost objects meanwhile.
    pub(super) fn end_list(&self, list: usize) -> (bool, Vec<String>) {
        let mut state = self.state();
        let seen = state.listing.remove(&list).unwrap_or_default();
        let gone: Vec<String> = state
            .entries
            .values()
            .filter(|entry| entry.list == list && !seen.contains(&entry.uid))
            .map(|entry| entry.uid.clone())
            .collect();
        let touched = gone.iter().flat_map(|uid| state.remove(uid, &self.suspects)).collect();
        state.shrink();
        (state.listed_once.insert(list), touched)
    }

    /// Returns the namespace if it lost an object: never here, but the shape is `remove`'s.
    pub(super) fn upsert(
        &self,
        list: usize,
        resource: &ApiResource,
        metadata: &ObjectMeta,
        is_listing: bool,
    ) -> Vec<String> {
        let mut state = self.state();
        let resource = Arc::clone(state.resources.entry(list).or_insert_with(|| Arc::new(resource.clone())));
        let Some(entry) = entry(list, resource, metadata) else { return Vec::new() };
        if is_listing {
            state.listing.entry(list).or_default().insert(entry.uid.clone());
        }
        state.upsert(&entry, &self.suspects);
        Vec::new()
    }

    pub(super) fn remove(&self, uid: &str) -> Vec<String> {
        let mut state = self.state();
        let touched = state.remove(uid, &self.suspects).into_iter().collect();
        state.shrink();
        touched
    }

    pub(super) fn suspects(&self) -> &Queue<String> {
        &self.suspects
    }

    pub(super) fn step(&self, uid: &str) -> Option<Step> {
        let state = self.state();
        let entry = state.entries.get(uid)?;
        let dependents: Vec<(&str, &Entry)> = state
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|dependent| state.entries.get(dependent).map(|entry| (dependent.as_str(), entry)))
            .collect();
        plan::step(entry, |owner| state.owner_state(entry, owner), &dependents)
    }

    pub(super) fn note_absent(&self, owner: &str) {
        let mut state = self.state();
        state.absent.insert(owner.to_owned());
        state.suspect_dependents(owner, &self.suspects);
    }

    pub(super) fn note_present(&self, owner: &str) {
        let mut state = self.state();
        state.present.insert(owner.to_owned());
        state.suspect_dependents(owner, &self.suspects);
    }
}

impl State {
    fn owner_state(&self, entry: &Entry, owner: &Owner) -> OwnerState {
        match self.entries.get(&owner.uid) {
            // Who has a namespace owns within it. Outside it the reference means nobody, as upstream looks it up.
            Some(found) if !found.namespace.is_empty() && found.namespace != entry.namespace => {
                if entry.namespace.is_empty() { OwnerState::Solid } else { OwnerState::Absent }
            }
            Some(found) if plan::is_waiting(found) => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
            None if self.absent.contains(&owner.uid) => OwnerState::Absent,
            None if self.present.contains(&owner.uid) => OwnerState::Solid,
            None => OwnerState::Unknown,
        }
    }

    fn suspect_dependents(&self, uid: &str, suspects: &Queue<String>) {
        self.dependents.get(uid).into_iter().flatten().for_each(|dependent| suspects.push(dependent.clone()));
    }

    /// What a burst has taken is given back.
    fn shrink(&mut self) {
        let is_wide = |capacity: usize, len: usize| capacity > len.saturating_mul(4).saturating_add(SLACK);
        if is_wide(self.entries.capacity(), self.entries.len()) {
            self.entries.shrink_to_fit();
        }
        if is_wide(self.dependents.capacity(), self.dependents.len()) {
            self.dependents.shrink_to_fit();
        }
        if is_wide(self.absent.capacity(), self.absent.len()) {
            self.absent.shrink_to_fit();
        }
    }

    fn upsert(&mut self, entry: &Entry, suspects: &Queue<String>) {
        let uid = entry.uid.clone();
        self.absent.remove(&uid);
        self.present.remove(&uid);
        let before = self.entries.insert(uid.clone(), entry.clone());
        match &before {
            Some(before) => {
                for owner in &before.owners {
                    self.unlink(&owner.uid, &uid);
                }
            }
            None if !entry.namespace.is_empty() => {
                *self.per_namespace.entry(entry.namespace.clone()).or_insert(0usize) += 1
            }
            None => {}
        }
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let starts_leaving = entry.is_deleting && before.as_ref().is_none_or(|before| !before.is_deleting);
        if entry.is_deleting || !entry.owners.is_empty() {
            suspects.push(uid.clone());
        }
        if starts_leaving {
            self.suspect_dependents(&uid, suspects);
        }
        // An owner that waits for this one, or that this one was taken from, has to be looked at.
        let owners: Vec<String> = entry
            .owners
            .iter()
            .chain(before.iter().flat_map(|before| &before.owners))
            .map(|owner| owner.uid.clone())
            .collect();
        self.suspect_leaving(owners, suspects);
    }

    fn suspect_leaving(&self, owners: Vec<String>, suspects: &Queue<String>) {
        for owner in owners {
            if self.entries.get(&owner).is_some_and(|entry| entry.is_deleting) {
                suspects.push(owner);
            }
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
                // Nobody asks for this owner any more.
                self.absent.remove(owner);
                self.present.remove(owner);
            }
        }
    }

    fn remove(&mut self, uid: &str, suspects: &Queue<String>) -> Option<String> {
        let entry = self.entries.remove(uid)?;
        suspects.remove(&entry.uid);
        if self.dependents.contains_key(uid) {
            // The watch itself has said that it is gone.
            self.absent.insert(uid.to_owned());
            self.suspect_dependents(uid, suspects);
        }
        for owner in &entry.owners {
            self.unlink(&owner.uid, uid);
        }
        self.suspect_leaving(entry.owners.iter().map(|owner| owner.uid.clone()).collect(), suspects);
        if entry.namespace.is_empty() {
            return None;
        }
        if let Some(count) = self.per_namespace.get_mut(&entry.namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_namespace.remove(&entry.namespace);
                return Some(entry.namespace);
            }
        }
        None
    }
}

fn entry(list: usize, resource: Arc<ApiResource>, metadata: &ObjectMeta) -> Option<Entry> {
    let owner = |reference: &OwnerReference| Owner {
        uid: reference.uid.clone(),
        api_version: reference.api_version.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        is_blocking: reference.block_owner_deletion == Some(true),
        reference: reference.clone(),
    };
    Some(Entry {
        list,
        resource,
        uid: metadata.uid.clone()?,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone()?,
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        owners: metadata.owner_references.iter().flatten().map(owner).collect(),
        finalizers: metadata.finalizers.clone().unwrap_or_default(),
        is_deleting: metadata.deletion_timestamp.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::action::{Action, Propagation};

    fn resource() -> ApiResource {
        super::super::resource_of(control_plane_api::row_for_kind("apps", "v1", "ReplicaSet").unwrap())
    }

    fn put(graph: &Graph, uid: &str, owners: &[&str], extra: Value) {
        let owners: Vec<Value> = owners
            .iter()
            .map(|owner| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "blockOwnerDeletion": true}))
            .collect();
        let mut metadata =
            json!({"namespace": "d", "name": uid, "uid": uid, "resourceVersion": "1", "ownerReferences": owners});
        for (key, value) in extra.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        graph.upsert(0, &resource(), &serde_json::from_value(metadata).unwrap(), false);
    }

    /// All steps that are due now, as words.
    fn steps(graph: &Graph) -> Vec<String> {
        let mut steps = Vec::new();
        while let Some(uid) = graph.suspects().next(tokio::time::Instant::now()) {
            graph.suspects().done(&uid);
            match graph.step(&uid) {
                Some(Step::Ask { owner_uid, .. }) => steps.push(format!("ask {owner_uid}")),
                Some(Step::Act(actions)) => steps.extend(actions.iter().map(|action| match action {
                    Action::DeleteAny { name, how: Propagation::Foreground, .. } => {
                        format!("delete {name} in the foreground")
                    }
                    Action::DeleteAny { name, .. } => format!("delete {name}"),
                    Action::PatchAny { name, patch, .. } => {
                        let metadata = &patch["metadata"];
                        let list = metadata.get("finalizers").or(metadata.get("ownerReferences")).unwrap();
                        format!("leave {name} {} of its list", list.as_array().unwrap().len())
                    }
                    other => format!("{other:?}"),
                })),
                None => {}
            }
        }
        steps
    }

    const LEAVING: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn background() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &["a"], json!({}));
        assert_eq!(steps(&graph), [""; 0]);
        graph.remove("a");
        assert_eq!(steps(&graph), ["delete b"]);
    }

    #[test]
    fn an_unknown_owner_is_asked_for_first() {
        let graph = Graph::default();
        put(&graph, "b", &["a"], json!({}));
        assert_eq!(steps(&graph), ["ask a"]);
        graph.note_present("a");
        assert_eq!(steps(&graph), [""; 0]);
        put(&graph, "c", &["x"], json!({}));
        assert_eq!(steps(&graph), ["ask x"]);
        graph.note_absent("x");
        assert_eq!(steps(&graph), ["delete c"]);
    }

    #[test]
    fn foreground() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &["a"], json!({}));
        put(&graph, "c", &["b"], json!({}));
        steps(&graph);
        put(&graph, "a", &[], json!({"deletionTimestamp": LEAVING, "finalizers": ["foregroundDeletion"]}));
        assert_eq!(steps(&graph), ["delete b in the foreground"]);
        put(&graph, "b", &["a"], json!({"deletionTimestamp": LEAVING, "finalizers": ["foregroundDeletion"]}));
        assert_eq!(steps(&graph), ["delete c"]);
        graph.remove("c");
        assert_eq!(steps(&graph), ["leave b 0 of its list"]);
        graph.remove("b");
        assert_eq!(steps(&graph), ["leave a 0 of its list"]);
    }

    #[test]
    fn a_circle_of_owners_does_not_wait_for_itself() {
        let graph = Graph::default();
        let waiting = json!({"deletionTimestamp": LEAVING, "finalizers": ["foregroundDeletion"]});
        put(&graph, "a", &["b"], json!({}));
        put(&graph, "b", &["a"], json!({}));
        steps(&graph);
        put(&graph, "a", &["b"], waiting.clone());
        assert_eq!(steps(&graph), ["leave b 1 of its list"], "it blocks nobody any more");
        let unblocked = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "a", "blockOwnerDeletion": false}]);
        put(&graph, "b", &[], json!({"ownerReferences": unblocked}));
        assert_eq!(steps(&graph), ["delete b in the foreground", "leave a 0 of its list"]);
        graph.remove("a");
        let mut ending = waiting;
        ending["ownerReferences"] = unblocked;
        put(&graph, "b", &[], ending);
        assert_eq!(steps(&graph), ["leave b 0 of its list"]);
    }

    #[test]
    fn who_has_a_namespace_owns_within_it() {
        let graph = Graph::default();
        let node = super::super::resource_of(control_plane_api::row_for_kind("", "v1", "Node").unwrap());
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "gone"}]);
        let forged = json!({"name": "n", "uid": "n", "resourceVersion": "1", "ownerReferences": owner});
        graph.upsert(1, &node, &serde_json::from_value(forged).unwrap(), false);
        assert_eq!(
            steps(&graph),
            [""; 0],
            "a node is not asked for an owner in no namespace, nor deleted for its sake"
        );
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &["a"], json!({"namespace": "other"}));
        assert_eq!(steps(&graph), ["delete b"], "as upstream: in its own namespace there is no such owner");
    }

    #[test]
    fn a_failure_waits_longer_each_time() {
        let graph = Graph::default();
        let now = tokio::time::Instant::now();
        put(&graph, "b", &["a"], json!({}));
        for failures in 1..4 {
            let due = graph.suspects().due().unwrap_or(now);
            assert_eq!(graph.suspects().next(due).as_deref(), Some("b"));
            assert_eq!(graph.suspects().push_after_failure("b".into(), now), failures);
            graph.suspects().done(&"b".to_owned());
        }
    }

    #[test]
    fn orphan() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &["a"], json!({}));
        steps(&graph);
        put(&graph, "a", &[], json!({"deletionTimestamp": LEAVING, "finalizers": ["orphan"]}));
        assert_eq!(steps(&graph), ["leave b 0 of its list"]);
        put(&graph, "b", &[], json!({}));
        assert_eq!(steps(&graph), ["leave a 0 of its list"]);
        graph.remove("a");
        assert_eq!(steps(&graph), [""; 0], "the orphan stays");
    }

    #[test]
    fn one_of_two_owners_is_enough() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &[], json!({}));
        put(&graph, "c", &["a", "b"], json!({}));
        graph.remove("a");
        assert_eq!(steps(&graph), ["leave c 1 of its list"]);
    }

    #[test]
    fn namespaces_are_counted() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        put(&graph, "b", &[], json!({}));
        put(&graph, "b", &[], json!({}));
        assert_eq!(graph.count_in("d"), 2);
        assert_eq!(graph.remove("a"), [""; 0]);
        assert_eq!(graph.remove("b"), ["d"]);
        assert_eq!(graph.count_in("d"), 0);
    }

    #[test]
    fn a_new_list_forgets_what_is_gone() {
        let graph = Graph::default();
        put(&graph, "a", &[], json!({}));
        graph.begin_list(0);
        assert_eq!(graph.end_list(0), (true, vec!["d".to_owned()]));
        assert_eq!(graph.count_in("d"), 0);
    }
}
