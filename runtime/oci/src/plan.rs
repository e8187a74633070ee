//! Turns a bundle into a plan: an ordered list of steps, each of which can be printed. Touches no kernel state; see `child.rs`.
//!
//! Invariant: what the configuration asks for is a step, a warning or an error, never dropped in silence.

mod devices;
mod more_mounts;
mod mount_options;
mod mounts;
pub(crate) mod namespaces;
mod process;
mod scheduler;
mod steps;

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use runtime_linux::idmap::Maps;
use runtime_linux::mount::Overlay;

use crate::error::Error;
use crate::options::RootChange;

pub(crate) use devices::default_device_paths;
pub use mount_options::mount_option_names;
pub(crate) use namespaces::Namespaces;
pub(crate) use process::{ProcessContext, process_steps, search_path};
pub(crate) use steps::{
    BindMount, CgroupMount, Data, DeviceNode, FilesystemMount, IdMapping, Moment, MountAttributes, MountStep, Step,
};

/// runtime-spec 1.3.
const NEWEST_MINOR: u32 = 3;

/// What the plan needs to know beyond the configuration.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The bundle's directory, absolute.
    pub bundle: &'a std::path::Path,
    pub rootfs: Option<&'a Overlay>,
    pub root_change: RootChange,
    pub keyring: Option<String>,
    pub cgroup: CgroupView,
    pub preserve_fds: &'a [i32],
    /// For a new user namespace whose configuration brings no maps.
    pub default_maps: Maps,
    /// SELinux: of the file systems that are mounted.
    pub mount_label: Option<&'a str>,
}

/// How the host's cgroups look, for the mounts of type `cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupView {
    /// One tree; the container's own directory on the host, and whether the runtime may show the whole tree to a container that has neither a
    /// cgroup nor a user namespace.
    V2 { own: PathBuf, may_show_all: bool },
    /// The mounted hierarchies: the directory's name below /sys/fs/cgroup, the controllers as a mount option, the container's own directory.
    V1 { hierarchies: Vec<(String, String, PathBuf)> },
}

impl CgroupView {
    /// Whether the tree of v2 is mounted anew, as it looks from the container's cgroup namespace, which may be the host's. runc and crun do so
    /// too; who gives a container the host's cgroup namespace wants it to see the host's cgroups.
    pub(crate) fn is_mounted_anew(&self, has: impl Fn(LinuxNamespaceType) -> bool) -> bool {
        match self {
            Self::V2 { may_show_all, .. } => {
                has(LinuxNamespaceType::Cgroup) || *may_show_all && !has(LinuxNamespaceType::User)
            }
            Self::V1 { .. } => false,
        }
    }
}

/// Everything that the container's init does before it waits to be started, and after.
#[derive(Debug)]
pub(crate) struct Plan {
    pub namespaces: Namespaces,
    /// Host paths whose detached copies the parent opens before the clone; steps refer to them by index.
    pub sources: Vec<Source>,
    /// Interfaces of the host that go in, by name: (there, inside).
    pub net_devices: Vec<(String, String)>,
    pub setup: Vec<Step>,
    pub start: Vec<Step>,
    pub warnings: Vec<String>,
}

/// A tree of the host that a step attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub recursive: bool,
    /// A symlink at the end of the path is followed, and not taken itself.
    pub follow: bool,
    pub by: Opener,
}

/// Who opens a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    /// The runtime, before the clone: with rights that the container's root may not have, and in the host's own peer groups.
    Runtime,
    /// The container's process, when its turn comes, so that the mount table has the order of the configuration.
    Process,
    /// The same, below the container's root: what earlier entries have mounted there is part of it.
    Root,
}

impl Source {
    fn below(path: &std::path::Path, recursive: bool) -> Self {
        Self { path: path.to_owned(), recursive, follow: true, by: Opener::Runtime }
    }
}

