//! The container's cgroup: where it is, who makes it, its limits, how its process comes into it and how it goes.
//!
//! Made by the runtime itself before the process, or by systemd around the process; or there is none, and the container stays in its
//! caller's. Invariant: where it will be is known before anything is made, so the record can say it first.

use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use runtime_linux::cgroup::{self, Cgroup};

use crate::error::Error;
use crate::options::Cgroups;
use crate::plan::invalid;
use crate::systemd::{Unit, as_rounded};
use crate::{ContainerId, StateRoot};

#[derive(Clone, Debug)]
pub(crate) struct Confinement {
    cgroup: Cgroup,
    /// systemd's unit, whose cgroup it is.
    unit: Option<Unit>,
    /// From here on it is ours to remove.
    is_ours: bool,
}

impl Confinement {
    /// Touches nothing but, for a user's systemd, the bus.
    pub(crate) fn plan(root: &StateRoot, spec: &Spec, id: &ContainerId, cgroups: Cgroups) -> Result<Self, Error> {
        let (path, unit) = match cgroups {
            Cgroups::None => (String::new(), None),
            Cgroups::Systemd => {
                let unit = Unit::plan(configured_path(spec)?, id, &spec.annotations().clone().unwrap_or_default())?;
                (unit.cgroup().to_owned(), Some(unit))
            }
            Cgroups::Direct | Cgroups::WherePermitted => (direct_path(spec, id)?, None),
        };
        let is_plain = configured_path(spec)?.is_none() && !asks_for_limits(spec);
        let mut cgroup = root.cgroup(&path)?;
        // Before anything depends on it: what a mount of type `cgroup` shows is the place where the container really is.
        if cgroups == Cgroups::WherePermitted && is_plain && !cgroup.may_be_made() {
            cgroup = Cgroup::none();
        }
        Ok(Self { cgroup, unit, is_ours: false })
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// As the record has it: empty for none.
    pub(crate) fn recorded_path(&self) -> String {
        if self.cgroup.is_none() { String::new() } else { self.cgroup.path().to_owned() }
    }

    pub(crate) fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// Whether the process can be cloned right into it.
    pub(crate) fn is_there_first(&self) -> bool {
        self.unit.is_none()
    }

    /// Before there is a process: the cgroup with its limits, where the runtime makes it.
    pub(crate) fn prepare(&mut self, spec: &Spec, warnings: &mut Vec<String>) -> Result<(), Error> {
        // Mostly it is nowhere yet, and then nobody can be in it.
        if self.unit.is_none() && !self.cgroup.is_none() && self.cgroup.create_new() {
            self.is_ours = true;
            return apply_of(&self.cgroup, spec, warnings);
        }
        if self.cgroup.exists() {
            // Ours to fill, not to kill: `delete` ends what is in the cgroup.
            if !self.cgroup.pids_recursive()?.is_empty() {
                return Err(Error::CgroupInUse { path: self.cgroup.path().to_owned() });
            }
            // Nothing that comes into it would ever run.
            if self.cgroup.is_frozen()? {
                return Err(Error::CgroupFrozen { path: self.cgroup.path().to_owned() });
            }
        }
        if self.cgroup.is_none() {
            return without(spec, warnings);
        }
        self.is_ours = true;
        if self.unit.is_some() {
            return Ok(());
        }
        match Cgroup::create(self.cgroup.hierarchy(), self.cgroup.path()) {
            Ok(_) => apply_of(&self.cgroup, spec, warnings),
            Err(error) if is_refused(&error) => Err(Error::CgroupRefused(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Around the process, which waits.
    pub(crate) fn admit(&self, pid: i32, spec: &Spec, warnings: &mut Vec<String>) -> Result<(), Error> {
        if let Some(unit) = &self.unit {
            let none = LinuxResources::default();
            let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
            let resources = as_rounded(resources);
            unit.start(pid, &resources, self.cgroup.hierarchy())?;
            // On v1 systemd makes it in few hierarchies; the others are ours.
            Cgroup::create(self.cgroup.hierarchy(), self.cgroup.path())?;
            apply(&self.cgroup, &resources, warnings)?;
        }
        Ok(self.cgroup.add(pid)?)
    }

    /// After a failure: what is ours goes.
    pub(crate) fn undo(&self) -> Result<(), Error> {
        if self.is_ours { remove(&self.cgroup, self.unit.as_ref()) } else { Ok(()) }
    }
}

/// Ends what `admit` and `prepare` made; the processes are gone or going.
pub(crate) fn remove(cgroup: &Cgroup, unit: Option<&Unit>) -> Result<(), Error> {
    if let Some(unit) = unit
        && let Err(error) = unit.stop()
        && cgroup.exists()
    {
        return Err(error);
    }
    Ok(cgroup.remove()?)
}

fn is_refused(error: &cgroup::Error) -> bool {
    [Errno::EACCES, Errno::EPERM, Errno::EROFS].iter().any(|errno| error.errno() == Some(*errno as i32))
}

/// Limits that nobody would hold are an error; device rules are told of, since who runs containers this way gives them none or does without.
fn without(spec: &Spec, warnings: &mut Vec<String>) -> Result<(), Error> {
    if asks_for_limits(spec) {
        return Err(invalid("linux.resources", "cannot be held, because the container is to have no cgroup"));
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if resources.is_some_and(|resources| resources.devices().as_ref().is_some_and(|rules| !rules.is_empty())) {
        warnings.push("linux.resources.devices is not enforced, because the container is to have no cgroup".to_owned());
    }
    Ok(())
}

fn asks_for_limits(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    resources.is_some_and(|mut resources| {
        // Who cannot make nodes is not kept from devices by rules.
        resources.set_devices(None);
        resources != LinuxResources::default()
    })
}

fn configured_path(spec: &Spec) -> Result<Option<&str>, Error> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    path.to_str().map(Some).ok_or_else(|| invalid("linux.cgroupsPath", "is not UTF-8"))
}

fn direct_path(spec: &Spec, id: &ContainerId) -> Result<String, Error> {
    let Some(text) = configured_path(spec)? else { return Ok(format!("/{id}")) };
    let trimmed = text.trim_matches('/');
    if trimmed.is_empty() {
        return Err(invalid("linux.cgroupsPath", "is the root cgroup, which holds the host's own processes"));
    }
    Ok(format!("/{trimmed}"))
}

fn apply_of(cgroup: &Cgroup, spec: &Spec, warnings: &mut Vec<String>) -> Result<(), Error> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map_or(Ok(()), |resources| apply(cgroup, resources, warnings))
}

fn apply(cgroup: &Cgroup, resources: &LinuxResources, warnings: &mut Vec<String>) -> Result<(), Error> {
    let resources = with_default_devices(resources);
    warnings.extend(cgroup.apply(&resources)?.iter().map(ToString::to_string));
    Ok(())
}

/// Device rules are a list to begin with; what every container may use is allowed after it.
pub(crate) fn with_default_devices(resources: &LinuxResources) -> LinuxResources {
    let mut resources = resources.clone();
    if let Some(devices) = resources.devices_mut() {
        let mut blocks = device_rule(None, None, "m");
        blocks.set_typ(Some(LinuxDeviceType::B));
        devices.push(blocks);
        devices.extend(DEFAULT_DEVICES.iter().map(|(major, minor, access)| device_rule(*major, *minor, access)));
    }
    resources
}

/// What a container with device rules may always use: its nodes can be made (`m` of anything, block devices too: a node alone opens nothing), and those of
/// runtime-spec 1.3, "Default Devices", with terminals, can be opened.
const DEFAULT_DEVICES: [(Option<i64>, Option<i64>, &str); 9] = [
    (None, None, "m"),
    (Some(1), Some(3), "rwm"),
    (Some(1), Some(5), "rwm"),
    (Some(1), Some(7), "rwm"),
    (Some(1), Some(8), "rwm"),
    (Some(1), Some(9), "rwm"),
    (Some(5), Some(0), "rwm"),
    (Some(5), Some(2), "rwm"),
    (Some(136), None, "rwm"),
];

fn device_rule(major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(LinuxDeviceType::C))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}
