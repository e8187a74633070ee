//! Defaults of what makes pods: deployments and their kin, jobs, autoscalers.

use serde_json::{Map, Value, json};

use super::{claim, default, default_text, map_in, maps_in, pod, text};
use crate::object::map_entry;

fn spec_with_template(map: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let spec = map_entry(map, "spec");
    pod::template(spec);
    spec
}

pub(super) fn deployment(map: &mut Map<String, Value>) {
    let spec = spec_with_template(map);
    default(spec, "replicas", 1);
    let strategy = map_entry(spec, "strategy");
    default_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = map_entry(strategy, "rollingUpdate");
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
}

pub(super) fn replica_set(map: &mut Map<String, Value>) {
    default(spec_with_template(map), "replicas", 1);
}

pub(super) fn daemon_set(map: &mut Map<String, Value>) {
    let spec = spec_with_template(map);
    let strategy = map_entry(spec, "updateStrategy");
    default_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = map_entry(strategy, "rollingUpdate");
        default(rolling, "maxUnavailable", 1);
        default(rolling, "maxSurge", 0);
    }
    default(spec, "revisionHistoryLimit", 10);
}

pub(super) fn stateful_set(map: &mut Map<String, Value>) {
    let spec = spec_with_template(map);
    default_text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = map_entry(spec, "updateStrategy");
    default_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        default(map_entry(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = map_entry(spec, "persistentVolumeClaimRetentionPolicy");
    default_text(retention, "whenDeleted", "Retain");
    default_text(retention, "whenScaled", "Retain");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    for template in maps_in(spec, "volumeClaimTemplates") {
        default_text(template, "apiVersion", "v1");
        default_text(template, "kind", "PersistentVolumeClaim");
        claim(template);
    }
}

pub(super) fn replication_controller(map: &mut Map<String, Value>) {
    labels_from_template(map);
    let spec = spec_with_template(map);
    default(spec, "replicas", 1);
    let labels = template_labels(spec);
    if spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty) && !labels.is_empty() {
        spec.insert("selector".into(), labels.into());
    }
}

fn template_labels(spec: &Map<String, Value>) -> Map<String, Value> {
    let labels = spec.get("template").and_then(|template| template.get("metadata")).and_then(|meta| meta.get("labels"));
    labels.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The labels of the pods become the owner's when it has none.
fn labels_from_template(map: &mut Map<String, Value>) {
    let labels = template_labels(map_entry(map, "spec"));
    let meta = map_entry(map, "metadata");
    if !labels.is_empty() && meta.get("labels").and_then(Value::as_object).is_none_or(Map::is_empty) {
        meta.insert("labels".into(), labels.into());
    }
}

pub(super) fn job(map: &mut Map<String, Value>) {
    labels_from_template(map);
    job_spec(spec_with_template(map));
}

fn job_spec(spec: &mut Map<String, Value>) {
    let absent = |spec: &Map<String, Value>, key: &str| spec.get(key).is_none_or(Value::is_null);
    if absent(spec, "completions") && absent(spec, "parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    default(spec, "parallelism", 1);
    let by_index = !absent(spec, "backoffLimitPerIndex");
    default(spec, "backoffLimit", if by_index { i64::from(i32::MAX) } else { 6 });
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let policy = if absent(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    default(spec, "podReplacementPolicy", policy);
    default(spec, "manualSelector", false);
    if let Some(policy) = map_in(spec, "podFailurePolicy") {
        for rule in maps_in(policy, "rules") {
            for pattern in maps_in(rule, "onPodConditions") {
                default_text(pattern, "status", "True");
            }
        }
    }
}

pub(super) fn cron_job(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    default_text(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    // The job's own defaults come when the job is made; the pods' come now.
    pod::template(map_entry(map_entry(spec, "jobTemplate"), "spec"));
}

pub(super) fn autoscaler(map: &mut Map<String, Value>, version: &str) {
    let annotations = map.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let has_other_metrics = annotations.is_some_and(|all| all.get(crate::convert::METRICS).is_some());
    let spec = map_entry(map, "spec");
    default(spec, "minReplicas", 1);
    if version == "v1" {
        // Without any metric upstream's conversion aims at 80 % of the requested CPU, as autoscaling/v2 does.
        if !has_other_metrics {
            default(spec, "targetCPUUtilizationPercentage", 80);
        }
        return;
    }
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics".into(), cpu);
    }
    let Some(behavior) = map_in(spec, "behavior") else { return };
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let up_rules = map_entry(behavior, "scaleUp");
    default(up_rules, "stabilizationWindowSeconds", 0);
    default(up_rules, "selectPolicy", "Max");
    default(up_rules, "policies", up);
    let down_rules = map_entry(behavior, "scaleDown");
    default(down_rules, "selectPolicy", "Max");
    default(down_rules, "policies", down);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn jobs_default_completions_only_without_parallelism() {
        let mut plain = map(json!({"spec": {}}));
        job(&mut plain);
        assert_eq!((&plain["spec"]["completions"], &plain["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        let mut queue = map(json!({"spec": {"parallelism": 3}}));
        job(&mut queue);
        assert_eq!(queue["spec"].get("completions"), None);
    }

    #[test]
    fn autoscalers_aim_at_something_in_both_versions() {
        let mut old = map(json!({"spec": {"maxReplicas": 3}}));
        autoscaler(&mut old, "v1");
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 80);
        let other = json!({"annotations": {crate::convert::METRICS: "[]"}});
        let mut annotated = map(json!({"metadata": other, "spec": {"maxReplicas": 3}}));
        autoscaler(&mut annotated, "v1");
        assert_eq!(annotated["spec"].get("targetCPUUtilizationPercentage"), None);
        let mut new = map(json!({"spec": {"maxReplicas": 3}}));
        autoscaler(&mut new, "v2");
        assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }

    #[test]
    fn controllers_take_their_selector_from_the_template() {
        let mut controller = map(json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}));
        replication_controller(&mut controller);
        assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
    }

    #[test]
    fn claims_of_a_stateful_set_are_claims() {
        let mut set = map(json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}}));
        stateful_set(&mut set);
        let claim = &set["spec"]["volumeClaimTemplates"][0];
        assert_eq!(
            (&claim["kind"], &claim["spec"]["volumeMode"]),
            (&json!("PersistentVolumeClaim"), &json!("Filesystem"))
        );
    }
}
