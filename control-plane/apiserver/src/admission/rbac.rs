//! Nobody grants what he does not have: roles and bindings are refused when their rules go beyond the writer's own, unless he
//! may `escalate` or `bind`.

use control_plane_api::{Object, Status};

use crate::{
    authz::{
        Attributes,
        rbac::{self, GROUP, Rule},
    },
    status::Outcome,
    verb::Call,
};

pub(super) fn no_escalation(call: &Call, object: &Object, live: Option<&Object>) -> Outcome<()> {
    if call.user.in_group(crate::authn::MASTERS) {
        return Ok(());
    }
    if live.is_some_and(|live| is_for_garbage_collector_only(live, object)) {
        return Ok(());
    }
    match call.row.resource {
        "roles" | "clusterroles" => {
            if may(call, "escalate", call.row.resource, object.namespace(), object.name()) {
                return Ok(());
            }
            let mut rules = rbac::rules_of(object);
            let aggregates = |role: &Object| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
            if aggregates(object) || live.is_some_and(aggregates) {
                // It could come to carry anything, or what it carries already could be kept from being taken away.
                rules.push(Rule {
                    verbs: vec!["*".into()],
                    api_groups: vec!["*".into()],
                    resources: vec!["*".into()],
                    ..Rule::default()
                });
            }
            covered(call, object, &rules)
        }
        "rolebindings" | "clusterrolebindings" => {
            let kind = object.str_at(&["roleRef", "kind"]).unwrap_or("");
            let name = object.str_at(&["roleRef", "name"]).unwrap_or("");
            let resource = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if may(call, "bind", resource, object.namespace(), name) {
                return Ok(());
            }
            let index = call.kernel.authorizer.rbac().index();
            let Some(rules) = index.role(kind, object.namespace(), name) else {
                return Err(Status::not_found(GROUP, resource, name).into());
            };
            covered(call, object, &rules)
        }
        _ => Ok(()),
    }
}

/// Whether nothing but owners and finalizers changes: what the garbage collector needs. Anything else may widen what a role comes to
/// mean, labels too: other roles aggregate by them.
fn is_for_garbage_collector_only(live: &Object, next: &Object) -> bool {
    let rest = |object: &Object| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            object.metadata_mut().remove(field);
        }
        object
    };
    rest(live) == rest(next)
}

fn may(call: &Call, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let namespace =
        if resource == "clusterroles" && call.row.resource == "clusterrolebindings" { "" } else { namespace };
    call.kernel.authorizer.decide(&call.user, &Attributes::resource(verb, GROUP, resource, namespace, name)).allowed
}

fn covered(call: &Call, object: &Object, rules: &[Rule]) -> Outcome<()> {
    let index = call.kernel.authorizer.rbac().index();
    let missing = index.not_covered(&call.user, object.namespace(), rules);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|rule| format!("{rule:?}")).collect();
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: {}",
        call.user.name,
        call.user.groups,
        list.join("; ")
    );
    Err(Status::forbidden(GROUP, call.row.resource, object.name(), &why).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_owners_and_finalizers_change_without_a_look_at_the_rules() {
        let role = json!({"metadata": {"name": "r", "labels": {"a": "b"}}, "rules": [{"verbs": ["get"]}]});
        let check = |patch: Value, expect: bool| {
            let live = Object::from_value(role.clone()).unwrap();
            let mut next = role.clone();
            json_patch::merge(&mut next, &patch);
            let next = Object::from_value(next).unwrap();
            assert_eq!(is_for_garbage_collector_only(&live, &next), expect, "{patch}");
        };
        check(json!({}), true);
        check(json!({"metadata": {"finalizers": ["a/b"], "ownerReferences": [{"name": "o"}]}}), true);
        check(json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}}), false);
        check(json!({"metadata": {"annotations": {"a": "b"}}}), false);
        check(json!({"metadata": {"finalizers": ["a/b"]}, "rules": []}), false);
        check(json!({"aggregationRule": {}}), false);
    }
}
