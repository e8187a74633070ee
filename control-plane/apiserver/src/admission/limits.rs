//! LimitRanges: defaults for containers that name no requests or limits, and refusal of what lies outside.

use control_plane_api::{Object, Quantity, Status};
use serde_json::{Map, Value};

use crate::{status::Outcome, verb::Call};

/// The entries of every LimitRange in a namespace that are about `kind`.
fn entries(call: &Call, namespace: &str, kind: &str) -> Vec<Value> {
    let Some(ranges) = call.kernel.cache.of("", "limitranges") else { return Vec::new() };
    let prefix = format!("{}{namespace}/", ranges.prefix());
    let snapshot = ranges.snapshot();
    let objects = snapshot.range(&prefix, "").map(|cached| cached.object());
    let all = objects.flat_map(|range| range.list_at(&["spec", "limits"]).to_vec());
    all.filter(|entry| entry.get("type").and_then(Value::as_str) == Some(kind)).collect()
}

pub(super) fn complete(call: &Call, pod: &mut Object) -> Outcome<()> {
    let entries = entries(call, pod.namespace(), "Container");
    if entries.is_empty() {
        return Ok(());
    }
    for list in ["containers", "initContainers"] {
        let mut containers = pod.list_at(&["spec", list]).to_vec();
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let resources = control_plane_api::object::map_entry(container, "resources");
            for entry in &entries {
                fill(resources, "limits", entry.get("default"));
                // A limit alone is also the request, unless the range says another.
                fill(resources, "requests", entry.get("defaultRequest"));
            }
        }
        if !containers.is_empty() {
            pod.set(&["spec", list], containers);
        }
    }
    Ok(())
}

fn fill(resources: &mut Map<String, Value>, which: &str, defaults: Option<&Value>) {
    let Some(defaults) = defaults.and_then(Value::as_object) else { return };
    for (name, value) in defaults {
        // An own limit below the default request would contradict it: then the limit is the request.
        let own_limit = resources.get("limits").and_then(|limits| limits.get(name)).cloned();
        let map = control_plane_api::object::map_entry(resources, which);
        if map.contains_key(name) {
            continue;
        }
        let chosen = match (which, own_limit) {
            ("requests", Some(limit)) if quantity(&limit) < quantity(value) => limit,
            _ => value.clone(),
        };
        map.insert(name.clone(), chosen);
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub(super) fn check(call: &Call, pod: &Object) -> Outcome<()> {
    let entries = entries(call, pod.namespace(), "Container");
    let mut complaints = Vec::new();
    for container in ["containers", "initContainers"].iter().flat_map(|list| pod.list_at(&["spec", list])) {
        for entry in &entries {
            compare(container, entry, "min", "requests", "minimum", &mut complaints);
            compare(container, entry, "max", "limits", "maximum", &mut complaints);
        }
    }
    if complaints.is_empty() {
        return Ok(());
    }
    complaints.dedup();
    let why = if complaints.len() == 1 { complaints.remove(0) } else { format!("[{}]", complaints.join(", ")) };
    Err(Status::forbidden("", "pods", pod.name(), &why).into())
}

fn compare(container: &Value, entry: &Value, bound: &str, which: &str, word: &str, complaints: &mut Vec<String>) {
    for (name, limit) in entry.get(bound).and_then(Value::as_object).into_iter().flatten() {
        let used = container.get("resources").and_then(|resources| resources.get(which)).and_then(|map| map.get(name));
        let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let subject = if which == "requests" { "request" } else { "limit" };
        match used {
            None => complaints
                .push(format!("{word} {name} usage per Container is {}.  No {subject} is specified", shown(limit))),
            Some(used) => {
                let wrong =
                    if bound == "min" { quantity(used) < quantity(limit) } else { quantity(used) > quantity(limit) };
                if wrong {
                    complaints.push(format!(
                        "{word} {name} usage per Container is {}, but {subject} is {}",
                        shown(limit),
                        shown(used)
                    ));
                }
            }
        }
    }
}
