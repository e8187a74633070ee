//! Pods: tolerations that let them survive a short loss of their node, and their priority.

use control_plane_api::{Object, Status};
use serde_json::{Value, json};

use crate::{status::Outcome, verb::Call};

/// How long a pod stays bound to a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub(super) fn complete(call: &Call, pod: &mut Object) -> Outcome<()> {
    priority(call, pod)?;
    let mut tolerations = pod.list_at(&["spec", "tolerations"]).to_vec();
    for taint in TAINTS {
        if !tolerations.iter().any(|one| tolerates_no_execute(one, taint)) {
            tolerations.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
    if has_requests(pod)
        && !tolerations.iter().any(|one| one.get("key").and_then(Value::as_str) == Some(MEMORY_PRESSURE))
    {
        tolerations.push(json!({"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"}));
    }
    pod.set(&["spec", "tolerations"], tolerations);
    Ok(())
}

/// A patch that leaves out what was added here does not take it away.
pub(super) fn keep_on_update(pod: &mut Object, live: Option<&Object>) {
    let Some(live) = live else { return };
    for field in ["priority", "preemptionPolicy", "serviceAccount"] {
        if pod.at(&["spec", field]).is_none()
            && let Some(value) = live.at(&["spec", field])
        {
            pod.set(&["spec", field], value.clone());
        }
    }
}

/// Memory pressure only threatens best-effort pods: whoever asks for resources is let onto such a node.
fn has_requests(pod: &Object) -> bool {
    ["containers", "initContainers"].iter().flat_map(|list| pod.list_at(&["spec", list])).any(|container| {
        ["requests", "limits"].iter().any(|which| {
            let resources = container.get("resources").and_then(|resources| resources.get(*which));
            resources
                .and_then(Value::as_object)
                .is_some_and(|map| map.contains_key("cpu") || map.contains_key("memory"))
        })
    })
}

fn tolerates_no_execute(toleration: &Value, taint: &str) -> bool {
    let text = |key: &str| toleration.get(key).and_then(Value::as_str).unwrap_or("");
    (text("key") == taint || (text("key").is_empty() && text("operator") == "Exists"))
        && matches!(text("effect"), "" | "NoExecute")
}

fn priority(call: &Call, pod: &mut Object) -> Outcome<()> {
    let refused = |pod: &Object, why: &str| Status::forbidden("", "pods", pod.name(), why);
    let classes = call.kernel.cache.of("scheduling.k8s.io", "priorityclasses");
    let mut class = pod.str_at(&["spec", "priorityClassName"]).unwrap_or("").to_owned();
    let (value, policy) = if class.is_empty() {
        let default = classes.and_then(|classes| {
            let snapshot = classes.snapshot();
            let defaults = snapshot
                .all()
                .map(|cached| cached.object())
                .filter(|one| one.bool_at(&["globalDefault"]) == Some(true));
            // Several defaults are a mistake that upstream settles by the lowest value.
            defaults.min_by_key(|one| one.i64_at(&["value"]).unwrap_or(0))
        });
        match default {
            Some(default) => {
                default.name().clone_into(&mut class);
                (default.i64_at(&["value"]).unwrap_or(0), default.str_at(&["preemptionPolicy"]).map(str::to_owned))
            }
            None => (0, None),
        }
    } else if let Some(found) = classes.and_then(|classes| classes.get("", &class)) {
        let found = found.object();
        (found.i64_at(&["value"]).unwrap_or(0), found.str_at(&["preemptionPolicy"]).map(str::to_owned))
    } else if let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(name, _)| *name == class) {
        (*value, None)
    } else {
        return Err(refused(pod, &format!("no PriorityClass with name {class} was found")).into());
    };
    if let Some(given) = pod.i64_at(&["spec", "priority"])
        && given != value
    {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(refused(pod, &why).into());
    }
    if !class.is_empty() {
        pod.set(&["spec", "priorityClassName"], class);
    }
    pod.set(&["spec", "priority"], value);
    if pod.at(&["spec", "preemptionPolicy"]).is_none() {
        pod.set(&["spec", "preemptionPolicy"], policy.as_deref().unwrap_or("PreemptLowerPriority"));
    }
    Ok(())
}
