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
    match call.row.resource {
        "roles" | "clusterroles" => {
            let unchanged = live.is_some_and(|live| {
                live.get("rules") == object.get("rules") && live.get("aggregationRule") == object.get("aggregationRule")
            });
            if unchanged || may(call, "escalate", call.row.resource, object.namespace(), object.name()) {
                return Ok(());
            }
            let mut rules = rbac::rules_of(object);
            if object.get("aggregationRule").is_some_and(|rule| !rule.is_null()) {
                // It could come to carry anything.
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
            let unchanged = live.is_some_and(|live| live.get("subjects") == object.get("subjects"));
            if unchanged || may(call, "bind", resource, object.namespace(), name) {
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
