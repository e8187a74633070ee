//! Node selectors and node affinity: `nodeSelector`, required and preferred terms. Pure.
//!
//! Terms are or-ed, the requirements inside a term and-ed; an empty term matches nothing (core/v1, NodeSelectorTerm).

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::snapshot::NodeState;

pub(crate) fn required_matches(pod: &Pod, name: &str, node: &NodeState) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selector_matches = spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required =
        node_affinity(pod).and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selector_matches
        && required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches(term, name, node)))
}

/// The sum of the weights of all preferred terms that match.
pub(crate) fn preferred_weight(pod: &Pod, name: &str, node: &NodeState) -> i64 {
    let terms =
        node_affinity(pod).and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    terms
        .into_iter()
        .flatten()
        .filter(|term| matches(&term.preference, name, node))
        .map(|term| i64::from(term.weight))
        .sum()
}

fn node_affinity(pod: &Pod) -> Option<&NodeAffinity> {
    pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

fn matches(term: &NodeSelectorTerm, name: &str, node: &NodeState) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|requirement| holds(requirement, node.labels.get(&requirement.key).map(String::as_str)))
        && fields.iter().all(|requirement| requirement.key == "metadata.name" && holds(requirement, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|candidate| candidate == value);
    let compared = |holds: fn(&i64, &i64) -> bool| {
        let wanted = values.first().and_then(|text| text.parse::<i64>().ok());
        let found = value.and_then(|text| text.parse::<i64>().ok());
        matches!((found, wanted), (Some(found), Some(wanted)) if holds(&found, &wanted))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node() -> NodeState {
        let labels = [("zone", "a"), ("cores", "8")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        NodeState { labels, ..NodeState::default() }
    }

    #[test]
    fn requirements() {
        let check = |requirement: Value, expect: bool| {
            let term = json!({"matchExpressions": [requirement]});
            assert_eq!(matches(&serde_json::from_value(term.clone()).unwrap(), "n1", &node()), expect, "{term}");
        };
        check(json!({"key": "zone", "operator": "In", "values": ["a", "b"]}), true);
        check(json!({"key": "zone", "operator": "NotIn", "values": ["a"]}), false);
        check(json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}), true);
        check(json!({"key": "zone", "operator": "Exists"}), true);
        check(json!({"key": "zone", "operator": "DoesNotExist"}), false);
        check(json!({"key": "cores", "operator": "Gt", "values": ["4"]}), true);
        check(json!({"key": "cores", "operator": "Lt", "values": ["8"]}), false);
        check(json!({"key": "zone", "operator": "Gt", "values": ["4"]}), false);
    }

    #[test]
    fn terms() {
        let check = |spec: Value, expect: bool| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec.clone()})).unwrap();
            assert_eq!(required_matches(&pod, "n1", &node()), expect, "{spec}");
        };
        let required = |terms: Value| {
            let selector = json!({"nodeSelectorTerms": terms});
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}})
        };
        check(json!({"containers": [], "nodeSelector": {"zone": "a"}}), true);
        check(json!({"containers": [], "nodeSelector": {"zone": "b"}}), false);
        check(required(json!([{}])), false);
        let other = json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]});
        let by_name = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        check(required(json!([other])), false);
        check(required(json!([other, by_name])), true);
    }
}
