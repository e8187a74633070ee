//! The steps that make a process of the container: limits, identity, capabilities, filter, program. The same for init and for exec.

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSeccomp,
    LinuxSeccompAction, MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};
use runtime_linux::capability::{self, Set, Sets};
use runtime_linux::rlimit::Resource;
use runtime_linux::seccomp;

use super::invalid;
use super::scheduler;
use super::steps::Step;
use crate::error::Error;

const DEFAULT_UMASK: u32 = 0o022;

/// What a process takes from its container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessContext<'a> {
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// A call that the profile names and nobody knows is an error.
    pub strict_seccomp: bool,
    pub personality: Option<&'a LinuxPersonality>,
    pub memory_policy: Option<&'a LinuxMemoryPolicy>,
    pub preserve_fds: &'a [i32],
    /// The process keeps the runtime's own supplementary groups.
    pub keep_groups: bool,
    /// exec has no hooks and takes `execCPUAffinity`.
    pub is_exec: bool,
}

pub(crate) fn process_steps(
    process: &Process,
    context: &ProcessContext<'_>,
    setup: &mut Vec<Step>,
    start: &mut Vec<Step>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    check(process)?;
    labels(process, setup)?;
    limits(process, setup)?;
    scheduling(process, context, setup)?;
    let user = process.user();
    let terminal = process.terminal() == Some(true);
    if !terminal {
        setup.push(Step::Stdio { owner: (user.uid() != 0).then(|| (user.uid(), user.gid())) });
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let filter = context.seccomp.map(|profile| compile(profile, context.strict_seccomp, warnings)).transpose()?;
    let wanted = sets(process, warnings);
    // The filter goes on last, so that it need not allow what we do ourselves; without no_new_privs that takes CAP_SYS_ADMIN.
    let keep_admin = filter.is_some() && !no_new_privileges;
    setup.push(Step::CloseDescriptors);
    setup.push(Step::Umask(user.umask().unwrap_or(DEFAULT_UMASK)));
    setup.push(Step::Identity {
        uid: user.uid(),
        gid: user.gid(),
        groups: (!context.keep_groups).then(|| user.additional_gids().clone().unwrap_or_default()),
        capabilities: wanted,
        keep_admin,
    });
    if no_new_privileges {
        setup.push(Step::NoNewPrivileges);
    }
    setup.push(Step::WorkingDirectory(process.cwd().clone()));
    setup.push(Step::FindProgram);
    let keep = (!context.preserve_fds.is_empty()).then(|| Step::KeepDescriptors(context.preserve_fds.to_vec()));
    let mut filtered = Vec::new();
    if let Some(filter) = filter {
        filtered.push(Step::Seccomp(Box::new(filter)));
        if keep_admin {
            filtered.push(Step::FinalCapabilities(wanted));
        }
    }
    // A startContainer hook may be the image's own program, so it runs under the filter, as with runc. The descriptors come after the
    // hooks, which get nothing of the caller's, and else before the filter, which need not allow it.
    if start.is_empty() {
        start.extend(keep.into_iter().chain(filtered));
    } else {
        start.splice(0..0, filtered);
        start.extend(keep);
    }
    start.push(Step::Exec);
    Ok(())
}

fn check(process: &Process) -> Result<(), Error> {
    let args = process.args().as_deref().unwrap_or(&[]);
    if args.is_empty() {
        return Err(invalid("process.args", "is empty: there is no program to run"));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", &format!("\"{}\" is not absolute", process.cwd().display())));
    }
    // 2^32 - 1 is "no change" to setresuid(2) and its like: who asked for it would stay root.
    let user = process.user();
    let groups = user.additional_gids().iter().flatten();
    if [user.uid(), user.gid()].iter().chain(groups).any(|id| *id == u32::MAX) {
        return Err(invalid("process.user", "4294967295 is not an id that anybody can have"));
    }
    let texts = args.iter().chain(process.env().iter().flatten());
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(invalid("process.args", "an argument or a variable holds a NUL character"));
    }
    Ok(())
}

fn labels(process: &Process, setup: &mut Vec<Step>) -> Result<(), Error> {
    if let Some(label) = process.selinux_label().as_ref().filter(|label| !label.is_empty()) {
        setup.push(Step::Selinux(label.clone()));
    }
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty()) {
        setup.push(Step::AppArmor(profile.clone()));
    }
    Ok(())
}

