//! The short operations on one container: kill, pause, resume, update, state, list.

use std::io::ErrorKind;

use oci_spec::runtime::LinuxResources;
use runtime_linux::cgroup::Cgroup;
use runtime_linux::pidfd;

use crate::confine::with_default_devices;
use crate::create::parent;
use crate::error::Error;
use crate::plan::invalid;
use crate::record::{Place, Record};
use crate::status::{State, Status};
use crate::systemd::{as_rounded, with_whole_quota};
use crate::{ContainerId, StateRoot};

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Init,
    /// Every process in the container's cgroup.
    All,
}

struct Found {
    place: Place,
    record: Record,
    cgroup: Cgroup,
}

impl Found {
    fn new(root: &StateRoot, id: &ContainerId) -> Result<Self, Error> {
        let place = Place::new(root, id);
        let record = place.load()?;
        let cgroup = root.cgroup(&record.cgroup)?;
        Ok(Self { place, record, cgroup })
    }

    fn status(&self) -> Status {
        self.record.status(&self.place, || self.cgroup.is_frozen().unwrap_or(false))
    }

    fn require(&self, operation: &'static str, good: &[Status]) -> Result<Status, Error> {
        let status = self.status();
        if good.contains(&status) {
            return Ok(status);
        }
        Err(Error::WrongStatus { id: self.record.id.clone(), operation, status })
    }
}

/// Sends a signal. A stopped container's init is an error, but for all: then it reaches whoever is left.
pub fn kill(root: &StateRoot, id: &ContainerId, signal: i32, target: Target) -> Result<(), Error> {
    let found = Found::new(root, id)?;
    let is_kill = signal == nix::libc::SIGKILL;
    // Without a PID namespace of its own nobody else ends with the init, alive or not: then KILL means all, as for runc.
    let init_is_all = found.record.namespaces.iter().any(|name| name == "pid") && !found.record.shares_pids;
    match target {
        Target::All if is_kill => found.cgroup.kill()?,
        Target::All => found.cgroup.signal(signal)?,
        Target::Init if is_kill && !init_is_all => {
            let is_empty = found.cgroup.pids_recursive()?.is_empty();
            if is_empty && !found.record.is_alive() {
                found.require("kill", &[Status::Running])?;
            }
            found.cgroup.kill()?;
            if found.record.is_alive() {
                // It is somewhere else, or dying just now, which is what was asked for.
                match signal_init(&found, id, signal) {
                    Err(Error::WrongStatus { .. }) => {}
                    other => other?,
                }
            }
        }
        Target::Init => {
            let good = [Status::Created, Status::Running, Status::Paused, Status::Creating];
            let status = found.require("kill", &good)?;
            signal_init(&found, id, signal)?;
            // v1: a frozen process does not even die.
            if is_kill && status == Status::Paused {
                found.cgroup.thaw()?;
            }
        }
    }
    Ok(())
}

/// By a pidfd, of which it is known that it is the init's: the pid could have been taken over before it was opened, not after.
fn signal_init(found: &Found, id: &ContainerId, signal: i32) -> Result<(), Error> {
    let stopped = || Error::WrongStatus { id: id.to_string(), operation: "kill", status: Status::Stopped };
    let process = match pidfd::open(found.record.pid) {
        Err(nix::errno::Errno::ESRCH) => return Err(stopped()),
        other => other.map_err(parent("kill"))?,
    };
    if !found.record.is_alive() {
        return Err(stopped());
    }
    match pidfd::send_signal(&process, signal) {
        Err(nix::errno::Errno::ESRCH) => Err(stopped()),
        other => other.map_err(parent("kill")),
    }
}

pub fn state(root: &StateRoot, id: &ContainerId) -> Result<State, Error> {
    let place = Place::new(root, id);
    let record = place.load()?;
    let frozen = || root.cgroup(&record.cgroup).and_then(|cgroup| Ok(cgroup.is_frozen()?)).unwrap_or(false);
    let status = record.status(&place, frozen);
    Ok(record.state(status))
}

