//! What is known of a container between two calls: `state.json` and `config.json` in its directory, and the socket it waits at.
//!
//! The directory is taken by `mkdir`, so of two creators one wins, and is locked (flock) while it is made or removed. Writes are atomic.
//! Invariant: the record says where the cgroup is before the cgroup is made, and who the process is before the process is let go on, so
//! whoever finds the directory can clean up, whenever its maker was killed.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::{Hook, Hooks};
use runtime_linux::{rooted, tree};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::resctrl::Membership;
use crate::status::{State, Status};
use crate::systemd::Unit;
use crate::{Bundle, ContainerId, StateRoot};

/// The version of the record. A reader takes its own and older ones.
const VERSION: u32 = 1;
/// A longer record is no record of ours; config.json, whose hooks and annotations it repeats, is shorter too.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// The facts of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub version: u32,
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// 0 until there is one.
    pub pid: i32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat: tells the process from a later one of the same pid.
    pub pid_started: u64,
    /// Empty for a container that has none of its own.
    pub cgroup: String,
    /// systemd's unit, where systemd made the cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// File names below /proc/PID/ns of what an exec joins.
    pub namespaces: Vec<String>,
    /// Its PID namespace is somebody else's: with its init nobody else ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_pids: bool,
    /// The configuration has no process: it cannot be started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_program: bool,
    /// The root is not the mount namespace's own.
    #[serde(default)]
    pub chroot: bool,
    /// Below `rootfs`, what is mounted there on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_mounts: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Membership>,
    /// Hooks of the time after `create`, so that nobody has to read the whole configuration again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// A container's directory.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    id: String,
}

/// Held while a container is made or removed.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its Drop, which unlocks")] Flock<File>);

impl Place {
    pub(crate) fn new(root: &StateRoot, id: &ContainerId) -> Self {
        Self { dir: root.dir().join(id.as_str()), id: id.as_str().to_owned() }
    }

    /// A file of the container's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("start.sock")
    }

    /// Takes the id: makes the directory and locks it.
    pub(crate) fn take(&self) -> Result<Lock, Error> {
        let write = |source| Error::Write { path: self.dir.clone(), source };
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        match builder.create(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = self.dir.parent().unwrap_or(Path::new("/"));
                DirBuilder::new().mode(0o700).recursive(true).create(parent).map_err(write)?;
                builder.create(&self.dir)
            }
            other => other,
        }
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::Exists { id: self.id.clone() },
            _ => write(error),
        })?;
        self.lock()
    }

    /// Locks an existing directory; `Busy` where somebody else holds it.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        let dir = File::open(&self.dir).map_err(|error| self.missing_or_read(error))?;
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Busy { id: self.id.clone() }),
            Err((_, errno)) => Err(Error::Write { path: self.dir.clone(), source: errno.into() }),
        }
    }

    fn missing_or_read(&self, error: std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::NotFound { id: self.id.clone() },
            _ => Error::Read { path: self.dir.clone(), source: error },
        }
    }

    pub(crate) fn write_config(&self, raw: &[u8]) -> Result<(), Error> {
        let path = self.dir.join("config.json");
        // Not read before the record says that there is a container, so it need not be atomic.
        let write = || private_file(&path)?.write_all(raw);
        write().map_err(|source| Error::Write { path: path.clone(), source })
    }

    pub(crate) fn config(&self) -> Result<oci_spec::runtime::Spec, Error> {
        let path = self.dir.join("config.json");
        let raw = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        crate::bundle::parse(&raw).map(|(spec, _)| spec).map_err(|source| Error::Parse { path, source })
    }

    /// Replaces the record: a reader sees the old one or the new one, whole.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let (path, temporary) = (self.dir.join("state.json"), self.dir.join("state.json.new"));
        let text = serde_json::to_vec(record).map_err(|source| Error::Parse { path: path.clone(), source })?;
        let write = || {
            private_file(&temporary)?.write_all(&text)?;
            std::fs::rename(&temporary, &path)
        };
        // Not synced: the directory is in /run and its truth ends with the boot.
        write().map_err(|source| Error::Write { path: path.clone(), source })
    }

    /// `None` where the maker was killed before it wrote one.
    pub(crate) fn read(&self) -> Result<Option<Record>, Error> {
        let path = self.dir.join("state.json");
        let is_private = self.check_directories()?;
        let text = match read_trusted(&path, is_private) {
            Ok(text) => text,
            Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|source| Error::Parse { path: path.clone(), source })?;
        if record.version > VERSION {
            return Err(Error::NewerRecord { path, version: record.version });
        }
        Ok(Some(record))
    }

    /// The root and the container's directory are the caller's or root's, and nobody else may change what lies in them: a record that
    /// others wrote would name any process as the container's. Says whether others may not even look into the container's.
    fn check_directories(&self) -> Result<bool, Error> {
        let root = self.dir.parent().unwrap_or(Path::new("/"));
        for dir in [root, &self.dir] {
            let status = std::fs::symlink_metadata(dir).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::NotFound { id: self.id.clone() },
                _ => Error::Read { path: dir.to_owned(), source: error },
            })?;
            // A root may be reached by a symlink of whoever gave it; a container's directory is one.
            let status = if dir == root { std::fs::metadata(dir).unwrap_or(status) } else { status };
            if dir != root && !status.is_dir() {
                return Err(Error::NotFound { id: self.id.clone() });
            }
            let is_sticky = dir == root && status.mode() & 0o1000 != 0;
            check_owner(dir, &status)?;
            if status.mode() & 0o022 != 0 && !is_sticky {
                return Err(Error::Untrusted { path: dir.to_owned(), why: "may be written by others".to_owned() });
            }
            if dir != root {
                return Ok(status.mode() & 0o077 == 0);
            }
        }
        Ok(false)
    }

    /// The record of a container that is there.
    pub(crate) fn load(&self) -> Result<Record, Error> {
        self.read()?.ok_or_else(|| match self.lock() {
            // Nobody is making it any more.
            Ok(_) => Error::Unfinished { id: self.id.clone() },
            Err(error) => error,
        })
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        // Mostly there is nothing else. The record goes last: whoever finds the directory without it knows that there is nothing behind it.
        for name in ["config.json", "state.json"] {
            let _not_there = std::fs::remove_file(self.dir.join(name));
        }
        if std::fs::remove_dir(&self.dir).is_ok() {
            return Ok(());
        }
        // What a container may write to, like the directory of its notifications, may be of any depth.
        tree::remove(&self.dir).map_err(|error| Error::Write { path: self.dir.clone(), source: error.into_io() })
    }
}

