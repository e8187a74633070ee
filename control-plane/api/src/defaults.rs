//! What upstream fills in for values that a user left out, kind by kind.
//!
//! Objects are in their row's version. Values that need the cluster (addresses, node ports, tokens) are the server's.
//! Invariant: idempotent, and never overwrites a value.

mod pod;
mod workload;

use serde_json::{Map, Value, json};

use crate::object::map_entry;
use crate::schema::normal::encode_base64;
use crate::{Object, Row};

/// Fills `object` with the defaults of its kind.
pub fn apply(row: &Row, object: &mut Object) {
    let map = object.as_map_mut();
    match (row.group, row.kind) {
        ("", "Pod") => pod::pod(map),
        ("", "PodTemplate") => pod::template(map),
        ("", "Service") => service(map),
        ("", "ReplicationController") => workload::replication_controller(map),
        ("", "Endpoints") => endpoints(map),
        ("", "Secret") => secret(map),
        ("", "PersistentVolume") => persistent_volume(map),
        ("", "PersistentVolumeClaim") => claim(map),
        ("", "LimitRange") => limit_range(map),
        ("", "Namespace") => namespace(map),
        ("", "Node") => node(map),
        ("apps", "Deployment") => workload::deployment(map),
        ("apps", "ReplicaSet") => workload::replica_set(map),
        ("apps", "DaemonSet") => workload::daemon_set(map),
        ("apps", "StatefulSet") => workload::stateful_set(map),
        ("batch", "Job") => workload::job(map),
        ("batch", "CronJob") => workload::cron_job(map),
        ("autoscaling", _) => workload::autoscaler(map, row.version),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(map),
        ("networking.k8s.io", "IngressClass") => ingress_class(map),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(map),
        ("storage.k8s.io", "StorageClass") => {
            default(map, "reclaimPolicy", "Delete");
            default(map, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(map),
        ("scheduling.k8s.io", "PriorityClass") => default(map, "preemptionPolicy", "PreemptLowerPriority"),
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in maps_in(map, "ports") {
                default(port, "name", "");
                default(port, "protocol", "TCP");
            }
        }
        _ => {}
    }
}

/// Sets `key` when it is absent or null.
fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.into(), value.into());
    }
}

/// Sets `key` when it is absent, null or the empty string, which means absence for a field that is no pointer.
fn default_text(map: &mut Map<String, Value>, key: &str, value: &str) {
    if map.get(key).is_none_or(|old| old.is_null() || old.as_str() == Some("")) {
        map.insert(key.into(), value.into());
    }
}

/// The map under `key`, when there is one.
fn map_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(key)?.as_object_mut()
}

