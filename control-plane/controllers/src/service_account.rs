//! What every namespace has: the service account `default`, and the certificate authority to trust.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt;
use serde_json::json;

use crate::action::{Action, Part, Plan};
use crate::cache::Key;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::world::{Changed, World};

/// The ConfigMap that pods mount beside their token.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const DEFAULT: &str = "default";

pub(crate) struct ServiceAccounts {
    pub root_ca: String,
}

impl Controller for ServiceAccounts {
    const NAME: &'static str = "serviceaccount-controller";

    fn keys(&self, _world: &World, changed: &Changed) -> Vec<Key> {
        match changed {
            Changed::Namespace(change) => {
                change.latest().map(|namespace| Key::of(namespace.as_ref())).into_iter().collect()
            }
            Changed::ServiceAccount(change) if change.after.is_none() => change
                .latest()
                .and_then(|account| account.namespace())
                .map(|name| Key::new("", name))
                .into_iter()
                .collect(),
            Changed::ConfigMap(change) => {
                change.latest().and_then(|map| map.namespace()).map(|name| Key::new("", name)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let Some(namespace) = world.namespaces.get(key) else { return Plan::default() };
        let has_account = world.service_accounts.get(&Key::new(&key.name, DEFAULT)).is_some();
        plan(&namespace, has_account, world.config_maps.get(&Key::new(&key.name, ROOT_CA)).as_deref(), &self.root_ca)
            .into()
    }
}

fn plan(namespace: &Namespace, has_account: bool, config_map: Option<&ConfigMap>, root_ca: &str) -> Vec<Action> {
    if namespace.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let name = namespace.name_any();
    let mut actions = Vec::new();
    if !has_account {
        let body = json!({"metadata": {"name": DEFAULT}});
        actions.push(Action::Create { kind: Kind::ServiceAccount, namespace: name.clone(), body, announce: None });
    }
    let data = json!({"ca.crt": root_ca});
    match config_map {
        None => {
            let note = "The certificate authority of this cluster's API server, for the namespace's pods.";
            let metadata = json!({"name": ROOT_CA, "annotations": {"kubernetes.io/description": note}});
            let body = json!({"metadata": metadata, "data": data});
            actions.push(Action::Create { kind: Kind::ConfigMap, namespace: name, body, announce: None });
        }
        Some(map) if map.data.as_ref().and_then(|data| data.get("ca.crt")).map(String::as_str) != Some(root_ca) => {
            let patch = json!({"metadata": {"uid": map.uid()}, "data": data});
            actions.push(Action::Patch {
                kind: Kind::ConfigMap,
                namespace: name,
                name: ROOT_CA.into(),
                part: Part::Whole,
                patch,
            });
        }
        Some(_) => {}
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "d"}})).unwrap();
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": ROOT_CA}, "data": {"ca.crt": "old"}})).unwrap();
        assert_eq!(plan(&namespace, false, None, "ca").len(), 2);
        assert_eq!(plan(&namespace, true, Some(&map), "old"), []);
        assert!(matches!(plan(&namespace, true, Some(&map), "new").as_slice(), [Action::Patch { .. }]));
        let leaving: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))
                .unwrap();
        assert_eq!(plan(&leaving, false, None, "ca"), []);
    }
}
