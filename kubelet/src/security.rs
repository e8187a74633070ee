//! Security contexts of pod and container, merged and put into CRI's terms. Pure.
//! Invariant: `runAsNonRoot` is either proven or an error; a field that cannot be honoured is refused, not forgotten.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};
use runtime_cri_api::v1 as cri;

use crate::pod::LocalPod;

/// Hidden from containers with `procMount: Default`.
const MASKED: [&str; 13] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/fs/selinux",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RootAsked { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NamedUser { user: String, pod: String, container: String },
}

fn int(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

fn seccomp(profile: Option<&SeccompProfile>, data_dir: &Path) -> cri::SecurityProfile {
    let (kind, localhost_ref) = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => (cri::security_profile::ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let file = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            let path = data_dir.join("seccomp").join(file.trim_start_matches('/'));
            (cri::security_profile::ProfileType::Localhost, path.to_string_lossy().into_owned())
        }
        _ => (cri::security_profile::ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

/// Without a word of the pod, the runtime's usual profile, as the CRI has it.
fn app_armor(profile: Option<&AppArmorProfile>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    options.map(|o| cri::SeLinuxOption {
        user: o.user.clone().unwrap_or_default(),
        role: o.role.clone().unwrap_or_default(),
        r#type: o.type_.clone().unwrap_or_default(),
        level: o.level.clone().unwrap_or_default(),
    })
}

fn namespaces(pod: &LocalPod, target: Option<&str>) -> cri::NamespaceOption {
    use cri::NamespaceMode;
    let spec = &pod.spec;
    let node = |on: Option<bool>| on.unwrap_or(false);
    let pid = match (target, node(spec.host_pid), node(spec.share_process_namespace)) {
        (Some(_), _, _) => NamespaceMode::Target,
        (None, true, _) => NamespaceMode::Node,
        (None, false, true) => NamespaceMode::Pod,
        (None, false, false) => NamespaceMode::Container,
    };
    let own_or_node = |on: Option<bool>| if node(on) { NamespaceMode::Node } else { NamespaceMode::Pod };
    cri::NamespaceOption {
        network: own_or_node(spec.host_network) as i32,
        ipc: own_or_node(spec.host_ipc) as i32,
        pid: pid as i32,
        target_id: target.unwrap_or_default().to_owned(),
        userns_options: None,
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group.filter(|g| !groups.contains(g)));
    groups
}

fn groups_policy(context: &PodSecurityContext) -> i32 {
    match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict as i32,
        _ => cri::SupplementalGroupsPolicy::Merge as i32,
    }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged).unwrap_or(false)
}

/// The sandbox's security context.
#[must_use]
pub fn sandbox(pod: &LocalPod, data_dir: &Path, has_selinux: bool) -> cri::LinuxSandboxSecurityContext {
    let context = pod.spec.security_context.clone().unwrap_or_default();
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux(context.se_linux_options.as_ref().filter(|_| has_selinux)),
        run_as_user: int(context.run_as_user),
        run_as_group: int(context.run_as_group),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context),
        privileged: pod.members.iter().any(|m| is_privileged(&m.container)),
        seccomp: Some(seccomp(context.seccomp_profile.as_ref(), data_dir)),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

/// The container's security context. `target` is the container whose processes an ephemeral one looks at.
///
/// # Errors
/// If `runAsNonRoot` is broken or cannot be proven.
pub fn container(
    pod: &LocalPod,
    container: &Container,
    image: &cri::Image,
    target: Option<&str>,
    data_dir: &Path,
    has_selinux: bool,
) -> Result<cri::LinuxContainerSecurityContext, Error> {
    let outer = pod.spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(outer.run_as_user);
    if own.run_as_non_root.or(outer.run_as_non_root).unwrap_or(false) {
        prove_non_root(pod, container, user, image)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let shown = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if shown { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(outer.seccomp_profile.as_ref());
    // Upstream: without a user of its own the container takes the image's, by number if it has one.
    let (run_as_user, run_as_username) = match user {
        Some(uid) => (Some(uid), String::new()),
        None => (image.uid.as_ref().map(|u| u.value), image.username.clone()),
    };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        selinux_options: selinux(
            own.se_linux_options.as_ref().or(outer.se_linux_options.as_ref()).filter(|_| has_selinux),
        ),
        run_as_user: int(run_as_user),
        run_as_group: int(own.run_as_group.or(outer.run_as_group)),
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&outer),
        supplemental_groups_policy: groups_policy(&outer),
        no_new_privs: no_new_privileges(&own),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(if privileged { seccomp(None, data_dir) } else { seccomp(profile, data_dir) }),
        apparmor: app_armor(own.app_armor_profile.as_ref().or(outer.app_armor_profile.as_ref())),
        ..cri::LinuxContainerSecurityContext::default()
    })
}

