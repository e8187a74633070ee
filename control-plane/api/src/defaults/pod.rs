//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use super::{default, default_text, map_in, maps_in, text};
use crate::object::map_entry;

/// The three lists of containers.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(super) fn pod(map: &mut Map<String, Value>) {
    let spec = map_entry(map, "spec");
    for list in ["initContainers", "containers"] {
        for container in maps_in(spec, list) {
            requests_from_limits(container);
        }
    }
    // A template leaves this open; a pod does not.
    default(spec, "enableServiceLinks", true);
    pod_spec(spec);
}

pub(super) fn template(owner: &mut Map<String, Value>) {
    pod_spec(map_entry(map_entry(owner, "template"), "spec"));
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = map_in(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = map_entry(resources, "requests");
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

pub(super) fn pod_spec(spec: &mut Map<String, Value>) {
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    default_text(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool) == Some(true);
    for list in CONTAINER_LISTS {
        for one in maps_in(spec, list) {
            container(one);
            if host_network {
                for port in maps_in(one, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        default(port, "hostPort", number);
                    }
                }
            }
        }
    }
    for one in maps_in(spec, "volumes") {
        volume(one);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; upstream writes both.
fn mirror_service_account(spec: &mut Map<String, Value>) {
    let old = text(spec, "serviceAccount").to_owned();
    if !old.is_empty() {
        default_text(spec, "serviceAccountName", &old);
    }
    let name = text(spec, "serviceAccountName").to_owned();
    if !name.is_empty() {
        spec.insert("serviceAccount".into(), name.into());
    }
}

fn container(container: &mut Map<String, Value>) {
    let policy = pull_policy(text(container, "image"));
    default_text(container, "imagePullPolicy", policy);
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in maps_in(container, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for variable in maps_in(container, "env") {
        let field = map_in(variable, "valueFrom").and_then(|from| map_in(from, "fieldRef"));
        if let Some(field) = field {
            default_text(field, "apiVersion", "v1");
        }
        let resource = map_in(variable, "valueFrom").and_then(|from| map_in(from, "resourceFieldRef"));
        if let Some(resource) = resource {
            default(resource, "divisor", "0");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = map_in(container, probe) {
            for (key, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                // Zero means absence: none of them may be zero.
                if probe.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    probe.insert(key.into(), value.into());
                }
            }
            http_get(probe);
            if let Some(grpc) = map_in(probe, "grpc") {
                default(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = map_in(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = map_in(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = map_in(handler, "httpGet") {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
}

/// Always for `latest` or no tag, IfNotPresent for any other tag or a digest.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = map_in(volume, source) {
            default(source, "defaultMode", 420);
        }
    }
    if let Some(path) = map_in(volume, "hostPath") {
        default(path, "type", "");
    }
    if let Some(downward) = map_in(volume, "downwardAPI") {
        downward_items(downward);
    }
    if let Some(projected) = map_in(volume, "projected") {
        for source in maps_in(projected, "sources") {
            if let Some(token) = map_in(source, "serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = map_in(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(image) = map_in(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        default_text(image, "pullPolicy", policy);
    }
    if let Some(claim) = map_in(volume, "ephemeral").and_then(|source| map_in(source, "volumeClaimTemplate")) {
        super::claim_spec(map_entry(claim, "spec"));
    }
    if let Some(iscsi) = map_in(volume, "iscsi") {
        default_text(iscsi, "iscsiInterface", "default");
    }
}

fn downward_items(source: &mut Map<String, Value>) {
    for item in maps_in(source, "items") {
        if let Some(field) = map_in(item, "fieldRef") {
            default_text(field, "apiVersion", "v1");
        }
        if let Some(resource) = map_in(item, "resourceFieldRef") {
            default(resource, "divisor", "0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn the_tag_decides_how_to_pull() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