/// One container of a listing.
pub type Listed = (ContainerId, Result<State, Error>);

/// Every container below the root, by id; one whose record cannot be read is an error of its own.
pub fn list(root: &StateRoot) -> Result<Vec<Listed>, Error> {
    let read = |source| Error::Read { path: root.dir().to_owned(), source };
    let entries = match std::fs::read_dir(root.dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read)?;
        // What is not a container's directory is somebody else's.
        if let Some(id) = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok())
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            ids.push(id);
        }
    }
    ids.sort();
    Ok(ids.into_iter().map(|id| (id.clone(), state(root, &id))).filter(|(_, state)| !is_gone(state)).collect())
}

/// Deleted between the listing and the look.
fn is_gone(state: &Result<State, Error>) -> bool {
    matches!(state, Err(Error::NotFound { .. }))
}

pub fn pause(root: &StateRoot, id: &ContainerId) -> Result<(), Error> {
    let found = Found::new(root, id)?;
    found.require("pause", &[Status::Created, Status::Running])?;
    Ok(found.cgroup.freeze()?)
}

pub fn resume(root: &StateRoot, id: &ContainerId) -> Result<(), Error> {
    let found = Found::new(root, id)?;
    found.require("resume", &[Status::Paused])?;
    Ok(found.cgroup.thaw()?)
}

/// Lines of resctrl's schemata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schemata {
    pub l3_cache: Option<String>,
    pub memory_bandwidth: Option<String>,
}

/// Changes limits; what the host has no way to do and is safe to go without comes back as warnings.
pub fn update(
    root: &StateRoot,
    id: &ContainerId,
    resources: &LinuxResources,
    schemata: &Schemata,
) -> Result<Vec<String>, Error> {
    let found = Found::new(root, id)?;
    found.require("update", &[Status::Created, Status::Running, Status::Paused])?;
    update_schemata(&found, schemata)?;
    let mut resources = resources.clone();
    if let Some(unit) = &found.record.unit {
        resources = as_rounded(&with_whole_quota(&resources, &found.cgroup)?);
        found.cgroup.check(&resources)?;
        unit.update(&resources, found.cgroup.hierarchy())?;
    }
    // Device rules are the whole list, as in config.json: what they do not allow is no longer allowed.
    let resources = with_default_devices(&resources);
    Ok(found.cgroup.apply(&resources)?.iter().map(ToString::to_string).collect())
}

/// Where the kernel shares out caches and memory bandwidth; Documentation/filesystems/resctrl.rst.
const RESCTRL: &str = "/sys/fs/resctrl";

fn update_schemata(found: &Found, schemata: &Schemata) -> Result<(), Error> {
    let lines: Vec<&String> = schemata.l3_cache.iter().chain(&schemata.memory_bandwidth).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let spec = found.place.config()?;
    let rdt = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
    let rdt = rdt.ok_or_else(|| {
        invalid("linux.intelRdt", "is missing: a schema can only be changed for a container that was made with one")
    })?;
    let group = rdt.clos_id().as_deref().filter(|id| !id.is_empty()).unwrap_or(&found.record.id);
    let path = std::path::Path::new(RESCTRL).join(group).join("schemata");
    for line in lines {
        let mut line = line.clone();
        line.push('\n');
        std::fs::write(&path, line).map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    Ok(())
}

/// The processes in the container's cgroup, as pids of the caller's namespace.
pub fn processes(root: &StateRoot, id: &ContainerId) -> Result<Vec<i32>, Error> {
    Ok(Found::new(root, id)?.cgroup.pids_recursive()?)
}

/// The container's cgroup, for statistics and events.
pub fn cgroup(root: &StateRoot, id: &ContainerId) -> Result<Cgroup, Error> {
    Ok(Found::new(root, id)?.cgroup)
}