/// The maps of the list under `key`.
fn maps_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn service(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    default_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "ClientIP" {
        let client = map_entry(map_entry(spec, "sessionAffinityConfig"), "clientIP");
        default(client, "timeoutSeconds", 10800);
    } else if text(spec, "sessionAffinity") == "None" {
        // What clients stay with is nothing without clients that stay.
        spec.remove("sessionAffinityConfig");
    }
    default_text(spec, "type", "ClusterIP");
    for port in maps_in(spec, "ports") {
        default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        let unset = port.get("targetPort").is_none_or(|old| old.is_null() || *old == json!(0) || *old == json!(""));
        if unset && number.is_number() {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = text(spec, "type").to_owned();
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// `stringData` is a way of writing `data` without base64; it is never stored.
fn secret(map: &mut Map<String, Value>) {
    default_text(map, "type", "Opaque");
    let Some(Value::Object(texts)) = map.remove("stringData") else { return };
    let data = map_entry(map, "data");
    for (key, text) in texts {
        let encoded = encode_base64(text.as_str().unwrap_or_default().as_bytes());
        data.insert(key, encoded.into());
    }
}

fn endpoints(map: &mut Map<String, Value>) {
    for subset in maps_in(map, "subsets") {
        for port in maps_in(subset, "ports") {
            default_text(port, "protocol", "TCP");
        }
    }
}

fn persistent_volume(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    default(spec, "volumeMode", "Filesystem");
    if let Some(path) = map_in(spec, "hostPath") {
        default(path, "type", "");
    }
    default_text(map_entry(map, "status"), "phase", "Pending");
}

fn claim(map: &mut Map<String, Value>) {
    claim_spec(map_entry(map, "spec"));
    default_text(map_entry(map, "status"), "phase", "Pending");
}

fn claim_spec(spec: &mut Map<String, Value>) {
    default(spec, "volumeMode", "Filesystem");
    default(spec, "resources", json!({}));
}

fn limit_range(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    for item in maps_in(spec, "limits") {
        if text(item, "type") != "Container" {
            continue;
        }
        // default <- max, defaultRequest <- default, defaultRequest <- min; upstream in this order.
        for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let given = item.get(source).and_then(Value::as_object).cloned().unwrap_or_default();
            if given.is_empty() {
                continue;
            }
            let filled = map_entry(item, target);
            for (name, amount) in given {
                filled.entry(name).or_insert(amount);
            }
        }
    }
}

fn namespace(map: &mut Map<String, Value>) {
    let name = map.get("metadata").and_then(|meta| meta.get("name")).and_then(Value::as_str).unwrap_or_default();
    if !name.is_empty() {
        let name = name.to_owned();
        let labels = map_entry(map_entry(map, "metadata"), "labels");
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
    default_text(map_entry(map, "status"), "phase", "Active");
}

fn node(map: &mut Map<String, Value>) {
    let Some(status) = map_in(map, "status") else { return };
    if let Some(capacity) = status.get("capacity").and_then(Value::as_object).cloned() {
        let allocatable = map_entry(status, "allocatable");
        for (name, amount) in capacity {
            allocatable.entry(name).or_insert(amount);
        }
    }
}

fn network_policy(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    default(spec, "podSelector", json!({}));
    for direction in ["ingress", "egress"] {
        for rule in maps_in(spec, direction) {
            for port in maps_in(rule, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let kinds = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), kinds);
    }
}

fn ingress_class(map: &mut Map<String, Value>) {
    if let Some(parameters) = map_in(map, "spec").and_then(|spec| map_in(spec, "parameters")) {
        default(parameters, "scope", "Cluster");
    }
}

fn binding(map: &mut Map<String, Value>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = map_in(map, "roleRef") {
        default_text(role, "apiGroup", GROUP);
    }
    for subject in maps_in(map, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default_text(subject, "apiGroup", GROUP);
        }
    }
}

fn csi_driver(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    default(spec, "attachRequired", true);
    default(spec, "podInfoOnMount", false);
    default(spec, "storageCapacity", false);
    default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    default(spec, "requiresRepublish", false);
    default(spec, "seLinuxMount", false);
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row;

    #[track_caller]
    fn check(group: &str, version: &str, resource: &str, given: Value, expect: Value) {
        let row = row(group, version, resource).unwrap();
        let mut object = Object::from_value(given).unwrap();
        apply(row, &mut object);
        assert_eq!(object.to_value(), expect);
        apply(row, &mut object);
        assert_eq!(object.to_value(), expect, "defaults are idempotent");
    }

    #[test]
    fn fills_a_pod() {
        check(
            "",
            "v1",
            "pods",
            json!({"spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}}),
            json!({"spec": {"containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}], "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "livenessProbe": {"httpGet": {"port": 80, "path": "/",
                "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1,
                "failureThreshold": 3}, "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
                "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true}}),
        );
    }

    #[test]
    fn fills_services_and_workloads() {
        check(
            "",
            "v1",
            "services",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"}}),
        );
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"dnsPolicy": "ClusterFirst",
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "securityContext": {},
            "schedulerName": "default-scheduler"}});
        check(
            "apps",
            "v1",
            "deployments",
            json!({"spec": {"replicas": 0, "strategy": {"type": ""}, "template": {"metadata": {"labels": {"a": "b"}}}}}),
            json!({"spec": {"replicas": 0, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%",
                "maxUnavailable": "25%"}}, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "template": template}}),
        );
        check(
            "apps",
            "v1",
            "deployments",
            json!({"spec": {"strategy": {"type": "Recreate"}, "template": template}}),
            json!({"spec": {"replicas": 1, "strategy": {"type": "Recreate"}, "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600, "template": template}}),
        );
    }

    #[test]
    fn secrets_take_plain_text_over_encoded() {
        check(
            "",
            "v1",
            "secrets",
            json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "plain"}}),
            json!({"type": "Opaque", "data": {"a": "cGxhaW4=", "b": "eQ=="}}),
        );
    }

    #[test]
    fn fills_policies_and_bindings() {
        check(
            "networking.k8s.io",
            "v1",
            "networkpolicies",
            json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}}),
            json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}],
                "policyTypes": ["Ingress", "Egress"]}}),
        );
        check(
            "",
            "v1",
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"}}]}}),
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Gi"}}]}}),
        );
    }
}
