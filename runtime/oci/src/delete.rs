//! `delete`: cleans up whatever state it finds. Goes on past an error and tells the first at the end; what is gone already is fine.

use nix::poll::PollTimeout;
use runtime_linux::pidfd;

use crate::confine;
use crate::create::parent;
use crate::error::Error;
use crate::hooks::{self, Kind};
use crate::host_mounts;
use crate::record::{Place, Record};
use crate::status::Status;
use crate::{ContainerId, StateRoot};

/// How long to wait for the init before its cgroup is killed: a frozen one waits for that.
const END_TIMEOUT_MS: u8 = 200;

/// What `delete` does to a container that still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Refuses; one that was created and never started is deleted all the same, as by runc.
    Stopped,
    /// Kills it first, and does not mind a container that is not there.
    Force,
}

/// Comes back with what went wrong and is no error: poststop hooks.
pub fn delete(root: &StateRoot, id: &ContainerId, deletion: Deletion) -> Result<Vec<String>, Error> {
    let place = Place::new(root, id);
    let lock = match place.lock() {
        Err(Error::NotFound { .. }) if deletion == Deletion::Force => return Ok(Vec::new()),
        other => other?,
    };
    let Some(record) = place.read()? else {
        // Its maker was killed before it wrote where the cgroup would be, so there is none.
        return place.remove().map(|()| Vec::new());
    };
    let cgroup = root.cgroup(&record.cgroup)?;
    // A maker that was killed may have left a process that the record does not know yet: it is in the cgroup, or it sees its parent's
    // end and exits.
    let status = if record.pid == 0 { Status::Stopped } else { record.status(&place, || false) };
    if deletion == Deletion::Stopped && !matches!(status, Status::Stopped | Status::Created) {
        return Err(Error::NotStopped { id: id.to_string(), status });
    }
    let mut results = Vec::new();
    if status != Status::Stopped {
        results.push(end(&record));
    }
    // Mostly nobody is left by now. A unit is first stopped by who made it.
    if record.unit.is_none() && cgroup.remove_if_empty() {
        results.push(Ok(()));
    } else if cgroup.exists() {
        results.push(cgroup.kill().map_err(Error::from));
        results.push(confine::remove(&cgroup, record.unit.as_ref()));
    } else if let Some(unit) = &record.unit {
        // A unit that failed stays known to systemd until it is told to forget it.
        results.push(unit.stop());
    }
    results.push(host_mounts::remove(&record.rootfs, &record.host_mounts));
    results.extend(record.resctrl.as_ref().map(crate::resctrl::Membership::leave));
    let warnings = hooks::run_all(Kind::Poststop, &record.poststop, &record.state(Status::Stopped));
    // With something left behind the record stays, so that the next `delete` knows of it.
    let all = results.into_iter().collect::<Result<(), Error>>();
    if all.is_ok() {
        place.remove()?;
    }
    drop(lock);
    all.map(|()| warnings)
}

fn end(record: &Record) -> Result<(), Error> {
    let Ok(process) = pidfd::open(record.pid) else { return Ok(()) };
    if !record.is_alive() {
        return Ok(());
    }
    match pidfd::send_signal(&process, nix::libc::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => return Err(parent("kill")(errno)),
    }
    match pidfd::wait_ended(&process, PollTimeout::from(END_TIMEOUT_MS)) {
        Ok(_) => Ok(()),
        Err(errno) => Err(parent("wait for the container's end")(errno)),
    }
}
