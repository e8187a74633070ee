//! Roles, bindings, budgets, autoscalers, nodes and classes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::affinity::check_selector;
use super::{Causes, items, not_negative, refuse, text, unchanged};
use crate::{Cause, Object, Row, name};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn check_rbac(row: &Row, object: &Object, causes: &mut Causes) {
    if row.kind.ends_with("Binding") {
        check_role_reference(row, object, causes);
        for (index, subject) in object.list_at(&["subjects"]).iter().enumerate() {
            check_subject(row, subject, &format!("subjects[{index}]"), causes);
        }
        return;
    }
    for (index, rule) in object.list_at(&["rules"]).iter().enumerate() {
        check_rule(row, rule, &format!("rules[{index}]"), causes);
    }
}

fn check_role_reference(row: &Row, object: &Object, causes: &mut Causes) {
    let group = object.str_at(&["roleRef", "apiGroup"]).unwrap_or_default();
    if group != GROUP {
        causes.push(Cause::not_supported("roleRef.apiGroup", &group.into(), &[GROUP]));
    }
    let kinds: &[&str] = if row.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    let kind = object.str_at(&["roleRef", "kind"]).unwrap_or_default();
    if !kind.is_empty() && !kinds.contains(&kind) {
        causes.push(Cause::not_supported("roleRef.kind", &kind.into(), kinds));
    }
    let role = object.str_at(&["roleRef", "name"]).unwrap_or_default();
    refuse("roleRef.name", role, name::path_segment(role), causes);
}

fn check_subject(row: &Row, subject: &Value, path: &str, causes: &mut Causes) {
    let group = text(subject, "apiGroup");
    let wanted = match text(subject, "kind") {
        "ServiceAccount" => {
            let given = text(subject, "name");
            if !given.is_empty() {
                refuse(&format!("{path}.name"), given, name::dns1123_subdomain(given), causes);
            }
            if !row.namespaced && text(subject, "namespace").is_empty() {
                causes.push(Cause::required(format!("{path}.namespace"), ""));
            }
            ""
        }
        "User" | "Group" => GROUP,
        "" => return,
        other => {
            let kinds = ["Group", "ServiceAccount", "User"];
            causes.push(Cause::not_supported(format!("{path}.kind"), &other.into(), &kinds));
            return;
        }
    };
    if group != wanted {
        causes.push(Cause::not_supported(format!("{path}.apiGroup"), &group.into(), &[wanted]));
    }
}

fn check_rule(row: &Row, rule: &Value, path: &str, causes: &mut Causes) {
    let urls = items(rule, "nonResourceURLs");
    let resources = items(rule, "resources");
    if !urls.is_empty() {
        if row.namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            causes.push(Cause::invalid(format!("{path}.nonResourceURLs"), &urls.to_vec().into(), detail));
        }
        if !items(rule, "apiGroups").is_empty() || !resources.is_empty() || !items(rule, "resourceNames").is_empty() {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            causes.push(Cause::invalid(format!("{path}.nonResourceURLs"), &urls.to_vec().into(), detail));
        }
        return;
    }
    if items(rule, "apiGroups").is_empty() {
        causes.push(Cause::required(format!("{path}.apiGroups"), "resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        causes.push(Cause::required(format!("{path}.resources"), "resource rules must supply at least one resource"));
    }
}

pub(super) fn check_update(row: &Row, new: &Object, old: &Object, causes: &mut Causes) {
    match row.kind {
        "RoleBinding" | "ClusterRoleBinding" if new.get("roleRef") != old.get("roleRef") => {
            let shown = new.get("roleRef").unwrap_or(&Value::Null);
            causes.push(Cause::invalid("roleRef", shown, "cannot change roleRef"));
        }
        "PriorityClass" => {
            if new.i64_at(&["value"]).unwrap_or(0) != old.i64_at(&["value"]).unwrap_or(0) {
                causes.push(Cause::forbidden("value", "may not be changed in an update."));
            }
            unchanged(new, old, &["preemptionPolicy"], causes);
        }
        "StorageClass" => {
            if new.get("parameters") != old.get("parameters") {
                causes.push(Cause::forbidden("parameters", "updates to parameters are forbidden."));
            }
            if new.get("provisioner") != old.get("provisioner") {
                causes.push(Cause::forbidden("provisioner", "updates to provisioner are forbidden."));
            }
            if new.get("reclaimPolicy") != old.get("reclaimPolicy") {
                causes.push(Cause::forbidden("reclaimPolicy", "updates to reclaimPolicy are forbidden."));
            }
            unchanged(new, old, &["volumeBindingMode"], causes);
        }
        _ => {}
    }
}

pub(super) fn check_priority_class(object: &Object, is_new: bool, causes: &mut Causes) {
    /// Larger values are for the system's own classes.
    const VALUE_MAX: i64 = 1_000_000_000;
    let own = ["system-node-critical", "system-cluster-critical"].contains(&object.name());
    if is_new && object.name().starts_with("system-") && !own {
        let detail =
            "priority class names with 'system-' prefix are reserved for system use only. error: is not a system class";
        causes.push(Cause::forbidden("metadata.name", detail));
    }
    if !own && object.i64_at(&["value"]).unwrap_or(0) > VALUE_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {VALUE_MAX}");
        causes.push(Cause::forbidden("value", &detail));
    }
}

pub(super) fn check_budget(spec: &Value, causes: &mut Causes) {
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        causes.push(Cause::invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
    }
    not_negative(spec, "spec", &["minAvailable", "maxUnavailable"], causes);
    check_selector(&spec["selector"], "spec.selector", causes);
}

pub(super) fn check_autoscaler(spec: &Value, causes: &mut Causes) {
    let (least, most) = (spec["minReplicas"].as_i64(), spec["maxReplicas"].as_i64().unwrap_or(0));
    if least.is_some_and(|least| least < 1) {
        causes.push(Cause::invalid("spec.minReplicas", &spec["minReplicas"], "must be greater than or equal to 1"));
    }
    if most < 1 {
        causes.push(Cause::invalid("spec.maxReplicas", &most.into(), "must be greater than 0"));
    } else if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid("spec.maxReplicas", &most.into(), detail));
    }
}

pub(super) fn check_node(spec: &Value, causes: &mut Causes) {
    let mut seen = BTreeSet::new();
    for (index, taint) in items(spec, "taints").iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        refuse(&format!("{path}.key"), key, name::qualified(key), causes);
        refuse(&format!("{path}.value"), value, name::label_value(value), causes);
        super::one_of(taint, &path, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"], causes);
        if !seen.insert((key, effect)) {
            let mut cause = Cause::duplicate(&path, taint);
            cause.message.push_str(": taints must be unique by key and effect pair");
            causes.push(cause);
        }
    }
}
