//! Lines of what makes pods: deployments and their kin, jobs, autoscalers, templates.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, NAME, Printer, age, containers, count, flag, human, labels, list, name, number, plain, selector, since, text,
    text_or, time_at, wide,
};
use crate::Object;

const CONTAINERS: super::Column = wide("Containers");
const IMAGES: super::Column = wide("Images");
const SELECTOR: super::Column = wide("Selector");

pub(super) fn printer(kind: &str) -> Option<Printer> {
    let printer = match kind {
        "Deployment" => Printer {
            columns: const {
                &[NAME, text("Ready"), number("Up-to-date"), number("Available"), AGE, CONTAINERS, IMAGES, SELECTOR]
            },
            cells: deployment,
        },
        "ReplicaSet" | "ReplicationController" => Printer {
            columns: const {
                &[NAME, number("Desired"), number("Current"), number("Ready"), AGE, CONTAINERS, IMAGES, SELECTOR]
            },
            cells: replica_set,
        },
        "DaemonSet" => Printer {
            columns: const {
                &[
                    NAME,
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    number("Up-to-date"),
                    number("Available"),
                    text("Node Selector"),
                    AGE,
                    CONTAINERS,
                    IMAGES,
                    SELECTOR,
                ]
            },
            cells: daemon_set,
        },
        "StatefulSet" => {
            Printer { columns: const { &[NAME, text("Ready"), AGE, CONTAINERS, IMAGES] }, cells: stateful_set }
        }
        "ControllerRevision" => Printer {
            columns: const { &[NAME, text("Controller"), text("Revision"), AGE] },
            cells: controller_revision,
        },
        "Job" => Printer {
            columns: const {
                &[NAME, text("Status"), text("Completions"), text("Duration"), AGE, CONTAINERS, IMAGES, SELECTOR]
            },
            cells: job,
        },
        "CronJob" => Printer {
            columns: const {
                &[
                    NAME,
                    text("Schedule"),
                    text("Timezone"),
                    flag("Suspend"),
                    number("Active"),
                    text("Last Schedule"),
                    AGE,
                    CONTAINERS,
                    IMAGES,
                    SELECTOR,
                ]
            },
            cells: cron_job,
        },
        "HorizontalPodAutoscaler" => Printer {
            columns: const {
                &[NAME, text("Reference"), text("Targets"), text("MinPods"), text("MaxPods"), number("Replicas"), AGE]
            },
            cells: autoscaler,
        },
        "PodTemplate" => Printer {
            columns: const { &[NAME, text("Containers"), text("Images"), text("Pod Labels")] },
            cells: pod_template,
        },
        _ => return None,
    };
    Some(printer)
}

fn template(object: &Object) -> [Value; 2] {
    containers(object.at(&["spec", "template", "spec"]))
}

fn of(ready: Option<i64>, wanted: Option<i64>) -> Value {
    format!("{}/{}", ready.unwrap_or(0), wanted.unwrap_or(0)).into()
}

fn deployment(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = template(object);
    vec![
        name(object),
        of(object.i64_at(&["status", "readyReplicas"]), object.i64_at(&["spec", "replicas"])),
        count(object, &["status", "updatedReplicas"]),
        count(object, &["status", "availableReplicas"]),
        age(object, now),
        names,
        images,
        selector(object.at(&["spec", "selector"])),
    ]
}

fn replica_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = template(object);
    let spec = object.at(&["spec", "selector"]);
    let selected = if object.kind() == "ReplicationController" { labels(spec) } else { selector(spec) };
    vec![
        name(object),
        count(object, &["spec", "replicas"]),
        count(object, &["status", "replicas"]),
        count(object, &["status", "readyReplicas"]),
        age(object, now),
        names,
        images,
        selected,
    ]
}

fn daemon_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = template(object);
    let status = |key| count(object, &["status", key]);
    vec![
        name(object),
        status("desiredNumberScheduled"),
        status("currentNumberScheduled"),
        status("numberReady"),
        status("updatedNumberScheduled"),
        status("numberAvailable"),
        labels(object.at(&["spec", "template", "spec", "nodeSelector"])),
        age(object, now),
        names,
        images,
        selector(object.at(&["spec", "selector"])),
    ]
}

fn stateful_set(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = template(object);
    let ready = of(object.i64_at(&["status", "readyReplicas"]), object.i64_at(&["spec", "replicas"]));
    vec![name(object), ready, age(object, now), names, images]
}

fn controller_revision(object: &Object, now: Timestamp) -> Vec<Value> {
    let controller = match object.controller() {
        Some(owner) => {
            let group = owner.api_version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
            format!("{}{group}/{}", owner.kind.to_lowercase(), owner.name)
        }
        None => "<none>".into(),
    };
    vec![name(object), controller.into(), plain(object.get("revision"), "0"), age(object, now)]
}

