//! Autoscalers and disruption budgets.

use super::field::Field;
use super::workload::share;
use super::{Causes, selector};
use crate::name;

const METRICS: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
const TARGETS: &[&str] = &["AverageValue", "Utilization", "Value"];
const PERIOD_SECONDS_MAX: i64 = 1800;
const WINDOW_SECONDS_MAX: i64 = 3600;

pub(super) fn check_budget(spec: &Field<'_, '_>, causes: &mut Causes) {
    let (least, most) = (spec.key("minAvailable"), spec.key("maxUnavailable"));
    if least.is_set() && most.is_set() {
        spec.invalid("minAvailable and maxUnavailable cannot be both set", causes);
    }
    for one in [least, most] {
        share(&one, true, causes);
    }
    selector::check(&spec.key("selector"), causes);
    spec.key("unhealthyPodEvictionPolicy").one_of_if_set(&["AlwaysAllow", "IfHealthyBudget"], causes);
}

pub(super) fn check(version: &str, spec: &Field<'_, '_>, causes: &mut Causes) {
    let (least, most) = (spec.key("minReplicas"), spec.key("maxReplicas"));
    if least.number().is_some_and(|least| least < 1) {
        least.invalid("must be greater than or equal to 1", causes);
    }
    if most.int() < 1 {
        most.invalid_as(&most.int().into(), "must be greater than 0", causes);
    }
    if least.number().is_some_and(|least| most.int() < least) {
        most.invalid_as(&most.int().into(), "must be greater than or equal to `minReplicas`", causes);
    }
    let target = spec.key("scaleTargetRef");
    for key in ["kind", "name"] {
        target.key(key).may_be(name::path_segment, causes);
    }
    if version == "v1" {
        let usage = spec.key("targetCPUUtilizationPercentage");
        if usage.number().is_some_and(|percent| percent < 1) {
            usage.invalid("must be greater than 0", causes);
        }
        return;
    }
    for metric in spec.key("metrics").items() {
        check_metric(&metric, causes);
    }
    let behavior = spec.key("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        check_rules(&behavior.key(direction), causes);
    }
}

fn check_metric(metric: &Field<'_, '_>, causes: &mut Causes) {
    const SOURCES: &[&str] = &["object", "pods", "resource", "containerResource", "external"];
    let kind = metric.key("type");
    kind.one_of(METRICS, causes);
    let mut given = SOURCES.iter().filter(|source| metric.key(source).is_set());
    let Some(first) = given.next() else {
        let needed = SOURCES.iter().find(|source| source.eq_ignore_ascii_case(kind.text()));
        if let Some(needed) = needed {
            metric.key(needed).required("must populate information for the given metric source", causes);
        }
        return;
    };
    for more in given {
        metric.key(more).forbidden("must populate the given metric source only", causes);
    }
    let source = metric.key(first);
    if METRICS.contains(&kind.text()) && !first.eq_ignore_ascii_case(kind.text()) {
        source.forbidden("must populate the given metric source only", causes);
    }
    let target = source.key("target");
    if target.is_set() {
        check_target(&target, causes);
    }
}

fn check_target(target: &Field<'_, '_>, causes: &mut Causes) {
    let kind = target.key("type");
    kind.one_of(TARGETS, causes);
    let usage = target.key("averageUtilization");
    if usage.number().is_some_and(|percent| percent < 1) {
        usage.invalid("must be greater than 0", causes);
    }
    for key in ["value", "averageValue"] {
        let amount = target.key(key);
        if amount.quantity().is_some_and(|amount| amount.is_negative() || amount.is_zero()) {
            amount.invalid("must be positive", causes);
        }
    }
}

fn check_rules(rules: &Field<'_, '_>, causes: &mut Causes) {
    if !rules.is_set() {
        return;
    }
    let window = rules.key("stabilizationWindowSeconds");
    if window.int() < 0 {
        window.invalid("must be greater than or equal to zero", causes);
    } else if window.int() > WINDOW_SECONDS_MAX {
        window.invalid(&format!("must be less than or equal to {WINDOW_SECONDS_MAX}"), causes);
    }
    rules.key("selectPolicy").one_of_if_set(&["Disabled", "Max", "Min"], causes);
    let policies = rules.key("policies");
    if policies.list().is_empty() {
        policies.required("must specify at least one Policy", causes);
    }
    for policy in policies.items() {
        policy.key("type").one_of(&["Percent", "Pods"], causes);
        let (value, period) = (policy.key("value"), policy.key("periodSeconds"));
        if value.int() <= 0 {
            value.invalid_as(&value.int().into(), "must be greater than zero", causes);
        }
        if period.int() <= 0 {
            period.invalid_as(&period.int().into(), "must be greater than zero", causes);
        } else if period.int() > PERIOD_SECONDS_MAX {
            period.invalid(&format!("must be less than or equal to {PERIOD_SECONDS_MAX}"), causes);
        }
    }
}
