//! Lines as kubectl prints them.

use super::*;
use crate::row;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

#[track_caller]
fn check(group: &str, version: &str, resource: &str, object: Value, expect: Value) {
    let row = row(group, version, resource).unwrap();
    let cells = cells(row, &Object::from_value(object).unwrap(), now());
    assert_eq!(Value::Array(cells.clone()), expect);
    assert_eq!(cells.len(), columns(row).len());
}

#[track_caller]
fn pod(status: Value, extra: Value, expect: [&str; 3]) {
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}, "status": status});
    for (key, value) in extra.as_object().unwrap() {
        pod[key] = value.clone();
    }
    let cells = cells(row("", "v1", "pods").unwrap(), &Object::from_value(pod).unwrap(), now());
    let shown: Vec<&str> = cells[1..4].iter().map(|cell| cell.as_str().unwrap()).collect();
    assert_eq!(shown, expect);
}

#[test]
fn pods_show_what_their_containers_do() {
    pod(json!({"phase": "Pending"}), json!({}), ["0/1", "Pending", "0"]);
    let running = json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 3,
        "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-02T02:59:05Z"}}}]});
    pod(running.clone(), json!({}), ["1/1", "Running", "3 (5m ago)"]);
    let deleting = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-02T03:04:05Z"}});
    pod(running, deleting, ["1/1", "Terminating", "3 (5m ago)"]);
    let waiting =
        json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    pod(waiting, json!({}), ["0/1", "CrashLoopBackOff", "0"]);
    let done = json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]});
    pod(done, json!({}), ["0/1", "Completed", "0"]);
    let killed =
        json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]});
    pod(killed, json!({}), ["0/1", "Signal:9", "0"]);
    let failed = json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]});
    pod(failed, json!({}), ["0/1", "ExitCode:3", "0"]);
    pod(json!({"phase": "Failed", "reason": "Evicted"}), json!({}), ["0/1", "Evicted", "0"]);
}

#[test]
fn pods_show_their_initialization() {
    let spec = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]}});
    let init = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": state}]});
    pod(init(json!({"running": {}})), spec.clone(), ["0/1", "Init:0/2", "0"]);
    pod(init(json!({"waiting": {"reason": "ErrImagePull"}})), spec.clone(), ["0/1", "Init:ErrImagePull", "0"]);
    pod(init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})), spec, ["0/1", "Init:Error", "0"]);
    let sidecar =
        json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i", "restartPolicy": "Always"}]}});
    let status = json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "started": true, "ready": true,
        "restartCount": 1, "state": {"running": {}}}], "containerStatuses": [{"ready": true, "state": {"running": {}}}]});
    pod(status, sidecar, ["2/2", "Running", "1"]);
}

#[test]
fn services_show_addresses_and_ports() {
    check(
        "",
        "v1",
        "services",
        json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-02T03:03:05Z"}, "spec": {"type": "NodePort",
            "clusterIP": "10.43.0.5", "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            "selector": {"app": "x"}}}),
        json!(["s", "NodePort", "10.43.0.5", "<none>", "80:30001/TCP,53/UDP", "60s", "app=x"]),
    );
    check(
        "",
        "v1",
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.5"}}),
        json!(["s", "LoadBalancer", "10.43.0.5", "<pending>", "<none>", "<unknown>", "<none>"]),
    );
}

#[test]
fn nodes_workloads_and_events_have_their_lines() {
    check(
        "",
        "v1",
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "sampan://1"}}}),
        json!([
            "n",
            "Ready,SchedulingDisabled",
            "control-plane",
            "<unknown>",
            "v1.36.0",
            "1.2.3.4",
            "<none>",
            "Debian",
            "6.1",
            "sampan://1"
        ]),
    );
    check(
        "apps",
        "v1",
        "deployments",
        json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec":
            {"containers": [{"name": "c", "image": "i"}, {"name": "e", "image": "j"}]}}}, "status": {"readyReplicas": 1,
            "updatedReplicas": 2, "availableReplicas": 1}}),
        json!(["d", "1/3", 2, 1, "<unknown>", "c,e", "i,j", "a=b"]),
    );
    check(
        "events.k8s.io",
        "v1",
        "events",
        json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "note": " hello ", "type": "Normal",
            "reason": "R", "eventTime": "2026-01-02T03:03:55.5Z", "reportingController": "k", "reportingInstance": "n"}),
        json!(["10s", "Normal", "R", "pod/p", "", "k, n", "hello", "10s", 1, "e"]),
    );
    check(
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3,
            "minReplicas": 1, "targetCPUUtilizationPercentage": 80}}),
        json!(["h", "Deployment/d", "cpu: <unknown>/80%", "1", "3", 0, "<unknown>"]),
    );
    check(
        "batch",
        "v1",
        "jobs",
        json!({"metadata": {"name": "j"}, "spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": "2026-01-02T03:00:00Z",
            "completionTime": "2026-01-02T03:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
        json!(["j", "Complete", "1/1", "7s", "<unknown>", "", "", "<none>"]),
    );
}

#[test]
fn every_kind_prints_even_an_empty_object() {
    for row in crate::rows() {
        let empty = Object::new(&row.api_version(), row.kind);
        assert_eq!(cells(row, &empty, now()).len(), columns(row).len(), "{}", row.kind);
        let table = table(row, [&empty], Map::new(), Include::Metadata, now());
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}

#[test]
fn a_scale_has_columns_of_its_own() {
    let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "web", "resourceVersion": "7",
        "creationTimestamp": "2026-01-02T03:03:05Z"}, "spec": {"replicas": 3}, "status": {"replicas": 2}});
    let table = scale_table(&Object::from_value(scale).unwrap(), Include::None, now());
    let names: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
    assert_eq!(table["rows"][0]["cells"], json!(["web", 3, 2, "60s"]));
    assert_eq!(table["metadata"]["resourceVersion"], "7");
}
