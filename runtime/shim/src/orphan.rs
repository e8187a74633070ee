//! What to do when a shim was killed: nobody reaps its containers or reads their output any more, so they are ended and cleared away.
//!
//! Invariant: `clean_up` never touches a pod whose shim lives (it takes the shim's lock first), and may be repeated until it succeeds.

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
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Kills and removes every container of the pod at `dir`, whose shim is gone; unpins its namespaces and removes the shim's cgroup and socket.
/// Returns the exit records of all its containers, those marked `lost` whose end nobody saw. The network is the caller's to give back
/// *before* this, while `<dir>/ns/net` is still there.
pub fn clean_up(dir: &Path) -> Result<Vec<ExitRecord>, OrphanError> {
    let _lock = lock(dir)?;
    let config = Config::load(dir)?;
    let hierarchy = Hierarchy::detect()?;
    // The pause process first: with it every process of a shared PID namespace goes.
    let own = Cgroup::new(&hierarchy, &config.cgroup)?;
    own.kill()?;
    let root = StateRoot::new(&config.state_root);
    let mut records = Vec::new();
    // No root, no container ever.
    let states =
        if config.state_root.exists() { runtime_oci::list(&root).map_err(OrphanError::List)? } else { Vec::new() };
    for (id, state) in states {
        let name = id.as_str();
        if record::load(dir, name)?.is_none() {
            // A state that cannot be read costs the pid, not the clearing.
            record::save(dir, &lost(name, state.map_or(0, |state| state.pid)))?;
        }
        runtime_oci::delete(&root, &id, Deletion::Force)
            .map_err(|source| OrphanError::Delete { id: name.to_owned(), source: Box::new(source) })?;
    }
    if let Ok(entries) = fs::read_dir(dir.join("containers")) {
        for entry in entries.flatten() {
            if let Some(record) = entry.file_name().to_str().and_then(|id| record::load(dir, id).transpose()) {
                records.push(record?);
            }
        }
    }
    if !own.wait_empty(KILL_TIMEOUT)? {
        return Err(OrphanError::Unkillable);
    }
    own.remove()?;
    unpin(dir)?;
    for name in [socket::NAME, "shim.pid"] {
        remove(&dir.join(name), fs::remove_file)?;
    }
    records.sort_by(|left, right| left.id.cmp(&right.id));
    Ok(records)
}

fn lock(dir: &Path) -> Result<Flock<File>, OrphanError> {
    let path = dir.join("shim.pid");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| OrphanError::Lock { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OrphanError::Alive { dir: dir.to_owned() },
        errno => OrphanError::Lock { path, source: errno.into() },
    })
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
