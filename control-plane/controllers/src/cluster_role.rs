//! Aggregated ClusterRoles: their rules are those of the roles that their selectors match, for everybody who reads them.
//!
//! The API server's own decisions do not wait for this: its index unites the rules itself.

use std::sync::Arc;

use control_plane_api::selector::Selector;
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use serde_json::json;

use crate::action::{Action, Part, Plan};
use crate::cache::Key;
use crate::kind::Kind;
use crate::runner::Controller;
use crate::world::{Changed, World};

pub(crate) struct ClusterRoles;

impl Controller for ClusterRoles {
    const NAME: &'static str = "clusterrole-aggregation-controller";

    /// Any role may be part of any aggregated one; of these there are few.
    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        let Changed::ClusterRole(change) = changed else { return Vec::new() };
        let content = |role: &ClusterRole| (role.labels().clone(), role.rules.clone(), role.aggregation_rule.clone());
        if change.before.as_deref().map(content) == change.after.as_deref().map(content) {
            return Vec::new();
        }
        let all = world.cluster_roles.all();
        all.iter().filter(|role| role.aggregation_rule.is_some()).map(|role| Key::of(role.as_ref())).collect()
    }

    fn plan(&self, world: &World, key: &Key, _now: Timestamp) -> Plan {
        let Some(role) = world.cluster_roles.get(key) else { return Plan::default() };
        let mut all = world.cluster_roles.all();
        all.sort_by_key(|role| role.name_any());
        plan(&role, &all).into()
    }
}

/// Pure: `all` in the order of their names.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<Action> {
    let Some(rule) = &role.aggregation_rule else { return Vec::new() };
    let mut rules: Vec<&PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let Some(selector) = serde_json::to_value(selector).ok().and_then(|value| Selector::from_value(&value).ok())
        else {
            continue;
        };
        let matching = all.iter().filter(|part| {
            part.metadata.name != role.metadata.name
                && selector.matches(|key| part.labels().get(key).map(String::as_str))
        });
        for one in matching.flat_map(|part| part.rules.iter().flatten()) {
            if !rules.contains(&one) {
                rules.push(one);
            }
        }
    }
    if role.rules.iter().flatten().eq(rules.iter().copied()) {
        return Vec::new();
    }
    let metadata = json!({"uid": role.uid(), "resourceVersion": role.resource_version()});
    vec![Action::Patch {
        kind: Kind::ClusterRole,
        namespace: String::new(),
        name: role.name_any(),
        part: Part::Whole,
        patch: json!({"metadata": metadata, "rules": rules}),
    }]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn role(name: &str, label: &str, aggregates: &str, resources: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> = resources.iter().map(|one| json!({"verbs": ["get"], "resources": [one]})).collect();
        let mut object = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        if !aggregates.is_empty() {
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {aggregates: "true"}}]});
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn resources(actions: &[Action]) -> Vec<String> {
        let [Action::Patch { patch, .. }] = actions else { panic!("{actions:?}") };
        let rules = patch["rules"].as_array().unwrap();
        rules.iter().map(|rule| rule["resources"][0].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn unites_each_rule_once() {
        let parts = [role("a", "to-view", "", &["pods", "nodes"]), role("b", "to-view", "", &["nodes", "events"])];
        let view = role("view", "to-view", "to-view", &["stale"]);
        let all = [parts[0].clone(), parts[1].clone(), view.clone()];
        assert_eq!(resources(&plan(&view, &all)), ["pods", "nodes", "events"], "its own rules do not count");
        let settled = role("view", "", "to-view", &["pods", "nodes", "events"]);
        assert_eq!(plan(&settled, &all), []);
        assert_eq!(plan(&parts[0], &all), [], "no aggregation, no plan");
        assert_eq!(resources(&plan(&view, std::slice::from_ref(&view))), [""; 0], "what nothing feeds is empty");
    }
}
