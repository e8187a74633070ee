//! Between the version that is stored and the version that is served, for the kinds that have several.
//!
//! Events are stored as core/v1, autoscalers as autoscaling/v2. Invariant: there and back loses nothing; what v1 has no
//! field for travels in the annotations that upstream uses.

use serde_json::{Map, Value, json};

use crate::object::map_entry;
use crate::{Object, Row};

pub(crate) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

/// (core/v1, events.k8s.io/v1) names of an event's fields.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// An object of the row's version as it is stored.
pub fn to_storage(row: &Row, mut object: Object) -> Object {
    match (row.group, row.version, row.kind) {
        ("events.k8s.io", _, "Event") => rename(object.as_map_mut(), |(core, new)| (new, core)),
        ("autoscaling", "v1", _) => scaler_to_v2(&mut object),
        _ => {}
    }
    object.set_type(&row.storage_api_version(), row.kind);
    object
}

/// A stored object in the row's version.
pub fn from_storage(row: &Row, mut object: Object) -> Object {
    match (row.group, row.version, row.kind) {
        ("events.k8s.io", _, "Event") => rename(object.as_map_mut(), |(core, new)| (core, new)),
        ("autoscaling", "v1", _) => scaler_to_v1(&mut object),
        _ => {}
    }
    object.set_type(&row.api_version(), row.kind);
    object
}

/// Whether the row's objects are stored in another version than they are served in.
pub fn is_needed(row: &Row) -> bool {
    row.storage.group != row.group || row.storage.version != row.version
}

fn rename(
    map: &mut Map<String, Value>,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for (from, to) in EVENT_FIELDS.iter().map(|pair| direction(*pair)) {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

fn is_cpu(metric: &Value, of: &str) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"][of]["averageUtilization"].is_number()
}

/// Takes an annotation's JSON away; text that is no JSON stays where it is.
fn take_annotation(object: &mut Object, key: &str) -> Option<Value> {
    let value = serde_json::from_str(object.annotation(key)?).ok()?;
    object.remove(&["metadata", "annotations", key]);
    if object.at(&["metadata", "annotations"]).and_then(Value::as_object).is_some_and(Map::is_empty) {
        object.remove(&["metadata", "annotations"]);
    }
    Some(value)
}

fn scaler_to_v2(object: &mut Object) {
    let mut metrics = Vec::new();
    if let Some(Value::Array(others)) = take_annotation(object, METRICS) {
        metrics.extend(others);
    }
    if let Some(percent) = object.remove(&["spec", "targetCPUUtilizationPercentage"]) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}}));
    }
    if !metrics.is_empty() {
        object.set(&["spec", "metrics"], metrics);
    }
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        object.set(&["spec", "behavior"], behavior);
    }
    let mut current = match take_annotation(object, CURRENT_METRICS) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    if let Some(percent) = object.remove(&["status", "currentCPUUtilizationPercentage"]) {
        current
            .push(json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
    }
    if !current.is_empty() {
        object.set(&["status", "currentMetrics"], current);
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        object.set(&["status", "conditions"], conditions);
    }
}

fn scaler_to_v1(object: &mut Object) {
    let spec = map_entry(object.as_map_mut(), "spec");
    let (cpu, others) = split_cpu(spec.remove("metrics"), "target");
    if let Some(percent) = cpu {
        spec.insert("targetCPUUtilizationPercentage".into(), percent);
    }
    let behavior = spec.remove("behavior");
    let status = object.as_map_mut().get_mut("status").and_then(Value::as_object_mut);
    let (mut current, mut conditions) = (Vec::new(), None);
    if let Some(status) = status {
        let (cpu, others) = split_cpu(status.remove("currentMetrics"), "current");
        if let Some(percent) = cpu {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        current = others;
        conditions = status.remove("conditions");
    }
    let lists = [(METRICS, others), (CURRENT_METRICS, current)];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(key, list)| (key, Value::Array(list)));
    let singles = [(BEHAVIOR, behavior), (CONDITIONS, conditions)];
    for (key, value) in lists.chain(singles.into_iter().filter_map(|(key, value)| Some((key, value?)))) {
        object.set_annotation(key, &value.to_string());
    }
}

/// The first utilization of cpu, and everything else.
fn split_cpu(metrics: Option<Value>, of: &str) -> (Option<Value>, Vec<Value>) {
    let Some(Value::Array(metrics)) = metrics else { return (None, Vec::new()) };
    let mut cpu = None;
    let mut others = Vec::new();
    for metric in metrics {
        if cpu.is_none() && is_cpu(&metric, of) {
            cpu = Some(metric["resource"][of]["averageUtilization"].clone());
        } else {
            others.push(metric);
        }
    }
    (cpu, others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row;

    #[test]
    fn events_have_two_names_for_one_field() {
        let new = row("events.k8s.io", "v1", "events").unwrap();
        let given = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"},
            "deprecatedCount": 2, "action": "a"});
        let stored = to_storage(new, Object::from_value(given.clone()).unwrap());
        assert_eq!((stored.api_version(), stored.str_at(&["message"])), ("v1", Some("n")));
        assert_eq!(stored.str_at(&["involvedObject", "name"]), Some("p"));
        assert_eq!(from_storage(new, stored).to_value(), given);
    }

    #[test]
    fn autoscalers_lose_nothing_in_v1() {
        let old = row("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        let stored = to_storage(old, Object::from_value(v1.clone()).unwrap());
        assert_eq!(stored.list_at(&["spec", "metrics"]).len(), 1);
        assert_eq!(from_storage(old, stored).to_value(), v1);
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {}}, "metrics": [{"type": "Resource", "resource": {"name": "memory",
            "target": {"type": "Utilization", "averageUtilization": 5}}}]}, "status": {"conditions": [{"type": "x"}]}});
        let served = from_storage(old, Object::from_value(v2.clone()).unwrap());
        assert_eq!(served.at(&["spec", "metrics"]), None);
        assert_eq!(to_storage(old, served).at(&["spec"]), v2.get("spec"));
    }
}
