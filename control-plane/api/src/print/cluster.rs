//! Lines of pods, nodes, namespaces, events, accounts, configuration and quotas.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, CREATED_AT, NAME, Printer, age, created_at, list, name, number, plain, pod, since, text, text_or, time_at,
    wide,
};
use crate::Object;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    let printer = match kind {
        "Pod" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Ready"),
                    text("Status"),
                    text("Restarts"),
                    AGE,
                    wide("IP"),
                    wide("Node"),
                    wide("Nominated Node"),
                    wide("Readiness Gates"),
                ]
            },
            cells: pod::cells,
        },
        "Node" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Status"),
                    text("Roles"),
                    AGE,
                    text("Version"),
                    wide("Internal-IP"),
                    wide("External-IP"),
                    wide("OS-Image"),
                    wide("Kernel-Version"),
                    wide("Container-Runtime"),
                ]
            },
            cells: node,
        },
        "Namespace" => Printer {
            columns: const { &[NAME, text("Status"), AGE] },
            cells: |object, now| vec![name(object), text_or(object, &["status", "phase"], ""), age(object, now)],
        },
        "Event" => Printer {
            columns: const {
                &[
                    text("Last Seen"),
                    text("Type"),
                    text("Reason"),
                    text("Object"),
                    wide("Subobject"),
                    wide("Source"),
                    text("Message"),
                    wide("First Seen"),
                    super::Column { name: "Count", kind: "integer", priority: 1 },
                    wide("Name"),
                ]
            },
            cells: event,
        },
        "ConfigMap" => Printer { columns: const { &[NAME, number("Data"), AGE] }, cells: config_map },
        "Secret" => Printer { columns: const { &[NAME, text("Type"), number("Data"), AGE] }, cells: secret },
        "ServiceAccount" => Printer {
            columns: const { &[NAME, number("Secrets"), AGE] },
            cells: |object, now| vec![name(object), object.list_at(&["secrets"]).len().into(), age(object, now)],
        },
        "ResourceQuota" => {
            Printer { columns: const { &[NAME, text("Request"), text("Limit"), AGE] }, cells: resource_quota }
        }
        "LimitRange" => Printer {
            columns: const { &[NAME, CREATED_AT] },
            cells: |object, _| vec![name(object), created_at(object)],
        },
        "ComponentStatus" => {
            Printer { columns: const { &[NAME, text("Status"), text("Message"), text("Error")] }, cells: component }
        }
        _ => return None,
    };
    Some(printer)
}

fn node(object: &Object, now: Timestamp) -> Vec<Value> {
    let ready = object.list_at(&["status", "conditions"]).iter().find(|one| one["type"] == "Ready");
    let mut status = match ready {
        Some(one) if one["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.bool_at(&["spec", "unschedulable"]) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in object.labels() {
        let role = key.strip_prefix("node-role.kubernetes.io/").or((key == "kubernetes.io/role").then_some(value));
        roles.extend(role.filter(|role| !role.is_empty()));
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let addresses = object.list_at(&["status", "addresses"]).iter();
        plain(addresses.into_iter().find(|one| one["type"] == kind).map(|one| &one["address"]), "<none>")
    };
    let info = |key: &str| text_or(object, &["status", "nodeInfo", key], "<unknown>");
    vec![
        name(object),
        status.into(),
        list(roles),
        age(object, now),
        text_or(object, &["status", "nodeInfo", "kubeletVersion"], ""),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn event(object: &Object, now: Timestamp) -> Vec<Value> {
    let at = |path: &[&str]| time_at(object, path);
    let first = since(at(&["firstTimestamp"]).or(at(&["eventTime"])), now);
    let mut last = at(&["lastTimestamp"]).map_or_else(|| first.clone(), |time| since(Some(time), now));
    let mut times = object.i64_at(&["count"]).unwrap_or(0).max(1);
    if object.at(&["series"]).is_some_and(Value::is_object) {
        last = since(at(&["series", "lastObservedTime"]), now);
        times = object.i64_at(&["series", "count"]).unwrap_or(0);
    }
    let part = |path: &[&str]| object.str_at(path).unwrap_or_default();
    let component = match part(&["source", "component"]) {
        "" => part(&["reportingComponent"]),
        component => component,
    };
    let host = match part(&["source", "host"]) {
        "" => part(&["reportingInstance"]),
        host => host,
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let target = format!("{}/{}", part(&["involvedObject", "kind"]).to_lowercase(), part(&["involvedObject", "name"]));
    vec![
        last.into(),
        part(&["type"]).into(),
        part(&["reason"]).into(),
        target.into(),
        part(&["involvedObject", "fieldPath"]).into(),
        source.into(),
        part(&["message"]).trim().into(),
        first.into(),
        times.into(),
        name(object),
    ]
}

fn keys(object: &Object, key: &str) -> usize {
    object.get(key).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

fn config_map(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), (keys(object, "data") + keys(object, "binaryData")).into(), age(object, now)]
}

fn secret(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), text_or(object, &["type"], ""), keys(object, "data").into(), age(object, now)]
}

fn resource_quota(object: &Object, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in object.at(&["status", "hard"]).and_then(Value::as_object).into_iter().flatten() {
        let used = plain(object.at(&["status", "used", resource]), "0");
        let shown = format!(
            "{resource}: {}/{}",
            used.as_str().unwrap_or_default(),
            plain(Some(hard), "").as_str().unwrap_or_default()
        );
        if resource.starts_with("limits") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age(object, now)]
}

fn component(object: &Object, _: Timestamp) -> Vec<Value> {
    let healthy = object.list_at(&["conditions"]).iter().find(|one| one["type"] == "Healthy");
    let status = match healthy.and_then(|one| one["status"].as_str()) {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let part = |key: &str| plain(healthy.and_then(|one| one.get(key)), "");
    vec![name(object), status.into(), part("message"), part("error")]
}
