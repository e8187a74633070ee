//! The short operations on one container: kill, pause, resume, update, state, list.

use std::io::ErrorKind;

use oci_spec::runtime::LinuxResources;
use runtime_linux::cgroup::Cgroup;
use runtime_linux::pidfd;

use crate::create::parent;
use crate::error::Error;
use crate::record::{Place, Record};
use crate::status::{State, Status};
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

/// Sends a signal; to a stopped container's init it is an error, to all it reaches whoever is left.
pub fn kill(root: &StateRoot, id: &ContainerId, signal: i32, target: Target) -> Result<(), Error> {
    let found = Found::new(root, id)?;
    let is_kill = signal == nix::libc::SIGKILL;
    match target {
        Target::All if is_kill => found.cgroup.kill()?,
        Target::All => found.cgroup.signal(signal)?,
        Target::Init => {
            // Without a PID namespace of its own nobody else ends with the init: then KILL means all, as for runc.
            if is_kill && !found.record.namespaces.iter().any(|name| name == "pid") && found.record.is_alive() {
                found.cgroup.kill()?;
                return Ok(());
            }
            let status =
                found.require("kill", &[Status::Created, Status::Running, Status::Paused, Status::Creating])?;
            let process = pidfd::open(found.record.pid).map_err(parent("kill"))?;
            if !found.record.is_alive() {
                return Err(Error::WrongStatus { id: id.to_string(), operation: "kill", status: Status::Stopped });
            }
            pidfd::send_signal(&process, signal).map_err(parent("kill"))?;
            // v1: a frozen process does not even die.
            if is_kill && status == Status::Paused {
                found.cgroup.thaw()?;
            }
        }
    }
    Ok(())
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

/// Changes limits; what the host has no way to do and is safe to go without comes back as warnings.
pub fn update(root: &StateRoot, id: &ContainerId, resources: &LinuxResources) -> Result<Vec<String>, Error> {
    let found = Found::new(root, id)?;
    found.require("update", &[Status::Created, Status::Running, Status::Paused])?;
    Ok(found.cgroup.apply(resources)?.iter().map(ToString::to_string).collect())
}

/// The processes in the container's cgroup, as pids of the caller's namespace.
pub fn processes(root: &StateRoot, id: &ContainerId) -> Result<Vec<i32>, Error> {
    Ok(Found::new(root, id)?.cgroup.pids_recursive()?)
}

/// The container's cgroup, for statistics and events.
pub fn cgroup(root: &StateRoot, id: &ContainerId) -> Result<Cgroup, Error> {
    Ok(Found::new(root, id)?.cgroup)
}
