//! Containers: ports, environment, mounts, probes, hooks, security.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Causes, items, not_negative, one_of, refuse, resources, text};
use crate::{Cause, name};

/// What of the pod a container is judged by.
pub(super) struct Context<'a> {
    pub(super) volumes: &'a BTreeSet<String>,
    pub(super) host_network: bool,
}

pub(super) fn check(list: &str, container: &Value, path: &str, context: &Context<'_>, causes: &mut Causes) {
    let given = text(container, "name");
    if !given.is_empty() {
        refuse(&format!("{path}.name"), given, name::dns1123_label(given), causes);
    }
    let image = text(container, "image");
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image != image.trim() {
        let detail = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid_str(format!("{path}.image"), image, detail));
    }
    one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], causes);
    one_of(container, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], causes);
    check_ports(container, path, context, causes);
    check_env(container, path, causes);
    check_mounts(container, path, context, causes);
    resources::check(&container["resources"], &format!("{path}.resources"), causes);
    check_security(container, path, causes);
    let sidecar = text(container, "restartPolicy") == "Always";
    let plain_init = list == "initContainers" && !sidecar;
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = container.get(probe).filter(|value| value.is_object()) else { continue };
        let path = format!("{path}.{probe}");
        match list {
            _ if plain_init => {
                causes.push(Cause::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
            }
            "ephemeralContainers" => causes.push(Cause::forbidden(path, "cannot be set for an Ephemeral Container")),
            _ => check_probe(probe, value, &path, causes),
        }
    }
    if let Some(lifecycle) = container.get("lifecycle").filter(|value| value.is_object()) {
        let path = format!("{path}.lifecycle");
        if plain_init {
            causes.push(Cause::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
            return;
        }
        for hook in ["postStart", "preStop"] {
            if let Some(hook_value) = lifecycle.get(hook).filter(|value| value.is_object()) {
                check_handler(
                    hook_value,
                    &["exec", "httpGet", "tcpSocket", "sleep"],
                    &format!("{path}.{hook}"),
                    causes,
                );
            }
        }
    }
}

fn check_ports(container: &Value, path: &str, context: &Context<'_>, causes: &mut Causes) {
    let mut names = BTreeSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let given = text(port, "name");
        if !given.is_empty() {
            refuse(&format!("{path}.name"), given, name::port_name(given), causes);
            if !names.insert(given) {
                causes.push(Cause::duplicate(format!("{path}.name"), &given.into()));
            }
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if number == 0 {
            causes.push(Cause::required(format!("{path}.containerPort"), ""));
        } else {
            port_number(number, &format!("{path}.containerPort"), causes);
        }
        let host_port = port["hostPort"].as_i64().unwrap_or(0);
        if host_port != 0 {
            port_number(host_port, &format!("{path}.hostPort"), causes);
            if context.host_network && host_port != number {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                causes.push(Cause::invalid(format!("{path}.containerPort"), &number.into(), detail));
            }
        }
        one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"], causes);
    }
}

pub(super) fn port_number(number: i64, path: &str, causes: &mut Causes) {
    causes.extend(name::port_number(number).iter().map(|why| Cause::invalid(path, &number.into(), why)));
}

/// A port of a target: a number, or the name of one.
pub(super) fn port_or_name(value: &Value, path: &str, causes: &mut Causes) {
    match value {
        Value::Number(number) => port_number(number.as_i64().unwrap_or(0), path, causes),
        Value::String(text) => refuse(path, text, name::port_name(text), causes),
        _ => {}
    }
}

/// Two containers of a pod cannot have one port of the host.
pub(super) fn check_host_ports(
    container: &Value,
    path: &str,
    seen: &mut BTreeSet<(String, String, i64)>,
    causes: &mut Causes,
) {
    for (index, port) in items(container, "ports").iter().enumerate() {
        let host_port = port["hostPort"].as_i64().unwrap_or(0);
        let key = (text(port, "protocol").to_owned(), text(port, "hostIP").to_owned(), host_port);
        if host_port != 0 && !seen.insert(key) {
            let shown = format!("{}/{}/{host_port}", text(port, "protocol"), text(port, "hostIP"));
            causes.push(Cause::duplicate(format!("{path}.ports[{index}].hostPort"), &shown.into()));
        }
    }
}