impl Record {
    /// What the bundle alone says; there is no process yet.
    pub(crate) fn new(bundle: &Bundle, id: &ContainerId, now: std::time::SystemTime) -> Self {
        let spec = bundle.spec();
        let hooks = |pick: fn(&Hooks) -> &Option<Vec<Hook>>| {
            spec.hooks().as_ref().and_then(|hooks| pick(hooks).clone()).unwrap_or_default()
        };
        Self {
            version: VERSION,
            oci_version: spec.version().clone(),
            id: id.to_string(),
            bundle: bundle.dir().to_owned(),
            rootfs: bundle.rootfs(),
            created: timestamp(now),
            annotations: spec.annotations().clone().unwrap_or_default(),
            pid: 0,
            pid_started: 0,
            cgroup: String::new(),
            unit: None,
            namespaces: Vec::new(),
            shares_pids: false,
            lacks_program: false,
            chroot: false,
            host_mounts: Vec::new(),
            resctrl: None,
            poststart: hooks(|hooks| hooks.poststart()),
            poststop: hooks(|hooks| hooks.poststop()),
        }
    }

    /// Whether its process is there, and is that process.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid > 0 && start_time(self.pid).is_some_and(|started| started == self.pid_started)
    }

    /// The status that its facts amount to; `is_frozen` is asked only for one that runs.
    pub(crate) fn status(&self, place: &Place, is_frozen: impl FnOnce() -> bool) -> Status {
        if self.pid == 0 {
            return if matches!(place.lock(), Err(Error::Busy { .. })) { Status::Creating } else { Status::Stopped };
        }
        if !self.is_alive() {
            Status::Stopped
        } else if place.socket().exists() {
            Status::Created
        } else if is_frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    pub(crate) fn state(&self, status: Status) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: String::new(),
        }
    }
}

fn check_owner(path: &Path, status: &std::fs::Metadata) -> Result<(), Error> {
    if status.uid() == 0 || status.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::Untrusted { path: path.to_owned(), why: format!("belongs to user {}", status.uid()) })
}

