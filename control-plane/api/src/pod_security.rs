//! The Pod Security Standards: what a pod of a level may not ask for. Pure; the newest version of each level.
//!
//! Upstream: kubernetes.io/docs/concepts/security/pod-security-standards. Windows' own rules are in, so that a level means the
//! same everywhere. Invariant: a pod that is restricted is baseline, too.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Object;

/// How much a namespace lets its pods ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// A label's value. What is no level asks for the strictest: a typo must not open a namespace.
    pub fn parse(text: &str) -> Self {
        match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            _ => Self::Restricted,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: &[&str] = &["", "container_engine_t", "container_init_t", "container_kvm_t", "container_t"];
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn is(value: &Value, key: &str, wanted: bool) -> bool {
    value.get(key).and_then(Value::as_bool) == Some(wanted)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn at<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

/// A pod's parts as the rules look at them.
struct Pod<'a> {
    spec: &'a Value,
    security: &'a Value,
    containers: Vec<&'a Value>,
    annotations: &'a Value,
}

impl<'a> Pod<'a> {
    /// The names of the containers that a rule finds at fault, as upstream shows them.
    fn who(&self, wrong: impl Fn(&'a Value) -> bool) -> Option<String> {
        let names: Vec<String> =
            self.containers.iter().filter(|one| wrong(one)).map(|one| format!("{:?}", text(one, "name"))).collect();
        match names.as_slice() {
            [] => None,
            [one] => Some(format!("container {one}")),
            _ => Some(format!("containers {}", names.join(", "))),
        }
    }
}

/// What of a pod (or of a template: an object with `metadata` and `spec`) its level forbids; nothing when it keeps to it.
pub fn check(level: Level, pod: &Object) -> Vec<String> {
    let empty = Value::Null;
    let spec = pod.get("spec").unwrap_or(&empty);
    let pod = Pod {
        spec,
        security: at(spec, "securityContext"),
        containers: LISTS.iter().flat_map(|key| list(spec, key)).collect(),
        annotations: pod.get("metadata").map_or(&empty, |metadata| at(metadata, "annotations")),
    };
    let mut found = Vec::new();
    if level >= Level::Baseline {
        host(&pod, level, &mut found);
        privileges(&pod, level, &mut found);
        profiles(&pod, level, &mut found);
    }
    if level >= Level::Restricted {
        restricted(&pod, &mut found);
    }
    found
}

/// What reaches the node: its namespaces, files, ports and addresses.
fn host(pod: &Pod<'_>, level: Level, found: &mut Vec<String>) {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|key| is(pod.spec, key, true))
        .map(|key| format!("{key}=true"))
        .collect();
    if !shared.is_empty() {
        found.push(format!("host namespaces ({})", shared.join(", ")));
    }
    let process = |security: &Value| is(at(security, "windowsOptions"), "hostProcess", true);
    if process(pod.security) || pod.who(|one| process(at(one, "securityContext"))).is_some() {
        found.push(
            "hostProcess (pod or containers must not set securityContext.windowsOptions.hostProcess=true)".into(),
        );
    }
    let volumes: Vec<String> = list(pod.spec, "volumes")
        .iter()
        .filter(|volume| at(volume, "hostPath").is_object())
        .map(|volume| format!("{:?}", text(volume, "name")))
        .collect();
    // A restricted pod's volumes are told of as a whole.
    if !volumes.is_empty() && level < Level::Restricted {
        found.push(format!("hostPath volumes ({})", volumes.join(", ")));
    }
    let port = |one: &Value| list(one, "ports").iter().any(|port| port["hostPort"].as_i64().unwrap_or(0) != 0);
    if let Some(who) = pod.who(port) {
        found.push(format!("hostPort ({who} must not use hostPort)"));
    }
    let handlers = |one: &Value| {
        let lifecycle = at(one, "lifecycle");
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|key| at(one, key).clone());
        let hooks = ["postStart", "preStop"].map(|key| at(lifecycle, key).clone());
        let dials =
            |handler: &Value| ["httpGet", "tcpSocket"].iter().any(|key| !text(at(handler, key), "host").is_empty());
        probes.iter().chain(&hooks).any(dials)
    };
    if let Some(who) = pod.who(handlers) {
        found.push(format!("probe or lifecycle host ({who} must not set the field \"host\" of a probe or hook)"));
    }
}

fn privileges(pod: &Pod<'_>, level: Level, found: &mut Vec<String>) {
    if let Some(who) = pod.who(|one| is(at(one, "securityContext"), "privileged", true)) {
        found.push(format!("privileged ({who} must not set securityContext.privileged=true)"));
    }
    let adds = |one: &Value| {
        let added = list(at(at(one, "securityContext"), "capabilities"), "add");
        added.iter().any(|added| !CAPABILITIES.contains(&added.as_str().unwrap_or_default()))
    };
    // The restricted level's own rule is stricter.
    if level < Level::Restricted
        && let Some(who) = pod.who(adds)
    {
        found.push(format!("non-default capabilities ({who} must not include others than the default ones in securityContext.capabilities.add)"));
    }
    if let Some(who) = pod.who(|one| !["", "Default"].contains(&text(at(one, "securityContext"), "procMount"))) {
        found.push(format!("procMount ({who} must not set securityContext.procMount to \"Unmasked\")"));
    }
    let sysctls: BTreeSet<&str> = list(pod.security, "sysctls")
        .iter()
        .map(|sysctl| text(sysctl, "name"))
        .filter(|name| !SYSCTLS.contains(&name.replace('/', ".").as_str()))
        .collect();
    if !sysctls.is_empty() {
        let names: Vec<&str> = sysctls.into_iter().collect();
        found.push(format!("forbidden sysctls ({})", names.join(", ")));
    }
}

fn profiles(pod: &Pod<'_>, level: Level, found: &mut Vec<String>) {
    let unconfined = |security: &Value, key: &str| text(at(security, key), "type") == "Unconfined";
    let by_annotation = pod.annotations.as_object().into_iter().flatten().any(|(key, value)| {
        let profile = value.as_str().unwrap_or_default();
        key.starts_with(APPARMOR) && !["", "runtime/default"].contains(&profile) && !profile.starts_with("localhost/")
    });
    let own = pod.who(|one| unconfined(at(one, "securityContext"), "appArmorProfile"));
    if by_annotation || unconfined(pod.security, "appArmorProfile") || own.is_some() {
        found.push("forbidden AppArmor profile (pod and containers must not be unconfined)".into());
    }
    let labelled = |security: &Value| {
        let options = at(security, "seLinuxOptions");
        !SELINUX_TYPES.contains(&text(options, "type"))
            || !text(options, "user").is_empty()
            || !text(options, "role").is_empty()
    };
    if labelled(pod.security) || pod.who(|one| labelled(at(one, "securityContext"))).is_some() {
        found.push("seLinuxOptions (pod and containers must not set a user, a role or a type of the host's)".into());
    }
    if level < Level::Restricted {
        let own = pod.who(|one| unconfined(at(one, "securityContext"), "seccompProfile"));
        if unconfined(pod.security, "seccompProfile") || own.is_some() {
            let what = "pod and containers must not set securityContext.seccompProfile.type to \"Unconfined\"";
            found.push(format!("seccompProfile ({what})"));
        }
    }
}

fn restricted(pod: &Pod<'_>, found: &mut Vec<String>) {
    let odd = |volume: &&Value| {
        let sources =
            volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && !value.is_null());
        sources.into_iter().any(|(key, _)| !VOLUMES.contains(&key.as_str()))
    };
    let volumes: Vec<String> =
        list(pod.spec, "volumes").iter().filter(odd).map(|volume| format!("{:?}", text(volume, "name"))).collect();
    if !volumes.is_empty() {
        found.push(format!("restricted volume types (volumes {} use restricted volume types)", volumes.join(", ")));
    }
    let security = |one| at(one, "securityContext");
    let windows = text(at(pod.spec, "os"), "name") == "windows";
    if !windows && let Some(who) = pod.who(|one| !is(security(one), "allowPrivilegeEscalation", false)) {
        found.push(format!(
            "allowPrivilegeEscalation != false ({who} must set securityContext.allowPrivilegeEscalation=false)"
        ));
    }
    let capable = |one| {
        let capabilities = at(security(one), "capabilities");
        let drops = list(capabilities, "drop").iter().any(|one| one == "ALL");
        !drops || list(capabilities, "add").iter().any(|one| one != "NET_BIND_SERVICE")
    };
    if !windows && let Some(who) = pod.who(capable) {
        found.push(format!("unrestricted capabilities ({who} must set securityContext.capabilities.drop=[\"ALL\"])"));
    }
    let by_pod = is(pod.security, "runAsNonRoot", true);
    let may_be_root =
        |one| is(security(one), "runAsNonRoot", false) || (!by_pod && !is(security(one), "runAsNonRoot", true));
    if let Some(who) = pod.who(may_be_root) {
        found.push(format!("runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"));
    }
    let root = |security: &Value| security.get("runAsUser").and_then(Value::as_i64) == Some(0);
    if root(pod.security) || pod.who(|one| root(security(one))).is_some() {
        found.push("runAsUser=0 (pod and containers must not set runAsUser=0)".into());
    }
    let kind = |security: &'_ Value| text(at(security, "seccompProfile"), "type").to_owned();
    let confined = |kind: &str| ["RuntimeDefault", "Localhost"].contains(&kind);
    let whole = kind(pod.security);
    let open = |one| {
        let own = kind(security(one));
        if own.is_empty() { !confined(&whole) } else { !confined(&own) }
    };
    if !windows && let Some(who) = pod.who(open) {
        found.push(format!(
            "seccompProfile (pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What each level says first of a restricted pod with something changed; empty when it says nothing.
    #[track_caller]
    fn check(pointer: &str, value: Value, baseline: &str, restricted: &str) {
        let mut pod = json!({"metadata": {"name": "p", "annotations": {}}, "spec": {"volumes": [],
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
        let pod = Object::from_value(pod).unwrap();
        for (level, expect) in [(Level::Privileged, ""), (Level::Baseline, baseline), (Level::Restricted, restricted)] {
            let found = super::check(level, &pod);
            let first = found.first().map_or("", |one| one.split(" (").next().unwrap());
            assert_eq!(first, expect, "{level:?}: {pointer} = {value}: {found:?}");
        }
    }

    #[test]
    fn each_level_forbids_what_the_standards_say() {
        let own = "/spec/containers/0/securityContext";
        check("/spec/hostname", json!("h"), "", "");
        check("/spec/hostNetwork", json!(true), "host namespaces", "host namespaces");
        check("/spec/hostPID", json!(true), "host namespaces", "host namespaces");
        check("/spec/hostIPC", json!(true), "host namespaces", "host namespaces");
        check(
            "/spec/volumes",
            json!([{"name": "v", "hostPath": {"path": "/"}}]),
            "hostPath volumes",
            "restricted volume types",
        );
        check(
            "/spec/volumes",
            json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}]),
            "",
            "restricted volume types",
        );
        check("/spec/volumes", json!([{"name": "v", "emptyDir": {}}, {"name": "w", "projected": {}}]), "", "");
        check("/spec/containers/0/ports", json!([{"containerPort": 1, "hostPort": 1}]), "hostPort", "hostPort");
        check(
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"port": 1, "host": "10.0.0.1"}}),
            "probe or lifecycle host",
            "probe or lifecycle host",
        );
        check(&format!("{own}/privileged"), json!(true), "privileged", "privileged");
        check(&format!("{own}/procMount"), json!("Unmasked"), "procMount", "procMount");
        check(
            &format!("{own}/capabilities"),
            json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
            "non-default capabilities",
            "unrestricted capabilities",
        );
        check(
            &format!("{own}/capabilities"),
            json!({"drop": ["ALL"], "add": ["CHOWN"]}),
            "",
            "unrestricted capabilities",
        );
        check(&format!("{own}/capabilities"), json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}), "", "");
        check(&format!("{own}/capabilities"), json!({}), "", "unrestricted capabilities");
        check(&format!("{own}/allowPrivilegeEscalation"), json!(null), "", "allowPrivilegeEscalation != false");
        check(&format!("{own}/runAsNonRoot"), json!(false), "", "runAsNonRoot != true");
        check(&format!("{own}/runAsUser"), json!(0), "", "runAsUser=0");
        check(&format!("{own}/runAsUser"), json!(1000), "", "");
        check(&format!("{own}/seccompProfile"), json!({"type": "Unconfined"}), "seccompProfile", "seccompProfile");
        check("/spec/securityContext/seccompProfile", json!({}), "", "seccompProfile");
        check("/spec/securityContext/runAsNonRoot", json!(null), "", "runAsNonRoot != true");
        check(
            "/spec/securityContext/sysctls",
            json!([{"name": "kernel.msgmax"}]),
            "forbidden sysctls",
            "forbidden sysctls",
        );
        check("/spec/securityContext/sysctls", json!([{"name": "net/ipv4/tcp_syncookies"}]), "", "");
        check(&format!("{own}/seLinuxOptions"), json!({"type": "spc_t"}), "seLinuxOptions", "seLinuxOptions");
        check(&format!("{own}/seLinuxOptions"), json!({"level": "s0:c1"}), "", "");
        check(
            &format!("{own}/appArmorProfile"),
            json!({"type": "Unconfined"}),
            "forbidden AppArmor profile",
            "forbidden AppArmor profile",
        );
        check(
            "/metadata/annotations",
            json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}),
            "forbidden AppArmor profile",
            "forbidden AppArmor profile",
        );
        check(
            "/spec/ephemeralContainers",
            json!([{"name": "e", "image": "i"}]),
            "",
            "allowPrivilegeEscalation != false",
        );
        assert_eq!((Level::parse("restrictd"), Level::parse("baseline")), (Level::Restricted, Level::Baseline));
    }
}