impl Plan {
    pub(crate) fn new(spec: &Spec, context: &Context<'_>) -> Result<Self, Error> {
        let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "this runtime runs Linux containers only"))?;
        let mut plan = Self {
            namespaces: Namespaces::default(),
            sources: Vec::new(),
            net_devices: net_devices(linux)?,
            setup: Vec::new(),
            start: Vec::new(),
            warnings: Vec::new(),
        };
        plan.namespaces = Namespaces::plan(linux, &context.default_maps, &mut plan.warnings)?;
        plan.refuse_unsupported(spec)?;
        plan.enter(spec, context)?;
        plan.mounts(spec, linux, context)?;
        plan.hooks_before_root(spec);
        plan.change_root(spec, linux, context)?;
        plan.identity_of_host(spec, linux)?;
        if let Some(process) = spec.process() {
            let context = ProcessContext {
                seccomp: linux.seccomp().as_ref(),
                personality: linux.personality().as_ref(),
                memory_policy: linux.memory_policy().as_ref(),
                preserve_fds: context.preserve_fds,
                keep_groups: is_asked_for(spec, KEEP_GROUPS),
                strict_seccomp: is_asked_for(spec, STRICT_SECCOMP),
                is_exec: false,
            };
            process_steps(process, &context, &mut plan.setup, &mut plan.start, &mut plan.warnings)?;
        } else {
            // It can be created, and wait; `start` is what fails. runtime-spec 1.3, "Start".
            plan.setup.push(Step::CloseDescriptors);
        }
        Ok(plan)
    }

    fn refuse_unsupported(&mut self, spec: &Spec) -> Result<(), Error> {
        self.check_version(spec.version())?;
        for (field, present) in [
            ("windows", spec.windows().is_some()),
            ("solaris", spec.solaris().is_some()),
            ("vm", spec.vm().is_some()),
            ("zos", spec.zos().is_some()),
        ] {
            if present {
                self.warnings.push(format!("{field} has no meaning on Linux and is not acted on"));
            }
        }
        if let Some(key) = spec.annotations().iter().flatten().find(|(key, _)| key.is_empty()) {
            return Err(invalid("annotations", &format!("a key is empty; its value is {:?}", key.1)));
        }
        if !self.net_devices.is_empty() && !self.namespaces.has(LinuxNamespaceType::Network) {
            return Err(invalid("linux.netDevices", "needs a network namespace in linux.namespaces"));
        }
        Ok(())
    }

    /// runtime-spec 1.3, "Specification version": SemVer; within a major version an older configuration is good for a newer runtime.
    fn check_version(&mut self, version: &str) -> Result<(), Error> {
        let bad = |reason: &str| Err(invalid("ociVersion", &format!("\"{version}\" {reason}")));
        let core = version.split(['-', '+']).next().unwrap_or_default();
        let numbers: Vec<Option<u32>> = core.split('.').map(|number| number.parse().ok()).collect();
        let [Some(major), Some(minor), Some(_)] = numbers[..] else { return bad("is not a version like 1.3.0") };
        if major != 1 {
            return bad("is not a version 1 configuration");
        }
        if minor > NEWEST_MINOR {
            self.warnings.push(format!(
                "ociVersion {version} is newer than 1.{NEWEST_MINOR}, the newest that this runtime knows: what is new in it is not acted on"
            ));
        }
        Ok(())
    }

    fn enter(&mut self, spec: &Spec, context: &Context<'_>) -> Result<(), Error> {
        self.setup.push(Step::Session);
        if self.namespaces.is_new(LinuxNamespaceType::Time) {
            // Before the user changes: the file of the offsets is its maker's.
            self.setup.push(Step::TimeNamespace(namespaces::time_offsets(spec)?));
        } else if spec
            .linux()
            .as_ref()
            .is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty()))
        {
            return Err(invalid("linux.timeOffsets", "needs a new time namespace in linux.namespaces"));
        }
        if let Some(name) = &context.keyring {
            self.setup.push(Step::Keyring(name.clone()));
        }
        if self.namespaces.has(LinuxNamespaceType::User) {
            self.setup.push(Step::NamespaceRoot);
        }
        if self.namespaces.is_new(LinuxNamespaceType::Network) {
            self.setup.push(Step::Loopback);
        }
        if self.namespaces.is_new(LinuxNamespaceType::Cgroup) {
            self.setup.push(Step::CgroupNamespace);
        }
        if let Some(adjustment) = spec.process().as_ref().and_then(|process| process.oom_score_adj()) {
            self.setup.push(Step::OomScoreAdjust(adjustment));
        }
        Ok(())
    }

    fn hooks_before_root(&mut self, spec: &Spec) {
        let Some(hooks) = spec.hooks() else { return };
        let is_some = |hooks: &Option<Vec<_>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
        #[allow(deprecated, reason = "runtime-spec 1.3 still has prestart hooks, and callers still use them")]
        if is_some(hooks.prestart()) || is_some(hooks.create_runtime()) {
            self.setup.push(Step::RuntimeHooks);
        }
        if is_some(hooks.create_container()) {
            self.setup.push(Step::Hooks(Moment::CreateContainer));
        }
        if is_some(hooks.start_container()) {
            self.start.push(Step::Hooks(Moment::StartContainer));
        }
    }

    /// hostname, domainname and sysctls.
    fn identity_of_host(&mut self, spec: &Spec, linux: &oci_spec::runtime::Linux) -> Result<(), Error> {
        let own_uts = self.namespaces.has(LinuxNamespaceType::Uts);
        for (field, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
            let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
            if !own_uts {
                return Err(invalid(
                    field,
                    "needs a uts namespace in linux.namespaces, or the host's own would change",
                ));
            }
            let value = value.clone();
            self.setup.push(if field == "hostname" { Step::Hostname(value) } else { Step::Domainname(value) });
        }
        let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().collect();
        sysctls.sort();
        for (key, value) in sysctls {
            let path = namespaces::sysctl_path(key, &self.namespaces)?;
            let domain = spec.domainname().as_ref().filter(|_| path.ends_with("kernel/domainname"));
            if domain.is_some_and(|domain| domain != value) {
                return Err(invalid(&format!("linux.sysctl.{key}"), "contradicts domainname"));
            }
            self.setup.push(Step::Sysctl { key: key.clone(), path, value: value.clone() });
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.namespaces)?;
        for step in &self.setup {
            writeln!(formatter, "{step}")?;
        }
        writeln!(formatter, "wait for start")?;
        for step in &self.start {
            writeln!(formatter, "{step}")?;
        }
        Ok(())
    }
}