fn limits(process: &Process, setup: &mut Vec<Step>) -> Result<(), Error> {
    let mut seen = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let resource =
            Resource::by_name(&name).ok_or_else(|| invalid("process.rlimits", &format!("{name} is unknown")))?;
        if seen.contains(&resource) {
            return Err(invalid("process.rlimits", &format!("{name} is there twice")));
        }
        seen.push(resource);
        setup.push(Step::Rlimit { name, resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(())
}

fn scheduling(process: &Process, context: &ProcessContext<'_>, setup: &mut Vec<Step>) -> Result<(), Error> {
    if let Some(scheduler) = process.scheduler() {
        setup.push(Step::Scheduler(scheduler::attributes(scheduler)?));
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u8::try_from(priority.priority())
            .ok()
            .filter(|level| *level < 8)
            .ok_or_else(|| invalid("process.ioPriority.priority", "is not in 0..8"))?;
        setup.push(Step::IoPriority { class, level });
    }
    if let Some(affinity) = process.exec_cpu_affinity().as_ref().filter(|_| context.is_exec) {
        // `initial` matters while the runtime is not yet in the container's cgroup; ours goes there at once.
        if let Some(cpus) = affinity.cpu_affinity_final().as_ref().or(affinity.initial().as_ref()) {
            setup.push(Step::Affinity(number_list("process.execCPUAffinity", cpus)?));
        }
    }
    if let Some(policy) = context.memory_policy {
        setup.push(memory_policy(policy)?);
    }
    if let Some(personality) = context.personality {
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            return Err(invalid("linux.personality.flags", "no flag is defined by runtime-spec 1.3"));
        }
        setup.push(Step::Personality(match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        }));
    }
    Ok(())
}

const NODES: &str = "linux.memoryPolicy.nodes";

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<Step, Error> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    let nodes = match policy.nodes().as_deref() {
        None | Some("") => Vec::new(),
        Some(list) => number_list(NODES, list).map_err(|error| match error {
            Error::InvalidConfig { field, reason } => {
                Error::InvalidConfig { field, reason: format!("invalid memory policy nodes: {reason}") }
            }
            other => other,
        })?,
    };
    // set_mempolicy(2), which would say EINVAL only.
    let takes_none = matches!(policy.mode(), MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal);
    let needs_some = !takes_none && policy.mode() != MemoryPolicyModeType::MpolPreferred;
    if takes_none && !nodes.is_empty() || needs_some && nodes.is_empty() {
        let wanted = if takes_none { "0 nodes" } else { "at least one node" };
        let reason = format!("{}: this mode requires {wanted} but got {}", policy.mode(), nodes.len());
        return Err(invalid(NODES, &reason));
    }
    Ok(Step::MemoryPolicy { mode: mode | flags, nodes })
}

/// `0-3,7`, as the kernel writes lists of CPUs and nodes; numbers below 4096.
pub(crate) fn number_list(field: &str, list: &str) -> Result<Vec<usize>, Error> {
    let bad = || invalid(field, &format!("\"{list}\" is not a list like 0-3,7 of numbers below 4096"));
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number < 4096).ok_or_else(bad);
    let mut numbers = Vec::new();
    for part in list.split(',') {
        match part.split_once('-') {
            Some((from, to)) => numbers.extend(number(from)?..=number(to)?),
            None => numbers.push(number(part)?),
        }
    }
    if numbers.is_empty() { Err(bad()) } else { Ok(numbers) }
}

fn sets(process: &Process, warnings: &mut Vec<String>) -> Sets {
    let Some(capabilities) = process.capabilities() else {
        // runtime-spec 1.3: no capabilities object, no capability.
        return Sets::default();
    };
    let mut set = |field: &Option<Capabilities>| {
        let mut set = Set::EMPTY;
        for name in field.iter().flatten() {
            match capability::number(&name.to_string()) {
                Some(number) => set.insert(number),
                None => warnings.push(format!("capability {name} is not known here")),
            }
        }
        set
    };
    Sets {
        bounding: set(capabilities.bounding()),
        effective: set(capabilities.effective()),
        inheritable: set(capabilities.inheritable()),
        permitted: set(capabilities.permitted()),
        ambient: set(capabilities.ambient()),
    }
}

fn compile(profile: &LinuxSeccomp, is_strict: bool, warnings: &mut Vec<String>) -> Result<seccomp::Filter, Error> {
    let notifies = |rule: &oci_spec::runtime::LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    let has_notify = profile.syscalls().iter().flatten().any(notifies);
    if has_notify && profile.listener_path().is_none() {
        return Err(invalid("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs an agent to notify"));
    }
    if profile.listener_path().is_none() && profile.listener_metadata().is_some() {
        return Err(invalid("linux.seccomp.listenerMetadata", "must not be set without listenerPath"));
    }
    if !has_notify && profile.listener_path().is_some() {
        warnings.push("linux.seccomp.listenerPath is not used: no rule has SCMP_ACT_NOTIFY".to_owned());
    }
    // Names that no architecture knows are normal in profiles written for newer kernels, so they are not worth a warning each start.
    let filter = seccomp::compile(profile).map_err(|error| invalid("linux.seccomp", &error.to_string()))?;
    if is_strict && !filter.unknown.is_empty() {
        let reason = format!("unknown system calls: {}", filter.unknown.join(", "));
        return Err(invalid("linux.seccomp.syscalls", &reason));
    }
    Ok(filter)
}

/// The environment's entry that says where programs are looked for.
pub(crate) fn search_path(environment: &[String]) -> Vec<PathBuf> {
    let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .split(':')
        .map(|dir| if dir.is_empty() { PathBuf::from(".") } else { PathBuf::from(dir) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_lists() {
        assert_eq!(number_list("x", "0-2,5").ok(), Some(vec![0, 1, 2, 5]));
        for bad in ["", "a", "1-", "4096", "1,,2", "-1"] {
            assert!(number_list("x", bad).is_err(), "{bad}");
        }
    }
}
