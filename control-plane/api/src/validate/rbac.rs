//! Roles and bindings.

use super::field::Field;
use super::{Causes, selector};
use crate::{Cause, Object, Row, name};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn check(row: &Row, object: &Object, causes: &mut Causes) {
    if row.kind.ends_with("Binding") {
        check_reference(row, &Field::top(object, "roleRef"), causes);
        for subject in Field::top(object, "subjects").items() {
            check_subject(row, &subject, causes);
        }
        return;
    }
    for rule in Field::top(object, "rules").items() {
        check_rule(row, &rule, causes);
    }
    let aggregation = Field::top(object, "aggregationRule");
    if aggregation.is_set() {
        let selectors = aggregation.key("clusterRoleSelectors");
        if selectors.list().is_empty() {
            selectors.required("at least one clusterRoleSelector required if aggregationRule is non-nil", causes);
        }
        for one in selectors.items() {
            selector::check(&one, causes);
        }
    }
}

fn check_reference(row: &Row, role: &Field<'_, '_>, causes: &mut Causes) {
    let group = role.key("apiGroup");
    if group.text() != GROUP {
        causes.push(Cause::not_supported(group.path(), &group.text().into(), &[GROUP]));
    }
    let kinds: &[&str] = if row.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    role.key("kind").one_of(kinds, causes);
    role.key("name").may_be(name::path_segment, causes);
}

fn check_subject(row: &Row, subject: &Field<'_, '_>, causes: &mut Causes) {
    let (kind, group) = (subject.key("kind"), subject.key("apiGroup"));
    let wanted = match kind.text() {
        "ServiceAccount" => {
            subject.key("name").may_be(name::dns1123_subdomain, causes);
            if !row.namespaced && subject.key("namespace").text().is_empty() {
                subject.key("namespace").required("", causes);
            }
            ""
        }
        "User" | "Group" => GROUP,
        "" => return,
        _ => return kind.unsupported(&["Group", "ServiceAccount", "User"], causes),
    };
    if group.text() != wanted {
        causes.push(Cause::not_supported(group.path(), &group.text().into(), &[wanted]));
    }
}

fn check_rule(row: &Row, rule: &Field<'_, '_>, causes: &mut Causes) {
    let (urls, resources, groups) = (rule.key("nonResourceURLs"), rule.key("resources"), rule.key("apiGroups"));
    if !urls.list().is_empty() {
        if row.namespaced {
            urls.invalid("namespaced rules cannot apply to non-resource URLs", causes);
        }
        if [&groups, &resources, &rule.key("resourceNames")].iter().any(|list| !list.list().is_empty()) {
            urls.invalid("rules cannot apply to both regular resources and non-resource URLs", causes);
        }
        return;
    }
    if groups.list().is_empty() {
        groups.required("resource rules must supply at least one api group", causes);
    }
    if resources.list().is_empty() {
        resources.required("resource rules must supply at least one resource", causes);
    }
}

pub(super) fn check_update(row: &Row, new: &Object, old: &Object, causes: &mut Causes) {
    if row.kind.ends_with("Binding") && new.get("roleRef") != old.get("roleRef") {
        let shown = new.get("roleRef").unwrap_or(&serde_json::Value::Null);
        causes.push(Cause::invalid("roleRef", shown, "cannot change roleRef"));
    }
}