fn no_new_privileges(own: &SecurityContext) -> bool {
    own.allow_privilege_escalation == Some(false)
}

fn prove_non_root(pod: &LocalPod, container: &Container, user: Option<i64>, image: &cri::Image) -> Result<(), Error> {
    let name = container.name.clone();
    let pod = format!("{}_{}({})", pod.key.name, pod.key.namespace, pod.uid);
    match user {
        Some(0) => Err(Error::RootAsked { pod, container: name }),
        Some(_) => Ok(()),
        None => match image.uid.as_ref().map(|u| u.value) {
            Some(uid) if uid != 0 => Ok(()),
            None if !image.username.is_empty() => {
                Err(Error::NamedUser { user: image.username.clone(), pod, container: name })
            }
            _ => Err(Error::ImageRunsAsRoot { pod, container: name }),
        },
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]
mod tests {
    use super::*;
    use crate::pod::Source;
    use serde_json::json;

    fn build(
        outer: serde_json::Value,
        own: serde_json::Value,
        image: &cri::Image,
    ) -> Result<cri::LinuxContainerSecurityContext, String> {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"securityContext": outer, "containers": [{"name": "c", "image": "i", "securityContext": own}]}});
        let pod = LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap();
        container(&pod, &pod.spec.containers[0], image, None, Path::new("/data"), false).map_err(|e| e.to_string())
    }

    #[test]
    fn the_containers_own_word_counts_more() {
        let outer = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
            "seccompProfile": {"type": "RuntimeDefault"}});
        let own = json!({"runAsUser": 9, "allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}});
        let got = build(outer, own, &cri::Image::default()).unwrap();
        assert_eq!(got.run_as_user.unwrap().value, 9);
        assert_eq!(got.run_as_group.unwrap().value, 2);
        assert_eq!(got.supplemental_groups, [4, 3]);
        assert!(got.no_new_privs);
        assert_eq!(got.seccomp.unwrap().profile_type, 0);
        assert!(got.apparmor.is_none());
        assert_eq!(got.masked_paths.len(), MASKED.len());
        let open = build(json!({}), json!({"privileged": true}), &cri::Image::default()).unwrap();
        assert!(open.privileged && open.masked_paths.is_empty());
    }

    #[test]
    fn labels_count_only_where_the_host_has_selinux() {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}, "containers": [{"name": "c", "image": "i"}]}});
        let pod = LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap();
        for has_selinux in [false, true] {
            let image = cri::Image::default();
            let data = Path::new("/data");
            let own = container(&pod, &pod.spec.containers[0], &image, None, data, has_selinux).unwrap();
            assert_eq!(own.selinux_options.is_some(), has_selinux);
            assert_eq!(sandbox(&pod, data, has_selinux).selinux_options.is_some(), has_selinux);
        }
    }

    #[test]
    fn profiles_are_passed_on() {
        let outer = json!({"appArmorProfile": {"type": "Unconfined"}});
        let own = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "web"}});
        let found = |own| build(outer.clone(), own, &cri::Image::default()).unwrap().apparmor.unwrap();
        assert_eq!(found(own).localhost_ref, "web");
        assert_eq!(found(json!({})).profile_type, cri::security_profile::ProfileType::Unconfined as i32);
    }

    #[test]
    fn non_root_is_proven_or_refused() {
        let strict = || json!({"runAsNonRoot": true});
        let numbered = |value| cri::Image { uid: Some(cri::Int64Value { value }), ..cri::Image::default() };
        let named = cri::Image { username: "web".into(), ..cri::Image::default() };
        assert!(build(strict(), json!({}), &numbered(7)).is_ok());
        assert!(build(strict(), json!({"runAsUser": 5}), &numbered(0)).is_ok());
        let cases = [
            (build(strict(), json!({}), &numbered(0)), "image will run as root"),
            (build(strict(), json!({}), &cri::Image::default()), "image will run as root"),
            (build(strict(), json!({}), &named), "non-numeric user (web)"),
            (build(strict(), json!({"runAsUser": 0}), &numbered(7)), "breaks non-root policy"),
        ];
        for (got, expect) in cases {
            assert!(got.as_ref().is_err_and(|e| e.contains(expect)), "{got:?}");
        }
    }
}