fn check_env(container: &Value, path: &str, causes: &mut Causes) {
    const SOURCES: &[&str] = &["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"];
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let given = text(variable, "name");
        if !given.is_empty() {
            refuse(&format!("{path}.name"), given, name::env_name(given), causes);
        }
        let Some(from) = variable.get("valueFrom").and_then(Value::as_object) else { continue };
        let path = format!("{path}.valueFrom");
        let sources = SOURCES.iter().filter(|source| from.get(**source).is_some_and(Value::is_object)).count();
        let detail = match sources {
            0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        causes.push(Cause::invalid(path, &json!(from), detail));
    }
    for (index, from) in items(container, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        let sources: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|key| from[*key].is_object()).collect();
        match sources.as_slice() {
            [] => causes.push(Cause::invalid(path, &"".into(), "must specify one of: `configMapRef` or `secretRef`")),
            [one] if text(&from[*one], "name").is_empty() => {
                causes.push(Cause::required(format!("{path}.{one}.name"), ""));
            }
            [_] => {}
            _ => causes.push(Cause::invalid(path, &"".into(), "may not have more than one field specified at a time")),
        }
    }
}

fn check_mounts(container: &Value, path: &str, context: &Context<'_>, causes: &mut Causes) {
    let mut paths = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let given = text(mount, "name");
        if !given.is_empty() && !context.volumes.contains(given) {
            causes.push(Cause::not_found(format!("{path}.name"), &given.into()));
        }
        let target = text(mount, "mountPath");
        if !target.is_empty() && !paths.insert(target) {
            causes.push(Cause::invalid_str(format!("{path}.mountPath"), target, "must be unique"));
        }
        for key in ["subPath", "subPathExpr"] {
            relative(text(mount, key), &format!("{path}.{key}"), causes);
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            causes.push(Cause::invalid_str(format!("{path}.subPathExpr"), text(mount, "subPathExpr"), detail));
        }
        one_of(mount, &path, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], causes);
    }
}

/// A path that stays below where it starts.
pub(super) fn relative(text: &str, path: &str, causes: &mut Causes) {
    if text.starts_with('/') {
        causes.push(Cause::invalid_str(path, text, "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid_str(path, text, "must not contain '..'"));
    }
}

fn check_probe(kind: &str, probe: &Value, path: &str, causes: &mut Causes) {
    check_handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], path, causes);
    let numbers = ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    not_negative(probe, path, &numbers, causes);
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|times| times != 1) {
        causes.push(Cause::invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1"));
    }
    let grace = &probe["terminationGracePeriodSeconds"];
    if kind == "readinessProbe" && grace.is_number() {
        let detail = "must not be set for readinessProbes";
        causes.push(Cause::invalid(format!("{path}.terminationGracePeriodSeconds"), grace, detail));
    } else if grace.as_i64().is_some_and(|seconds| seconds <= 0) {
        causes.push(Cause::invalid(format!("{path}.terminationGracePeriodSeconds"), grace, "must be greater than 0"));
    }
}

/// Exactly one of `kinds`, and a sound one.
fn check_handler(handler: &Value, kinds: &[&str], path: &str, causes: &mut Causes) {
    let given: Vec<&str> = kinds.iter().copied().filter(|kind| handler[*kind].is_object()).collect();
    let Some((first, more)) = given.split_first() else {
        causes.push(Cause::required(path, "must specify a handler type"));
        return;
    };
    for kind in more {
        causes.push(Cause::forbidden(format!("{path}.{kind}"), "may not specify more than 1 handler type"));
    }
    let (value, path) = (&handler[*first], format!("{path}.{first}"));
    match *first {
        "exec" if items(value, "command").is_empty() => causes.push(Cause::required(format!("{path}.command"), "")),
        "httpGet" | "tcpSocket" | "grpc" => {
            port_or_name(&value["port"], &format!("{path}.port"), causes);
            one_of(value, &path, "scheme", &["HTTP", "HTTPS"], causes);
        }
        _ => {}
    }
}

fn check_security(container: &Value, path: &str, causes: &mut Causes) {
    let security = &container["securityContext"];
    let path = format!("{path}.securityContext");
    check_user_ids(security, &path, causes);
    if security["privileged"].as_bool() == Some(true) && security["allowPrivilegeEscalation"].as_bool() == Some(false) {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.push(Cause::invalid(path, security, detail));
    }
}

pub(super) fn check_user_ids(security: &Value, path: &str, causes: &mut Causes) {
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        let id = &security[key];
        if id.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
            causes.push(Cause::invalid(format!("{path}.{key}"), id, &detail));
        }
    }
}
