//! Which nodes a pod bears, and how pods like it are spread over them.

use std::collections::BTreeSet;

use crate::validate::field::Field;
use crate::validate::{Causes, selector};
use crate::{Cause, name};

pub(in crate::validate) const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const NOT_POSITIVE: &str = "must be greater than zero";

pub(super) fn check_tolerations(tolerations: &Field<'_, '_>, causes: &mut Causes) {
    for one in tolerations.items() {
        let (key, operator, value) = (one.key("key"), one.key("operator"), one.key("value"));
        let effect = one.key("effect");
        key.may_be(name::qualified, causes);
        if key.text().is_empty() && operator.text() != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            operator.invalid_as(&operator.text().into(), detail, causes);
        }
        if one.key("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            effect.invalid_as(&effect.text().into(), detail, causes);
        }
        match operator.text() {
            "" | "Equal" => {
                let faults = name::label_value(value.text());
                if !faults.is_empty() {
                    operator.invalid_as(&value.text().into(), &faults.join(";"), causes);
                }
            }
            "Exists" if !value.text().is_empty() => {
                operator.invalid_as(value.value, "value must be empty when `operator` is 'Exists'", causes);
            }
            "Exists" => {}
            _ => operator.unsupported(&["Equal", "Exists"], causes),
        }
        effect.one_of(EFFECTS, causes);
    }
}

pub(super) fn check_spread(constraints: &Field<'_, '_>, causes: &mut Causes) {
    let mut seen = BTreeSet::new();
    for one in constraints.items() {
        let (skew, action, topology) = (one.key("maxSkew"), one.key("whenUnsatisfiable"), one.key("topologyKey"));
        if skew.int() <= 0 {
            skew.invalid_as(&skew.int().into(), NOT_POSITIVE, causes);
        }
        action.one_of(&["DoNotSchedule", "ScheduleAnyway"], causes);
        if !topology.text().is_empty() && !seen.insert((topology.text(), action.text())) {
            let shown = format!("{{{}, {}}}", topology.text(), action.text());
            causes.push(Cause::duplicate(one.key("{topologyKey, whenUnsatisfiable}").path(), &shown.into()));
        }
        let domains = one.key("minDomains");
        if domains.is_set() {
            if domains.int() <= 0 {
                domains.invalid(NOT_POSITIVE, causes);
            }
            if action.text() != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.text());
                domains.invalid(&detail, causes);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one.key(policy).one_of_if_set(&["Honor", "Ignore"], causes);
        }
        let labels = one.key("labelSelector");
        let keys = one.key("matchLabelKeys");
        if !keys.list().is_empty() {
            check_keys(&keys, &labels, causes);
        }
        selector::check(&labels, causes);
    }
}

/// Labels whose values the pod itself gives to the selector: so the selector may not name them.
fn check_keys(keys: &Field<'_, '_>, labels: &Field<'_, '_>, causes: &mut Causes) {
    if !labels.is_set() {
        keys.forbidden("must not be specified when labelSelector is not set", causes);
    }
    let by_expression: BTreeSet<&str> =
        labels.key("matchExpressions").items().map(|one| one.key("key").text()).collect();
    for key in keys.items() {
        key.must_be(name::qualified, causes);
        if labels.key("matchLabels").key(key.text()).is_set() || by_expression.contains(key.text()) {
            key.invalid("exists in both matchLabelKeys and labelSelector", causes);
        }
    }
}