fn job(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = template(object);
    let succeeded = object.i64_at(&["status", "succeeded"]).unwrap_or(0);
    let completions = match (object.i64_at(&["spec", "completions"]), object.i64_at(&["spec", "parallelism"])) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, Some(parallelism)) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let started = time_at(object, &["status", "startTime"]);
    let duration = match (started, time_at(object, &["status", "completionTime"])) {
        (None, _) => String::new(),
        (Some(start), Some(end)) => human(end.as_second() - start.as_second()),
        (Some(start), None) => since(Some(start), now),
    };
    vec![
        name(object),
        job_status(object).into(),
        completions.into(),
        duration.into(),
        age(object, now),
        names,
        images,
        selector(object.at(&["spec", "selector"])),
    ]
}

fn job_status(object: &Object) -> &'static str {
    let holds = |kind: &str| {
        object.list_at(&["status", "conditions"]).iter().any(|one| one["type"] == kind && one["status"] == "True")
    };
    for (kind, shown) in [("Complete", "Complete"), ("Failed", "Failed")] {
        if holds(kind) {
            return shown;
        }
    }
    if object.is_deleting() {
        return "Terminating";
    }
    let rest =
        [("Suspended", "Suspended"), ("FailureTarget", "FailureTarget"), ("SuccessCriteriaMet", "SuccessCriteriaMet")];
    rest.into_iter().find(|(kind, _)| holds(kind)).map_or("Running", |(_, shown)| shown)
}

fn cron_job(object: &Object, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(object.at(&["spec", "jobTemplate", "spec", "template", "spec"]));
    let last = match time_at(object, &["status", "lastScheduleTime"]) {
        Some(time) => since(Some(time), now),
        None => "<none>".into(),
    };
    vec![
        name(object),
        text_or(object, &["spec", "schedule"], ""),
        text_or(object, &["spec", "timeZone"], "<none>"),
        plain(object.at(&["spec", "suspend"]), "<unset>").as_str().map(capital).unwrap_or_default().into(),
        object.list_at(&["status", "active"]).len().into(),
        last.into(),
        age(object, now),
        names,
        images,
        selector(object.at(&["spec", "jobTemplate", "spec", "selector"])),
    ]
}

/// `True` and `False`, as upstream prints a pointer to a bool.
fn capital(text: &str) -> String {
    match text {
        "true" => "True".into(),
        "false" => "False".into(),
        other => other.into(),
    }
}

fn autoscaler(object: &Object, now: Timestamp) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        object.str_at(&["spec", "scaleTargetRef", "kind"]).unwrap_or_default(),
        object.str_at(&["spec", "scaleTargetRef", "name"]).unwrap_or_default()
    );
    vec![
        name(object),
        reference.into(),
        targets(object).into(),
        plain(object.at(&["spec", "minReplicas"]), "<unset>"),
        plain(object.at(&["spec", "maxReplicas"]), "0"),
        count(object, &["status", "currentReplicas"]),
        age(object, now),
    ]
}

fn targets(object: &Object) -> String {
    /// More metrics than this are counted, not named.
    const SHOWN_MAX: usize = 2;
    let metrics = object.list_at(&["spec", "metrics"]);
    if metrics.is_empty() {
        return "<none>".into();
    }
    let current = object.list_at(&["status", "currentMetrics"]);
    let shown = metrics.iter().take(SHOWN_MAX).enumerate().map(|(index, metric)| target(metric, current.get(index)));
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if metrics.len() > SHOWN_MAX {
        text.push_str(&format!(" + {} more...", metrics.len() - SHOWN_MAX));
    }
    text
}

/// `cpu: 10%/80%`, or the bare values of a metric that is no resource.
fn target(metric: &Value, current: Option<&Value>) -> String {
    let (source, prefix) = match metric["type"].as_str().unwrap_or_default() {
        "Resource" => ("resource", format!("{}: ", metric["resource"]["name"].as_str().unwrap_or_default())),
        "ContainerResource" => {
            ("containerResource", format!("{}: ", metric["containerResource"]["name"].as_str().unwrap_or_default()))
        }
        "External" => ("external", String::new()),
        "Pods" => ("pods", String::new()),
        "Object" => ("object", String::new()),
        _ => return "<unknown type>".into(),
    };
    let wanted = &metric[source]["target"];
    let now = current.map(|current| &current[source]["current"]);
    let pick = |key: &str| now.and_then(|now| now.get(key)).filter(|value| !value.is_null());
    let shown = |value: &Value| plain(Some(value), "").as_str().unwrap_or_default().to_owned();
    if wanted["averageUtilization"].is_number() {
        let have = pick("averageUtilization").map_or("<unknown>".into(), |value| format!("{}%", shown(value)));
        return format!("{prefix}{have}/{}%", shown(&wanted["averageUtilization"]));
    }
    let (key, suffix) = if wanted["averageValue"].is_null() { ("value", "") } else { ("averageValue", " (avg)") };
    let suffix = if source == "resource" || source == "containerResource" || source == "pods" { "" } else { suffix };
    let have = pick(key).map_or("<unknown>".into(), shown);
    format!("{prefix}{have}/{}{suffix}", shown(&wanted[key]))
}

fn pod_template(object: &Object, _: Timestamp) -> Vec<Value> {
    let [names, images] = containers(object.at(&["template", "spec"]));
    let pod_labels = object.at(&["template", "metadata", "labels"]);
    let shown = if pod_labels.is_some() { labels(pod_labels) } else { list([]) };
    vec![name(object), names, images, shown]
}