/// In the order of their names, so that equal configurations have equal plans.
fn net_devices(linux: &Linux) -> Result<Vec<(String, String)>, Error> {
    let mut devices = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        let inside = device.name().as_deref().filter(|inside| !inside.is_empty()).unwrap_or(name);
        for name in [name.as_str(), inside] {
            // linux/if.h, IFNAMSIZ, and the kernel's dev_valid_name.
            let is_word = !name.contains(['/', ':']) && !name.contains(char::is_whitespace);
            if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || !is_word {
                return Err(invalid("linux.netDevices", &format!("\"{name}\" is not a name for a network device")));
            }
        }
        devices.push((name.clone(), inside.to_owned()));
    }
    devices.sort();
    Ok(devices)
}

/// crun's annotation: the process keeps the runtime's own supplementary groups.
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// Annotations that change what a container may do or what is written on the host, so that a caller can keep its users from setting them.
pub const UNSAFE_ANNOTATIONS: [&str; 4] =
    [crate::hooks::OUTPUT[0], crate::hooks::OUTPUT[1], KEEP_GROUPS, STRICT_SECCOMP];

/// crun's annotation: a call that a seccomp profile names and nobody knows is an error.
pub(crate) const STRICT_SECCOMP: &str = "run.oci.seccomp_fail_unknown_syscall";

/// One of crun's annotations that are a switch.
pub(crate) fn is_asked_for(spec: &Spec, name: &str) -> bool {
    let value = spec.annotations().as_ref().and_then(|annotations| annotations.get(name));
    value.is_some_and(|value| value == "1" || value == "true")
}

pub(crate) fn invalid(field: &str, reason: &str) -> Error {
    Error::InvalidConfig { field: field.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
