//! Where a pod may go: affinity terms, tolerations, spreading.

use serde_json::Value;

use super::{Causes, items, one_of, refuse, text};
use crate::selector::Selector;
use crate::{Cause, name};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn check(spec: &Value, path: &str, causes: &mut Causes) {
    let node = &spec["affinity"]["nodeAffinity"];
    let node_path = format!("{path}.affinity.nodeAffinity");
    for (index, term) in items(&node[REQUIRED], "nodeSelectorTerms").iter().enumerate() {
        check_node_term(term, &format!("{node_path}.{REQUIRED}.nodeSelectorTerms[{index}]"), causes);
    }
    for (index, weighted) in items(node, PREFERRED).iter().enumerate() {
        let path = format!("{node_path}.{PREFERRED}[{index}]");
        check_weight(weighted, &path, causes);
        check_node_term(&weighted["preference"], &format!("{path}.preference"), causes);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = &spec["affinity"][kind];
        let path = format!("{path}.affinity.{kind}");
        for (index, term) in items(pods, REQUIRED).iter().enumerate() {
            check_pod_term(term, &format!("{path}.{REQUIRED}[{index}]"), causes);
        }
        for (index, weighted) in items(pods, PREFERRED).iter().enumerate() {
            let path = format!("{path}.{PREFERRED}[{index}]");
            check_weight(weighted, &path, causes);
            check_pod_term(&weighted["podAffinityTerm"], &format!("{path}.podAffinityTerm"), causes);
        }
    }
}

fn check_weight(weighted: &Value, path: &str, causes: &mut Causes) {
    if !(1..=100).contains(&weighted["weight"].as_i64().unwrap_or(0)) {
        causes.push(Cause::invalid(format!("{path}.weight"), &weighted["weight"], "must be in the range 1-100"));
    }
}

fn check_node_term(term: &Value, path: &str, causes: &mut Causes) {
    const OPERATORS: &[&str] = &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];
    for (index, one) in items(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let key = text(one, "key");
        refuse(&format!("{path}.key"), key, name::qualified(key), causes);
        let operator = text(one, "operator");
        let values = items(one, "values");
        let detail = match operator {
            "In" | "NotIn" if values.is_empty() => "must be specified when `operator` is 'In' or 'NotIn'",
            "Gt" | "Lt" if values.len() != 1 => "must be specified single value when `operator` is 'Lt' or 'Gt'",
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(format!("{path}.values"), detail));
                continue;
            }
            _ if !OPERATORS.contains(&operator) => {
                let detail = "not a valid selector operator";
                causes.push(Cause::invalid_str(format!("{path}.operator"), operator, detail));
                continue;
            }
            _ => continue,
        };
        causes.push(Cause::required(format!("{path}.values"), detail));
    }
}

fn check_pod_term(term: &Value, path: &str, causes: &mut Causes) {
    check_selector(&term["labelSelector"], &format!("{path}.labelSelector"), causes);
    let key = text(term, "topologyKey");
    if key.is_empty() {
        causes.push(Cause::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        refuse(&format!("{path}.topologyKey"), key, name::qualified(key), causes);
    }
}

/// A label selector that must parse when it is there.
pub(super) fn check_selector(selector: &Value, path: &str, causes: &mut Causes) {
    if selector.is_object()
        && let Err(error) = Selector::from_value(selector)
    {
        causes.push(Cause::invalid(path, selector, &error.to_string()));
    }
}

pub(super) fn check_tolerations(tolerations: &[Value], path: &str, causes: &mut Causes) {
    for (index, one) in tolerations.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (key, operator) = (text(one, "key"), text(one, "operator"));
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.push(Cause::invalid_str(format!("{path}.operator"), operator, detail));
        } else if !key.is_empty() {
            refuse(&format!("{path}.key"), key, name::qualified(key), causes);
        }
        if one["tolerationSeconds"].is_number() && text(one, "effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            causes.push(Cause::invalid_str(format!("{path}.effect"), text(one, "effect"), detail));
        }
        match operator {
            "" | "Equal" => {
                let value = text(one, "value");
                refuse(&format!("{path}.operator"), value, name::label_value(value), causes);
            }
            "Exists" if !text(one, "value").is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                causes.push(Cause::invalid(format!("{path}.operator"), one, detail));
            }
            "Exists" | "Gt" | "Lt" => {}
            other => {
                let cause = Cause::not_supported(format!("{path}.operator"), &other.into(), &["Equal", "Exists"]);
                causes.push(cause);
            }
        }
        one_of(one, &path, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"], causes);
    }
}

pub(super) fn check_spread(constraints: &[Value], path: &str, causes: &mut Causes) {
    for (index, one) in constraints.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if one["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            causes.push(Cause::invalid(format!("{path}.maxSkew"), &one["maxSkew"], "must be greater than zero"));
        }
        one_of(one, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], causes);
        check_selector(&one["labelSelector"], &format!("{path}.labelSelector"), causes);
    }
}
