//! Namespaces that are being deleted: everything in them goes first, then the namespace.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::ApiResource;

use crate::action::{Action, Plan};
use crate::cache::Key;
use crate::garbage::{Graph, resource_of};
use crate::runner::Controller;
use crate::world::{Changed, World};

/// The finalizer in `spec.finalizers` that this controller answers for.
const FINALIZER: &str = "kubernetes";

pub(crate) struct Namespaces {
    pub graph: Arc<Graph>,
    /// Uids of namespaces whose content was asked to go. After a restart it is asked again, which does no harm.
    pub swept: Mutex<HashSet<String>>,
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace-controller";

    fn keys(&self, _world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Namespace(change) => change.after.iter().map(|namespace| Key::of(namespace.as_ref())).collect(),
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let Some(namespace) = world.namespaces.get(key) else { return Plan::default() };
        let is_leaving = namespace.metadata.deletion_timestamp.is_some();
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_swept = is_leaving && !swept.insert(namespace.uid().unwrap_or_default());
        plan(&namespace, is_swept, self.graph.count_in(&key.name)).into()
    }
}

fn plan(namespace: &Namespace, is_swept: bool, left: usize) -> Vec<Action> {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    let is_ours = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if namespace.metadata.deletion_timestamp.is_none() || !is_ours {
        return Vec::new();
    }
    let name = namespace.name_any();
    if !is_swept {
        let delete =
            |resource: ApiResource| Action::DeleteCollection { resource: Box::new(resource), namespace: name.clone() };
        return contents().map(delete).collect();
    }
    if left > 0 {
        return Vec::new();
    }
    let mut finalized = namespace.clone();
    let others = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
    finalized.spec.get_or_insert_default().finalizers = Some(others);
    let Ok(mut body) = serde_json::to_value(&finalized) else { return Vec::new() };
    body["apiVersion"] = "v1".into();
    body["kind"] = "Namespace".into();
    vec![Action::Finalize { name, body, only_if_empty: contents().collect() }]
}

/// Every kind that lives in a namespace and can be deleted; pods first, since they take longest.
fn contents() -> impl Iterator<Item = ApiResource> {
    let mut rows: Vec<_> = control_plane_api::rows()
        .iter()
        .filter(|row| {
            row.namespaced && row.has_verb("deletecollection") && row.storage_api_version() == row.api_version()
        })
        .collect();
    rows.sort_by_key(|row| row.resource != "pods");
    rows.into_iter().map(resource_of)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plans() {
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"finalizers": ["kubernetes", "mine"]}}))
        .unwrap();
        let sweep = plan(&namespace, false, 3);
        let Some(Action::DeleteCollection { resource, .. }) = sweep.first() else { panic!("{sweep:?}") };
        assert_eq!(resource.plural, "pods");
        assert!(sweep.len() > 10);
        assert_eq!(plan(&namespace, true, 3), []);
        let finalize = plan(&namespace, true, 0);
        let [Action::Finalize { body, .. }] = finalize.as_slice() else { panic!("{finalize:?}") };
        assert_eq!(body["spec"]["finalizers"], json!(["mine"]), "others' finalizers stay");
    }
}
