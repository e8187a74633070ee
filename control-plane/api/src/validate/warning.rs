//! What an object asks for that is taken and helps nobody: told to whoever writes it, in upstream's words.
//!
//! Pure; runs on what was sent, with its defaults. Invariant: a change is warned of what it brings, not of what was there.

use std::collections::BTreeMap;

use super::address;
use super::field::Field;
use crate::{Object, Row};

const POD_SECURITY: &str = "pod-security.kubernetes.io/";
/// Warnings of one object; more help nobody.
const WARNINGS_MAX: usize = 20;
/// Labels of nodes that have other names now.
const OLD_NODE_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/instance-type", "use \"node.kubernetes.io/instance-type\" instead"),
    ("beta.kubernetes.io/os", "use \"kubernetes.io/os\" instead"),
    ("failure-domain.beta.kubernetes.io/region", "use \"topology.kubernetes.io/region\" instead"),
    ("failure-domain.beta.kubernetes.io/zone", "use \"topology.kubernetes.io/zone\" instead"),
];
/// Sources of volumes that are gone or going.
const OLD_VOLUMES: &[(&str, &str)] = &[
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("gitRepo", "deprecated in v1.11"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
];

/// What to tell of a new object, or of what a change of `old` brings.
pub fn warnings(row: &Row, object: &Object, old: Option<&Object>) -> Vec<String> {
    // Most changes change no spec.
    if old.is_some_and(|old| old.get("spec") == object.get("spec") && row.kind != "Namespace") {
        return Vec::new();
    }
    let mut found = find(row, object);
    if let Some(old) = old {
        let before = find(row, old);
        found.retain(|one| !before.contains(one));
    }
    found.truncate(WARNINGS_MAX);
    found
}

fn find(row: &Row, object: &Object) -> Vec<String> {
    let mut out = Vec::new();
    let spec = Field::top(object, "spec");
    match (row.group, row.kind) {
        ("", "Pod") => pod(&spec, &Field::top(object, "metadata"), &mut out),
        ("", "PodTemplate") => template(&Field::top(object, "template"), &mut out),
        ("apps", _) | ("", "ReplicationController") => template(&spec.key("template"), &mut out),
        ("batch", "Job") => {
            template(&spec.key("template"), &mut out);
        }
        ("batch", "CronJob") => {
            let job = spec.key("jobTemplate");
            let job = job.key("spec");
            template(&job.key("template"), &mut out);
        }
        ("", "Endpoints") => {
            out.push("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into());
        }
        ("", "ComponentStatus") => out.push("v1 ComponentStatus is deprecated in v1.19+".into()),
        ("", "Service") => service(&spec, &mut out),
        ("", "Namespace") => namespace(object, &mut out),
        ("", "PersistentVolumeClaim") => {
            amounts(&spec.key("resources").key("requests"), &mut out);
        }
        ("networking.k8s.io", "NetworkPolicy") => policy(&spec, &mut out),
        _ => {}
    }
    out
}

fn template(template: &Field<'_, '_>, out: &mut Vec<String>) {
    pod(&template.key("spec"), &template.key("metadata"), out);
}

fn pod(spec: &Field<'_, '_>, metadata: &Field<'_, '_>, out: &mut Vec<String>) {
    for (key, value) in metadata.key("annotations").entries() {
        for (prefix, what) in [
            (
                "container.apparmor.security.beta.kubernetes.io/",
                "deprecated since v1.30; use the \"appArmorProfile\" field instead",
            ),
            (
                "seccomp.security.alpha.kubernetes.io/pod",
                "non-functional in v1.27+; use the \"seccompProfile\" field instead",
            ),
            (
                "container.seccomp.security.alpha.kubernetes.io/",
                "non-functional in v1.27+; use the \"seccompProfile\" field instead",
            ),
        ] {
            if key.starts_with(prefix) {
                out.push(format!("{}: {what}", value.path()));
            }
        }
    }
    for (key, value) in spec.key("nodeSelector").entries() {
        if let Some((_, instead)) = OLD_NODE_LABELS.iter().find(|(old, _)| *old == key) {
            out.push(format!("{}: deprecated since v1.14; {instead}", value.path()));
        }
    }
    if spec.key("terminationGracePeriodSeconds").int() < 0 {
        let path = spec.key("terminationGracePeriodSeconds").path();
        out.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    let mut aliases = BTreeMap::new();
    for alias in spec.key("hostAliases").items() {
        *aliases.entry(alias.key("ip").text()).or_insert(0_usize) += 1;
    }
    for (ip, _) in aliases.into_iter().filter(|(_, count)| *count > 1) {
        out.push(format!("{}: duplicate ip {ip:?}", spec.key("hostAliases").path()));
    }
    duplicates(&spec.key("imagePullSecrets"), "name", out);
    for secret in spec.key("imagePullSecrets").items() {
        if secret.key("name").text().is_empty() {
            let what = "invalid empty name; the empty reference will not be used";
            out.push(format!("{}: {what}", secret.key("name").path()));
        }
    }
    for volume in spec.key("volumes").items() {
        for (kind, what) in OLD_VOLUMES.iter().filter(|(kind, _)| volume.key(kind).is_set()) {
            out.push(format!("{}: {what}", volume.key(kind).path()));
        }
        fractional(&volume.key("emptyDir").key("sizeLimit"), out);
    }
    amounts(&spec.key("overhead"), out);
    amounts(&spec.key("resources").key("limits"), out);
    amounts(&spec.key("resources").key("requests"), out);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.key(list).items() {
            for amounts_of in ["limits", "requests"] {
                amounts(&container.key("resources").key(amounts_of), out);
            }
            duplicates(&container.key("env"), "name", out);
            ports(&container.key("ports"), out);
        }
    }
}

/// Bytes are whole: what is finer is rounded up.
fn amounts(amounts: &Field<'_, '_>, out: &mut Vec<String>) {
    for (resource, amount) in amounts.entries() {
        let bytes =
            ["memory", "storage", "ephemeral-storage"].contains(&resource) || resource.starts_with("hugepages-");
        if bytes {
            fractional(&amount, out);
        }
    }
}

fn fractional(amount: &Field<'_, '_>, out: &mut Vec<String>) {
    if amount.quantity().is_some_and(|amount| !amount.is_whole()) {
        let shown = amount.text();
        out.push(format!("{}: fractional byte value {shown:?} is invalid, must be an integer", amount.path()));
    }
}

/// Entries of a list that hide others of the same key.
fn duplicates(list: &Field<'_, '_>, key: &str, out: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    for (index, one) in list.items().enumerate() {
        let named = one.key(key).text();
        if named.is_empty() {
            continue;
        }
        if let Some(first) = seen.insert(named, index) {
            let place = list.index(first).path();
            out.push(format!(
                "{}: hides previous definition of {named:?} at {place}, which may be dropped when using apply",
                one.path()
            ));
        }
    }
}

fn ports(ports: &Field<'_, '_>, out: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    for (index, port) in ports.items().enumerate() {
        let key = (
            port.key("containerPort").int(),
            port.key("protocol").text(),
            port.key("hostPort").int(),
            port.key("hostIP").text(),
        );
        if let Some(first) = seen.insert(key, index) {
            out.push(format!("{}: duplicate port definition with {}", port.path(), ports.index(first).path()));
        }
    }
}

fn service(spec: &Field<'_, '_>, out: &mut Vec<String>) {
    if !spec.key("externalIPs").list().is_empty() && spec.key("type").text() == "ExternalName" {
        out.push(format!("{} is ignored when spec.type is \"ExternalName\"", spec.key("externalIPs").path()));
    }
    if spec.key("type").text() != "ExternalName" && !spec.key("externalName").text().is_empty() {
        out.push(format!("{} is ignored when spec.type is not \"ExternalName\"", spec.key("externalName").path()));
    }
    let headless = spec.key("clusterIP").text() == "None";
    if headless && !spec.key("loadBalancerIP").text().is_empty() {
        out.push(format!("{} is ignored for headless Services", spec.key("loadBalancerIP").path()));
    }
    if headless && spec.key("sessionAffinity").text() == "ClientIP" {
        out.push(format!("{} is ignored for headless services", spec.key("sessionAffinity").path()));
    }
}

/// What a namespace asks of its pods, and is not done: there is no audit log, and the rules are the newest ones.
fn namespace(object: &Object, out: &mut Vec<String>) {
    for (key, value) in object.labels() {
        match key.strip_prefix(POD_SECURITY) {
            Some("audit") => out.push(format!("metadata.labels[{key}]: nothing is audited yet; use enforce or warn")),
            Some(mode) if mode.ends_with("-version") && value != "latest" => {
                out.push(format!("metadata.labels[{key}]: pods are judged by the latest rules"));
            }
            _ => {}
        }
    }
}

/// Networks whose address has bits beyond the prefix: readers differ about them.
fn policy(spec: &Field<'_, '_>, out: &mut Vec<String>) {
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.key(direction).items() {
            for peer in rule.key(side).items() {
                let block = peer.key("ipBlock");
                let cidr = block.key("cidr");
                if let Some((address, bits)) = address::network(cidr.text())
                    && !address::is_base(address, bits)
                {
                    let what = "CIDR value has bits set beyond the prefix length";
                    out.push(format!("{}: {:?}: {what}", cidr.path(), cidr.text()));
                }
            }
        }
    }
}
