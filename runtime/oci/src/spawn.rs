//! The clone: from a prepared `Child` to a process in its namespaces.
//!
//! Mostly one clone3. A process in between is needed where namespaces must be joined before others are made: with a user namespace that
//! is joined, the new ones must belong to it; with a new one, what is joined belongs to the host, and from inside cannot be joined any
//! more. An exec has one too, so that nobody in the container sees a process that is still half the host's.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use runtime_linux::clone::{CLONE_PARENT, Cloned, clone, exit_now};
use runtime_linux::executable::{Undumpable, set_undumpable};
use runtime_linux::namespace::{self, Kind};
use runtime_linux::{pidfd, process};

use crate::child::{self, Child};
use crate::sync::{self, BEFORE_STEPS, Fault, Report};

/// How the process comes to be.
#[derive(Debug)]
pub(crate) struct Spawn {
    /// `CLONE_NEW*`.
    pub flags: u64,
    /// Joined by the parent around the clone, since only children enter it: a namespace file or a pidfd.
    pub pid_namespace: Option<OwnedFd>,
    pub has_process_between: bool,
    pub cgroup: Option<OwnedFd>,
}

/// A process that is killed unless it is released. Nobody waits for its end here: [`Self::end`] does, and the loops by its pidfd.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Spawned {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd: Some(pidfd) }
    }

    /// The process goes on by itself.
    pub(crate) fn release(mut self) -> Option<OwnedFd> {
        self.pidfd.take()
    }

    /// Kills it and reaps it.
    pub(crate) fn end(mut self) {
        self.kill();
        if let Some(pidfd) = self.pidfd.take() {
            // A caller that ignores SIGCHLD has no child to reap.
            let _reaped = pidfd::wait(&pidfd);
        }
    }

    fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            let _ended = pidfd::send_signal(pidfd, nix::libc::SIGKILL);
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.kill();
        if let Some(pidfd) = self.pidfd.take() {
            // Mostly it has ended already, and else it is its parent's to reap.
            let _reaped = pidfd::try_wait(&pidfd);
        }
    }
}

/// What a clone has made.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The process itself.
    Init(Spawned),
    /// The process in between, which will tell of it.
    Between(Spawned),
    /// Nobody any more who would be killed with this.
    Released,
}

impl Begun {
    pub(crate) fn spawned(&self) -> Option<&Spawned> {
        match self {
            Self::Init(spawned) => Some(spawned),
            Self::Between(_) | Self::Released => None,
        }
    }

    /// Of whoever is there.
    pub(crate) fn pidfd(&self) -> Option<&OwnedFd> {
        match self {
            Self::Init(spawned) | Self::Between(spawned) => spawned.pidfd.as_ref(),
            Self::Released => None,
        }
    }

    pub(crate) fn kill(&self) {
        if let Self::Init(spawned) | Self::Between(spawned) = self {
            spawned.kill();
        }
    }
}

/// Clones. `ours` (the parent's end of the socket pair) and `own` (locks) are what only the parent keeps: they come back, and the child
/// lets go of them, or it would never see its parent's end.
pub(crate) fn begin<T>(spawn: &Spawn, child: Child<'_>, ours: OwnedFd, own: T) -> Result<(Begun, OwnedFd, T), Errno> {
    if spawn.has_process_between {
        return begin_between(spawn, child, ours, own);
    }
    // Whoever lives in the PID namespace sees the child from its first instruction on (CVE-2016-9962).
    let hidden = spawn.pid_namespace.as_ref().map(|_| Undumpable::new()).transpose()?;
    let home = match &spawn.pid_namespace {
        Some(target) => {
            let home = namespace::open_path(std::path::Path::new("/proc/self/ns/pid"))?;
            namespace::join(target, Kind::Pid.flag())?;
            Some(home)
        }
        None => None,
    };
    let cloned = clone(spawn.flags, spawn.cgroup.as_ref().map(std::os::fd::AsFd::as_fd));
    match cloned {
        Ok(Cloned::Child) => {
            drop((ours, own));
            child::run(child)
        }
        other => {
            if let Some(home) = home {
                namespace::join(&home, Kind::Pid.flag())?;
            }
            drop(hidden);
            match other? {
                Cloned::Parent { pid, pidfd } => Ok((Begun::Init(Spawned::new(pid, pidfd)), ours, own)),
                Cloned::Child => exit_now(1),
            }
        }
    }
}

/// [`begin`], and waits until the process itself is there: for callers that have nothing else to do.
pub(crate) fn spawn(spawn: &Spawn, child: Child<'_>, ours: OwnedFd) -> Result<(Spawned, OwnedFd), Errno> {
    let (begun, ours, ()) = begin(spawn, child, ours, ())?;
    let between = match begun {
        Begun::Init(spawned) => return Ok((spawned, ours)),
        Begun::Between(between) => between,
        Begun::Released => return Err(Errno::ECHILD),
    };
    let report = sync::receive_report(&ours);
    between.end();
    match report? {
        Some(Report::Spawned { pid, pidfd }) => Ok((Spawned::new(pid, pidfd), ours)),
        Some(Report::Failed(fault)) => Err(Errno::from_raw(fault.errno)),
        _ => Err(Errno::EPROTO),
    }
}

fn begin_between<T>(spawn: &Spawn, mut child: Child<'_>, ours: OwnedFd, own: T) -> Result<(Begun, OwnedFd, T), Errno> {
    match clone(0, None)? {
        Cloned::Child => {
            drop((ours, own));
            let report = match between(spawn, &mut child) {
                Ok(Cloned::Child) => child::run(child),
                Ok(Cloned::Parent { pid, pidfd }) => Report::Spawned { pid, pidfd },
                Err(errno) => {
                    let detail = "join namespaces".to_owned();
                    Report::Failed(Fault { step: BEFORE_STEPS, errno: errno as i32, detail })
                }
            };
            let _gone = sync::send_report(&child.sync, &report);
            exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(child);
            Ok((Begun::Between(Spawned::new(pid, pidfd)), ours, own))
        }
    }
}

fn between(spawn: &Spawn, child: &mut Child<'_>) -> Result<Cloned, Errno> {
    // An unprivileged parent could not write the id maps of a child that is not dumpable: then the child hides itself afterwards.
    if spawn.flags & Kind::User.flag() == 0 {
        set_undumpable()?;
    }
    let mut keep = child.descriptors();
    keep.extend(spawn.pid_namespace.as_ref().map(AsRawFd::as_raw_fd));
    process::close_all_but(&keep)?;
    // setns(2): nobody in the PID namespace sees this process itself, only its children. Tried first, since it may be the host's, which
    // from inside a user namespace cannot be joined any more.
    let join = || spawn.pid_namespace.as_ref().map_or(Ok(()), |target| namespace::join(target, Kind::Pid.flag()));
    let is_joined = match join() {
        Err(Errno::EPERM) => false,
        other => other.map(|()| true)?,
    };
    child.join_namespaces()?;
    if !is_joined {
        join()?;
    }
    // The clone last: who lives there sees a child that has nothing of the host's any more, neither its mounts nor its descriptors, for
    // CAP_SYS_PTRACE reaches also what is not dumpable.
    clone(spawn.flags | CLONE_PARENT, None)
}