/// A regular file that the caller or root wrote; its mode matters where others can reach it at all.
fn read_trusted(path: &Path, is_private: bool) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let status = file.metadata().map_err(failed)?;
    check_owner(path, &status)?;
    let untrusted = |why: &str| Err(Error::Untrusted { path: path.to_owned(), why: why.to_owned() });
    if !status.is_file() {
        return untrusted("is no regular file");
    }
    if !is_private && status.mode() & 0o022 != 0 {
        return untrusted("may be written by others");
    }
    rooted::read_bounded(&file, RECORD_BYTES_MAX).map_err(failed)
}

/// A configuration may hold secrets in its environment: it is its owner's alone, whatever the caller's umask.
fn private_file(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// When a process started; `None` for one that is gone or a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = runtime_linux::proc::read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // proc_pid_stat(5): the name in parentheses may hold anything, so count from the last one.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// RFC 3339 with nanoseconds, UTC.
pub fn timestamp(now: std::time::SystemTime) -> String {
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a civil date, by eras of 400 years that begin in March (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:09}Z", second % 60, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_civil() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_399, "2000-02-28T23:59:59.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_794_873_600, "2026-11-17T00:00:00.000000005Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, 5)), expect);
        }
    }

    #[test]
    fn a_first_version_record_is_read() {
        let text = r#"{"version":1,"oci_version":"1.0.2","id":"a","bundle":"/b","rootfs":"/b/rootfs",
            "created":"1970-01-01T00:00:00Z","pid":1,"pid_started":2,"cgroup":"/a","namespaces":["mnt","pid"]}"#;
        let record: Record = serde_json::from_str(text).expect("record");
        assert_eq!((record.pid, record.chroot, record.namespaces.len()), (1, false, 2));
    }

    #[test]
    fn only_one_takes_an_id() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = Place::new(&StateRoot::new(dir.path().join("deep/er")), &ContainerId::parse("x").expect("id"));
        let lock = place.take().expect("take");
        assert!(matches!(place.take(), Err(Error::Exists { .. })));
        assert!(matches!(place.lock(), Err(Error::Busy { .. })));
        assert!(matches!(place.load(), Err(Error::Busy { .. })));
        drop(lock);
        assert!(matches!(place.load(), Err(Error::Unfinished { .. })));
        place.remove().expect("remove");
        assert!(matches!(place.load(), Err(Error::NotFound { .. })));
    }

    /// As root only: others cannot give files away.
    #[test]
    fn what_others_own_or_may_write_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, chown};
        use std::path::PathBuf;
        let root = tempfile::tempdir().expect("tempdir");
        let dir = root.path().join("state");
        let place = Place::new(&StateRoot::new(&dir), &ContainerId::parse("x").expect("id"));
        drop(place.take().expect("take"));
        let record = r#"{"version":1,"oci_version":"1.0.2","id":"x","bundle":"/b","rootfs":"/b/rootfs",
            "created":"1970-01-01T00:00:00Z","pid":1,"pid_started":2,"cgroup":"/a","namespaces":[]}"#;
        std::fs::write(place.path("state.json"), record).expect("write");
        place.load().expect("load");
        let mode =
            |path: &PathBuf, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
        let (container, file) = (dir.join("x"), place.path("state.json"));
        let check = |path: &PathBuf, words: &str| match place.load() {
            Err(Error::Untrusted { path: told, why }) => {
                assert!(told == *path && why.contains(words), "{told:?} {why}")
            }
            other => panic!("{other:?}"),
        };
        for (path, good, bad) in [(&dir, 0o700, 0o770), (&container, 0o700, 0o707)] {
            mode(path, bad);
            check(path, "written by others");
            mode(path, good);
            place.load().expect("load");
        }
        mode(&container, 0o755);
        mode(&file, 0o666);
        check(&file, "written by others");
        mode(&file, 0o600);
        // Nobody takes away or renames what is another's in a directory like /tmp.
        mode(&dir, 0o1777);
        place.load().expect("load");
        if nix::unistd::geteuid().is_root() {
            for path in [&file, &container, &dir] {
                chown(path, Some(1000), None).expect("chown");
                check(path, "user 1000");
                chown(path, Some(0), None).expect("chown");
            }
        }
        std::fs::rename(&file, place.path("real")).expect("rename");
        std::os::unix::fs::symlink("real", &file).expect("symlink");
        assert!(matches!(place.load(), Err(Error::Read { .. })));
    }

    #[test]
    fn our_own_start_is_known() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        assert!(start_time(pid).is_some_and(|started| started > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
