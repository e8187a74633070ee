//! The pod's line: READY, STATUS and RESTARTS as kubectl derives them from container statuses.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, since};
use crate::Object;

/// What the statuses add up to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let mut restarts = summary.restarts.to_string();
    if summary.restarts != 0 && summary.last_restart.is_some() {
        restarts.push_str(&format!(" ({} ago)", since(summary.last_restart, now)));
    }
    let none = |path: &[&str]| super::text_or(pod, path, "<none>");
    vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        none(&["status", "podIP"]),
        none(&["spec", "nodeName"]),
        none(&["status", "nominatedNodeName"]),
        gates(pod),
    ]
}

fn gates(pod: &Object) -> Value {
    let gates = pod.list_at(&["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| {
        gate.get("conditionType").and_then(Value::as_str).is_some_and(|kind| condition(pod, kind) == Some("True"))
    });
    format!("{}/{}", met.count(), gates.len()).into()
}

fn condition<'a>(pod: &'a Object, kind: &str) -> Option<&'a str> {
    pod.list_at(&["status", "conditions"]).iter().find(|one| one["type"] == kind)?.get("status")?.as_str()
}

fn finished(status: &Value) -> Option<Timestamp> {
    status["lastState"]["terminated"]["finishedAt"].as_str()?.parse().ok()
}

/// Why a container ended: its reason, or its signal, or its exit code.
fn end_reason(terminated: &Value) -> String {
    match terminated["reason"].as_str().filter(|reason| !reason.is_empty()) {
        Some(reason) => reason.to_owned(),
        None => match terminated["signal"].as_i64() {
            Some(signal) if signal != 0 => format!("Signal:{signal}"),
            _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        },
    }
}

fn waiting_reason(status: &Value) -> Option<&str> {
    status["state"]["waiting"]["reason"].as_str().filter(|reason| !reason.is_empty())
}

fn summarize(pod: &Object) -> Summary {
    let phase = pod.str_at(&["status", "phase"]).unwrap_or_default();
    let status_reason = pod.str_at(&["status", "reason"]).unwrap_or_default();
    let reason = if status_reason.is_empty() { phase } else { status_reason };
    let gated = pod
        .list_at(&["status", "conditions"])
        .iter()
        .any(|one| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated");
    let mut summary = Summary {
        reason: if gated { "SchedulingGated".into() } else { reason.to_owned() },
        ready: 0,
        total: pod.list_at(&["spec", "containers"]).len(),
        restarts: 0,
        last_restart: None,
    };
    let (initializing, sidecars) = init_containers(pod, &mut summary);
    if !initializing || condition(pod, "Initialized") == Some("True") {
        (summary.restarts, summary.last_restart) = sidecars;
        containers(pod, &mut summary);
    }
    if pod.is_deleting() {
        if status_reason == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Whether initialization still runs, and the restarts of sidecars alone.
fn init_containers(pod: &Object, summary: &mut Summary) -> (bool, (i64, Option<Timestamp>)) {
    let specs = pod.list_at(&["spec", "initContainers"]);
    let is_sidecar = |name: &Value| specs.iter().any(|one| one["name"] == *name && one["restartPolicy"] == "Always");
    summary.total += specs.iter().filter(|one| one["restartPolicy"] == "Always").count();
    let mut sidecars = (0, None);
    for (index, status) in pod.list_at(&["status", "initContainerStatuses"]).iter().enumerate() {
        let restarts = status["restartCount"].as_i64().unwrap_or(0);
        summary.restarts += restarts;
        summary.last_restart = summary.last_restart.max(finished(status));
        let sidecar = is_sidecar(&status["name"]);
        if sidecar {
            sidecars = (sidecars.0 + restarts, sidecars.1.max(finished(status)));
        }
        let terminated = &status["state"]["terminated"];
        if terminated["exitCode"].as_i64() == Some(0) {
            continue;
        }
        if sidecar && status["started"].as_bool() == Some(true) {
            summary.ready += usize::from(status["ready"].as_bool() == Some(true));
            continue;
        }
        summary.reason = if terminated.is_object() {
            format!("Init:{}", end_reason(terminated))
        } else {
            match waiting_reason(status).filter(|reason| *reason != "PodInitializing") {
                Some(reason) => format!("Init:{reason}"),
                None => format!("Init:{index}/{}", specs.len()),
            }
        };
        return (true, sidecars);
    }
    (false, sidecars)
}

fn containers(pod: &Object, summary: &mut Summary) {
    let mut running = false;
    for status in pod.list_at(&["status", "containerStatuses"]).iter().rev() {
        summary.restarts += status["restartCount"].as_i64().unwrap_or(0);
        summary.last_restart = summary.last_restart.max(finished(status));
        let terminated = &status["state"]["terminated"];
        if let Some(reason) = waiting_reason(status) {
            summary.reason = reason.to_owned();
        } else if terminated.is_object() {
            summary.reason = end_reason(terminated);
        } else if status["ready"].as_bool() == Some(true) && status["state"]["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition(pod, "Ready") == Some("True");
        summary.reason = if ready { "Running".into() } else { "NotReady".into() };
    }
}
