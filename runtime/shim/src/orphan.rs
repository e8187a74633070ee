//! What to do when a shim was killed: nobody reaps its containers or reads their output any more, so they are ended and cleared away.
//!
//! Invariant: nobody clears away what he cannot lock: a [`Claim`] is the pod's lock, which a shim holds as long as it lives, answering or
//! not. It may be repeated until it succeeds.

use crate::config::{Config, ConfigError};
use crate::record::{self, ExitRecord, LOST_CODE, RecordError, VERSION};
use crate::socket;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use runtime_linux::cgroup::{self, Cgroup, Hierarchy};
use runtime_linux::namespace::Kind;
use runtime_oci::{Deletion, StateRoot};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the lock's file may vanish between its opening and its locking.
const LOCK_TRIES: usize = 8;
/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    #[error("the shim of {} lives: ask it to shut down instead", dir.display())]
    Alive { dir: PathBuf },
    #[error("lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("list the pod's containers")]
    List(#[source] runtime_oci::Error),
    #[error("remove container {id}")]
    Delete { id: String, source: Box<runtime_oci::Error> },
    #[error("clear the shim's cgroup")]
    Cgroup(#[from] cgroup::Error),
    #[error("processes of the pod do not end though they were killed; try again")]
    Unkillable,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The lock of a shim that is gone: while it is held no other shim starts for this pod, and nobody else clears it away.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// What was cleared away.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Of all containers, by id; those marked `lost` whose end nobody saw.
    pub records: Vec<ExitRecord>,
    /// What was damaged or could not be read, and has been gone past; for people.
    pub damaged: Vec<String>,
}

/// Takes the pod's lock; [`OrphanError::Alive`] while its shim lives, however long it does not answer. The network is to be given back with
/// this in hand, while `<dir>/ns/net` is still there.
pub fn claim(dir: &Path) -> Result<Claim, OrphanError> {
    Ok(Claim { dir: dir.to_owned(), _lock: lock(dir)? })
}

/// [`claim`] and [`Claim::clean_up`] in one.
pub fn clean_up(dir: &Path) -> Result<Cleared, OrphanError> {
    claim(dir)?.clean_up()
}

impl Claim {
    /// Kills and removes every container of the pod; unpins its namespaces and removes the shim's cgroup and socket. What fails is gone past,
    /// and the first failure told at the end: the call may be repeated. Blocks until the killed processes are gone, with a limit.
    pub fn clean_up(&self) -> Result<Cleared, OrphanError> {
        let config = Config::load(&self.dir)?;
        self.clean_up_of(&config.state_root, &config.cgroup)
    }

    /// The same for a pod whose `config.json` is damaged, by who knows what it said.
    pub fn clean_up_of(&self, state_root: &Path, cgroup: &str) -> Result<Cleared, OrphanError> {
        let dir = self.dir.as_path();
        let hierarchy = Hierarchy::detect()?;
        // The pause process first: with it every process of a shared PID namespace goes.
        let own = Cgroup::new(&hierarchy, cgroup)?;
        own.kill()?;
        let root = StateRoot::new(state_root);
        let mut cleared = Cleared::default();
        let mut failures = Vec::new();
        // No root, no container ever.
        let states =
            if state_root.exists() { runtime_oci::list(&root).map_err(OrphanError::List)? } else { Vec::new() };
        for (id, state) in states {
            let name = id.as_str();
            let known = record::load(dir, name);
            if let Err(error) = &known {
                cleared.damaged.push(said(error));
            }
            if !matches!(known, Ok(Some(_))) {
                // A state that cannot be read costs the pid, not the clearing.
                let saved = record::save(dir, &lost(name, state.map_or(0, |state| state.pid)));
                failures.extend(saved.err().map(OrphanError::from));
            }
            let deleted = runtime_oci::delete(&root, &id, Deletion::Force);
            let failed = |source| OrphanError::Delete { id: name.to_owned(), source: Box::new(source) };
            failures.extend(deleted.err().map(failed));
        }
        for entry in fs::read_dir(dir.join("containers")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            match name.to_str().and_then(|id| record::load(dir, id).transpose()) {
                Some(Ok(record)) => cleared.records.push(record),
                Some(Err(error)) => cleared.damaged.push(said(&error)),
                None => {}
            }
        }
        if own.wait_empty(KILL_TIMEOUT)? {
            failures.extend(own.remove().err().map(OrphanError::from));
        } else {
            failures.push(OrphanError::Unkillable);
        }
        failures.extend(unpin(dir).err());
        match failures.into_iter().next() {
            Some(error) => return Err(error),
            None => {
                for name in [socket::NAME, "shim.pid"] {
                    remove(&dir.join(name), fs::remove_file)?;
                }
            }
        }
        cleared.records.sort_by(|left, right| left.id.cmp(&right.id));
        cleared.damaged.dedup();
        Ok(cleared)
    }
}

/// An error with its causes, as one line.
fn said(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// The pod's lock, which is the open file's and dies with its process. A file that was unlinked before it was locked is nobody's.
pub fn lock(dir: &Path) -> Result<Flock<File>, OrphanError> {
    let path = dir.join("shim.pid");
    let failed = |source| OrphanError::Lock { path: path.clone(), source };
    for _ in 0..LOCK_TRIES {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => OrphanError::Alive { dir: dir.to_owned() },
            errno => failed(errno.into()),
        })?;
        let locked = lock.metadata().map_err(failed)?;
        if fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            return Ok(lock);
        }
    }
    Err(failed(io::ErrorKind::ResourceBusy.into()))
}

fn lost(id: &str, pid: i32) -> ExitRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ExitRecord {
        version: VERSION,
        id: id.to_owned(),
        exec_id: None,
        pid,
        code: LOST_CODE,
        signal: None,
        oom_killed: false,
        started_at_ns: 0,
        exited_at_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        lost: true,
    }
}

/// Removes the pins of a pod's namespaces at `<dir>/ns`; what is not there is fine.
pub fn unpin(dir: &Path) -> Result<(), OrphanError> {
    let pins = dir.join("ns");
    for kind in Kind::ALL {
        let at = pins.join(kind.file_name());
        // Lazily, and again for pins that were stacked: EINVAL and ENOENT say that nothing is mounted there.
        while umount2(&at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        remove(&at, fs::remove_file)?;
    }
    remove(&pins, fs::remove_dir)
}

fn remove(path: &Path, how: fn(PathBuf) -> io::Result<()>) -> Result<(), OrphanError> {
    match how(path.to_owned()) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OrphanError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
