//! A pod's own security context, its sysctls, and what its operating system rules out.

use std::collections::BTreeSet;

use super::CONTAINER_LISTS;
use crate::validate::field::Field;
use crate::validate::{Causes, container, metadata, syntax};

/// Kernel parameters that belong to a network namespace, and to an IPC namespace.
const OF_NETWORK: &[&str] = &["net."];
const OF_IPC: &[&str] = &["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
/// What a container or a pod for Windows cannot have.
const NOT_FOR_WINDOWS: &[&str] = &[
    "allowPrivilegeEscalation",
    "appArmorProfile",
    "capabilities",
    "fsGroup",
    "fsGroupChangePolicy",
    "privileged",
    "procMount",
    "readOnlyRootFilesystem",
    "runAsGroup",
    "runAsUser",
    "seLinuxChangePolicy",
    "seLinuxOptions",
    "seccompProfile",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "sysctls",
];

pub(super) fn check(spec: &Field<'_, '_>, causes: &mut Causes) {
    let security = spec.key("securityContext");
    container::check_ids(&security, &["fsGroup", "runAsUser", "runAsGroup"], causes);
    for group in security.key("supplementalGroups").items() {
        group.within(&(0..=i64::from(i32::MAX)), causes);
    }
    if spec.key("shareProcessNamespace").is_true() && spec.key("hostPID").is_true() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        // Upstream reports it where the field stands inside.
        security.key("shareProcessNamespace").invalid_as(&true.into(), detail, causes);
    }
    check_sysctls(spec, &security.key("sysctls"), causes);
    security.key("fsGroupChangePolicy").one_of_if_set(&["Always", "OnRootMismatch"], causes);
    security.key("supplementalGroupsPolicy").one_of_if_set(&["Merge", "Strict"], causes);
    security.key("seLinuxChangePolicy").one_of_if_set(&["MountOption", "Recursive"], causes);
    container::check_seccomp(&security.key("seccompProfile"), causes);
    container::check_windows(&security.key("windowsOptions"), causes);
    container::check_apparmor(&security.key("appArmorProfile"), causes);
    if spec.key("hostUsers").is_false() {
        for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if spec.key(key).is_true() {
                spec.key(shown).forbidden("when `pod.Spec.HostUsers` is false", causes);
            }
        }
    }
    check_system(spec, causes);
}

/// Each parameter once, with a name of the kernel's syntax, and none of a namespace that is the host's.
fn check_sysctls(spec: &Field<'_, '_>, sysctls: &Field<'_, '_>, causes: &mut Causes) {
    let mut seen = BTreeSet::new();
    for sysctl in sysctls.items() {
        let given = sysctl.key("name");
        if given.text().is_empty() {
            continue;
        }
        let faults = syntax::sysctl(given.text());
        if !faults.is_empty() {
            given.must_be(syntax::sysctl, causes);
        } else if !seen.insert(given.text()) {
            given.duplicate(causes);
        }
        let dotted = given.text().replace('/', ".");
        let of = |prefixes: &[&str]| prefixes.iter().any(|prefix| dotted.starts_with(prefix));
        if spec.key("hostNetwork").is_true() && of(OF_NETWORK) {
            given.invalid("may not be specified when 'hostNetwork' is true", causes);
        } else if spec.key("hostIPC").is_true() && of(OF_IPC) {
            given.invalid("may not be specified when 'hostIPC' is true", causes);
        }
    }
}

fn check_system(spec: &Field<'_, '_>, causes: &mut Causes) {
    let system = spec.key("os");
    if !system.is_set() {
        return;
    }
    match system.key("name").text() {
        "" => {}
        "linux" => {
            each_security(spec, |security| {
                if security.key("windowsOptions").is_set() {
                    let detail = "windows options cannot be set for a linux pod";
                    security.key("windowsOptions").forbidden(detail, causes);
                }
            });
        }
        "windows" => {
            for key in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
                if spec.key(key).is_set() && !spec.key(key).is_false() {
                    spec.key(key).forbidden("cannot be set for a windows pod", causes);
                }
            }
            each_security(spec, |security| {
                for key in NOT_FOR_WINDOWS {
                    if !metadata::is_nothing(security.key(key).value) {
                        security.key(key).forbidden("cannot be set for a windows pod", causes);
                    }
                }
            });
        }
        other => causes.push(crate::Cause::not_supported(system.path(), &other.into(), &["linux", "windows"])),
    }
}

/// The security contexts of the pod and of each of its containers.
fn each_security(spec: &Field<'_, '_>, mut judge: impl FnMut(&Field<'_, '_>)) {
    judge(&spec.key("securityContext"));
    for list in CONTAINER_LISTS {
        for container in spec.key(list).items() {
            judge(&container.key("securityContext"));
        }
    }
}
