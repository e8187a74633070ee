//! Turns a bundle into a plan: an ordered list of steps, each of which can be printed. Touches no kernel state; see `child.rs`.
//!
//! Invariant: what the configuration asks for is a step, a warning or an error, never dropped in silence.

mod devices;
mod mounts;
mod namespaces;
mod process;
mod steps;

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use runtime_linux::mount::Overlay;

use crate::error::Error;
use crate::options::RootChange;

pub(crate) use namespaces::Namespaces;
pub(crate) use process::{ProcessContext, process_steps, search_path};
pub(crate) use steps::{
    BindMount, CgroupMount, Data, DeviceNode, FilesystemMount, IdMapping, Moment, MountAttributes, MountStep, Step,
};

/// What the plan needs to know beyond the configuration.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The bundle's directory, absolute.
    pub bundle: &'a std::path::Path,
    pub rootfs: Option<&'a Overlay>,
    pub root_change: RootChange,
    pub keyring: Option<String>,
    pub cgroup: CgroupView,
    pub preserve_fds: u32,
}

/// How the host's cgroups look, for the mounts of type `cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupView {
    /// One tree; the container's own directory on the host.
    V2 { own: PathBuf },
    /// The mounted hierarchies: the directory's name below /sys/fs/cgroup, the controllers as a mount option, the container's own directory.
    V1 { hierarchies: Vec<(String, String, PathBuf)> },
}

/// Everything that the container's init does before it waits to be started, and after.
#[derive(Debug)]
pub(crate) struct Plan {
    pub namespaces: Namespaces,
    /// Host paths whose detached copies the parent opens before the clone; steps refer to them by index.
    pub sources: Vec<Source>,
    pub setup: Vec<Step>,
    pub start: Vec<Step>,
    pub warnings: Vec<String>,
}

/// A tree of the host that a step attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub recursive: bool,
}

impl Plan {
    pub(crate) fn new(spec: &Spec, context: &Context<'_>) -> Result<Self, Error> {
        let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "this runtime runs Linux containers only"))?;
        let mut plan = Self {
            namespaces: Namespaces::plan(linux)?,
            sources: Vec::new(),
            setup: Vec::new(),
            start: Vec::new(),
            warnings: Vec::new(),
        };
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
                is_exec: false,
            };
            process_steps(process, &context, &mut plan.setup, &mut plan.start, &mut plan.warnings)?;
        }
        Ok(plan)
    }

    fn refuse_unsupported(&mut self, spec: &Spec) -> Result<(), Error> {
        let major = spec.version().split('.').next().unwrap_or_default();
        if major != "1" {
            return Err(invalid("ociVersion", &format!("\"{}\" is not a version 1 configuration", spec.version())));
        }
        for (field, present) in
            [("windows", spec.windows().is_some()), ("solaris", spec.solaris().is_some()), ("vm", spec.vm().is_some())]
        {
            if present {
                self.warnings.push(format!("{field} has no meaning on Linux and is not acted on"));
            }
        }
        if let Some(linux) = spec.linux() {
            if linux.intel_rdt().is_some() {
                return Err(invalid("linux.intelRdt", "is not supported"));
            }
            if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
                return Err(invalid("linux.netDevices", "moving network devices is not supported"));
            }
            if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
                return Err(invalid("linux.mountLabel", "SELinux labels are not supported"));
            }
        }
        Ok(())
    }

    fn enter(&mut self, spec: &Spec, context: &Context<'_>) -> Result<(), Error> {
        self.setup.push(Step::Session);
        if let Some(name) = &context.keyring {
            self.setup.push(Step::Keyring(name.clone()));
        }
        if self.namespaces.has(LinuxNamespaceType::User) {
            self.setup.push(Step::NamespaceRoot);
        }
        if self.namespaces.is_new(LinuxNamespaceType::Cgroup) {
            self.setup.push(Step::CgroupNamespace);
        }
        if self.namespaces.is_new(LinuxNamespaceType::Time) {
            self.setup.push(Step::TimeNamespace(namespaces::time_offsets(spec)?));
        } else if spec
            .linux()
            .as_ref()
            .is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty()))
        {
            return Err(invalid("linux.timeOffsets", "needs a new time namespace in linux.namespaces"));
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

pub(crate) fn invalid(field: &str, reason: &str) -> Error {
    Error::InvalidConfig { field: field.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
