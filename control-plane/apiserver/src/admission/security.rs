//! Pod Security: a namespace's labels say what its pods may ask for. `enforce` refuses pods, `warn` tells whoever writes pods or
//! what makes them. The rules are the vocabulary's (`control_plane_api::pod_security`).

use control_plane_api::{
    Object, Status,
    pod_security::{self, Level},
};
use serde_json::{Value, json};

use super::{Operation, is};
use crate::{status::Outcome, verb::Call};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// The level that a namespace's label asks for.
fn level(call: &Call, namespace: &str, mode: &str) -> Level {
    let namespaces = call.kernel.cache.of("", "namespaces");
    let found = namespaces.and_then(|all| all.get("", namespace));
    let label = found.and_then(|found| found.object().label(&format!("{PREFIX}{mode}")).map(str::to_owned));
    label.map_or(Level::Privileged, |label| Level::parse(&label))
}

/// Refuses a pod above its namespace's level.
pub(super) fn enforce(
    call: &mut Call,
    operation: Operation,
    subresource: &str,
    object: &Object,
    live: Option<&Object>,
) -> Outcome<()> {
    if !is(call.row, "", "pods") {
        if subresource.is_empty() {
            warn_of_template(call, object, live);
        }
        return Ok(());
    }
    let judged = match operation {
        Operation::Create => subresource.is_empty(),
        // What a pod that is there asks for changes by an image or by debugging alone.
        Operation::Update => {
            ["", "ephemeralcontainers"].contains(&subresource) && images(object) != live.map_or(json!([]), images)
        }
    };
    if !judged {
        return Ok(());
    }
    warn(call, object.namespace().to_owned().as_str(), object);
    let level = level(call, object.namespace(), "enforce");
    let found = pod_security::check(level, object);
    if found.is_empty() {
        return Ok(());
    }
    let why = format!("violates PodSecurity \"{}:latest\": {}", level.as_str(), found.join(", "));
    Err(Status::forbidden("", "pods", object.name(), &why).into())
}

/// The names and images of all containers.
fn images(pod: &Object) -> Value {
    let of = |list: &str| -> Vec<Value> {
        let containers = pod.list_at(&["spec", list]).iter();
        containers.map(|one| json!([one.get("name"), one.get("image")])).collect()
    };
    json!([of("initContainers"), of("containers"), of("ephemeralContainers")])
}

fn warn(call: &mut Call, namespace: &str, pod: &Object) {
    let level = level(call, namespace, "warn");
    let found = pod_security::check(level, pod);
    if found.is_empty() {
        return;
    }
    let warning = format!("would violate PodSecurity \"{}:latest\": {}", level.as_str(), found.join(", "));
    if !call.warnings.contains(&warning) {
        call.warnings.push(warning);
    }
}

/// Pods are made from templates later, by somebody whom no warning reaches.
fn warn_of_template(call: &mut Call, object: &Object, live: Option<&Object>) {
    let path: &[&str] = match (call.row.group, call.row.kind) {
        ("apps", _) | ("batch", "Job") | ("", "ReplicationController") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        ("", "PodTemplate") => &["template"],
        _ => return,
    };
    let Some(template) = object.at(path) else { return };
    if live.is_some_and(|live| live.at(path) == Some(template)) {
        return;
    }
    if let Ok(template) = Object::from_value(template.clone()) {
        warn(call, object.namespace().to_owned().as_str(), &template);
    }
}
