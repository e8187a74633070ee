//! Control groups: making, limiting, filling, freezing, killing, measuring and removing them, on pure v2, hybrid and v1 hosts.
//!
//! Policy-free: it knows OCI's `linux.resources` and the kernel's files, not who gets what. Each controller is spoken to in the version
//! in which the host mounts it, so hybrid is not a third case. What to write is planned purely (`unified.rs`, `legacy.rs`) and
//! executed here.
//!
//! The crate cgroups-rs is deliberately not used: it assumes /sys/fs/cgroup (a test needs its own root), panics on missing files, has no
//! v2 devices, `memory.oom.group`, `cpu.max.burst` or `unified`, and creating, limiting and removing one cgroup through it costs 113
//! system calls where direct writes cost 27. After its gaps were filled nothing of it was left to use.
//!
//! Invariants: a limit that could not be set is an error, or an [`Ignored`] that says why, never silence; `remove` and `kill` are
//! idempotent and wait for events, not for time.

mod detail;
mod device;
mod device_filter;
mod device_list;
mod file;
mod hierarchy;
mod join;
mod legacy;
mod lifecycle;
mod oom;
mod plan;
mod stats;
mod unified;

pub use detail::{CPUSET_FLAGS, Details, IoEntry, Pressure, Pressures, Usage};
pub use device_list::{AllowedDevice, allowed_devices};
pub use hierarchy::{Hierarchy, Mode};
pub use join::SubCgroup;
pub use oom::OomWatch;
pub use plan::Ignored;
pub use stats::{CpuStats, IoDeviceStats, MemoryStats, PidsStats, Stats};
pub use unified::weight_from_shares;

use hierarchy::{Place, Version};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    #[error("read the mount table")]
    Mounts(#[source] io::Error),
    #[error("cgroup path {path:?} must be absolute, without '.', '..' or control characters")]
    Path { path: String },
    #[error("create cgroup {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error(
        "cgroup {} lies in a threaded subtree, which takes no processes; choose a path below a cgroup of type \"domain\"",
        path.display()
    )]
    Threaded { path: PathBuf },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {}", path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error(
        "{field} needs the cgroup controller {controller}, which this host does not offer at {}; enable it in the kernel \
         or delegate it to this cgroup", path.display()
    )]
    NoController { field: String, controller: String, path: PathBuf },
    #[error(
        "{field} needs the cgroup controller {controller}, which cannot be handed down while processes {pids:?} sit directly in {}; \
         move them into a child of it, or choose another parent", path.display()
    )]
    BusyParent { field: String, controller: String, path: PathBuf, pids: Vec<i32> },
    #[error("{field}: {problem}")]
    Value { field: String, problem: String },
    #[error("load the device filter into the kernel")]
    DeviceLoad(#[source] Errno),
    #[error("attach the device filter to {}", path.display())]
    DeviceAttach { path: PathBuf, source: Errno },
    #[error("{} did not freeze within {} s", path.display(), timeout.as_secs())]
    FreezeTimeout { path: PathBuf, timeout: Duration },
    #[error("signal process {pid} of {}", path.display())]
    Signal { path: PathBuf, pid: i32, source: Errno },
    #[error("wait for events of {}", path.display())]
    Wait { path: PathBuf, source: Errno },
    #[error("adding pid {pid} to cgroups {}", path.display())]
    Join { pid: i32, path: PathBuf, source: io::Error },
    #[error(
        "bad sub cgroup path \"{path}\": `..` components are not allowed, it must lie below the container's own cgroup"
    )]
    SubPath { path: String },
    #[error("unknown controller {controller:?}: this host has no cgroup v1 hierarchy of that name")]
    UnknownController { controller: String },
    #[error("remove cgroup {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("cgroup {} still has processes {pids:?} after {} s; kill them first", path.display(), timeout.as_secs())]
    Busy { path: PathBuf, pids: Vec<i32>, timeout: Duration },
}

impl Error {
    /// The kernel's errno, where there was one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Mounts(source)
            | Self::Create { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Join { source, .. }
            | Self::Remove { source, .. } => source.raw_os_error(),
            Self::DeviceLoad(errno)
            | Self::DeviceAttach { source: errno, .. }
            | Self::Signal { source: errno, .. }
            | Self::Wait { source: errno, .. } => Some(*errno as i32),
            _ => None,
        }
    }

    /// The file or directory that it was about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Create { path, .. }
            | Self::Threaded { path }
            | Self::Read { path, .. }
            | Self::Write { path, .. }
            | Self::NoController { path, .. }
            | Self::BusyParent { path, .. }
            | Self::DeviceAttach { path, .. }
            | Self::FreezeTimeout { path, .. }
            | Self::Signal { path, .. }
            | Self::Wait { path, .. }
            | Self::Join { path, .. }
            | Self::Remove { path, .. }
            | Self::Busy { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// One cgroup: the same path in every mounted hierarchy. Holds no descriptor; it may or may not exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    path: String,
}

impl Cgroup {
    /// Names a cgroup, e.g. `/sampan/pods/x`, without touching it.
    pub fn new(hierarchy: &Hierarchy, path: &str) -> Result<Self, Error> {
        let wrong = || Err(Error::Path { path: path.to_owned() });
        let Some(relative) = path.strip_prefix('/') else { return wrong() };
        let relative = relative.trim_end_matches('/');
        let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(char::is_control);
        if !relative.is_empty() && relative.split('/').any(bad) {
            return wrong();
        }
        Ok(Self { hierarchy: hierarchy.clone(), path: format!("/{relative}") })
    }

    /// No cgroup: it never exists, takes every process and holds none, and cannot be limited.
    #[must_use]
    pub fn none() -> Self {
        Self { hierarchy: Hierarchy::none(), path: "/".to_owned() }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        self.hierarchy.places().is_empty()
    }

    /// Makes the cgroup in every hierarchy, with controllers enabled along the path (v2) and CPU sets inherited (v1). One that exists
    /// already is fine.
    pub fn create(hierarchy: &Hierarchy, path: &str) -> Result<Self, Error> {
        let cgroup = Self::new(hierarchy, path)?;
        for place in hierarchy.places() {
            lifecycle::create(place, &cgroup.path)?;
        }
        Ok(cgroup)
    }

    /// Makes the cgroup where it is in no hierarchy yet. False where it is in one, or cannot be made: nothing that was made stays, and
    /// [`Self::create`] tells why.
    #[must_use]
    pub fn create_new(&self) -> bool {
        let mut made: Vec<PathBuf> = Vec::new();
        for place in self.hierarchy.places() {
            if matches!(lifecycle::create(place, &self.path), Ok(true)) {
                made.push(place.join(&self.path));
                continue;
            }
            for directory in made {
                // Who came into it meanwhile is found by who looks next.
                let _in_use = std::fs::remove_dir(directory);
            }
            return false;
        }
        true
    }

    /// Whether this process has the permissions that [`Self::create`] needs; a question of file modes, user namespaces and read-only
    /// mounts. Nothing is touched.
    #[must_use]
    pub fn may_be_made(&self) -> bool {
        self.hierarchy.places().iter().all(|place| lifecycle::may_be_made(place, &self.path))
    }

    /// The path within each hierarchy, beginning with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// A cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self, Error> {
        Self::new(&self.hierarchy, &format!("{}/{name}", self.path.trim_end_matches('/')))
    }

    /// Whether it exists in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|directory| directory.is_dir())
    }

    /// Its directory where `controller` lives, if the host offers that controller.
    #[must_use]
    pub fn directory_of(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchy.locate(controller).map(|(place, _)| place.join(&self.path))
    }

    /// Whether [`Self::apply`] would refuse: for who tells somebody else of the limits first.
    pub fn check(&self, resources: &LinuxResources) -> Result<(), Error> {
        plan::plan(&self.hierarchy, resources)?;
        plan::check_before_update(self, resources)
    }

    /// Sets what `resources` names and leaves the rest. What the host has no way to do and is safe to go without comes back by name;
    /// everything else that fails is an error, with what was written before it still in force.
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<Ignored>, Error> {
        let steps = plan::plan(&self.hierarchy, resources)?;
        plan::check_before_update(self, resources)?;
        let mut ignored = Vec::new();
        for step in &steps {
            plan::execute(self, step, &mut ignored)?;
        }
        ignored.dedup();
        Ok(ignored)
    }

    /// Whether an out-of-memory kill takes every process of the cgroup (`memory.oom.group`). v1 cannot: `false` comes back.
    pub fn set_oom_group(&self, together: bool) -> Result<bool, Error> {
        match self.hierarchy.locate("memory") {
            Some((place, Version::Unified)) => {
                file::write(&place.join(&self.path).join("memory.oom.group"), if together { "1" } else { "0" })?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`; `None` on a host without v2. On a hybrid host the child still has to be added for the
    /// v1 hierarchies.
    pub fn open_dir_fd(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(directory) = self.unified_directory() else { return Ok(None) };
        let opened = std::fs::File::open(&directory).map_err(|source| Error::Read { path: directory, source })?;
        Ok(Some(opened.into()))
    }

    /// The processes directly in this cgroup, as seen from the caller's PID namespace.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        lifecycle::pids(&self.main_directory())
    }

    /// The processes in this cgroup and below.
    pub fn pids_recursive(&self) -> Result<Vec<i32>, Error> {
        // A process may sit deeper in one hierarchy than in another; the union misses none.
        let mut all = BTreeSet::new();
        for directory in self.directories() {
            lifecycle::pids_below(&directory, &mut all)?;
        }
        Ok(all.into_iter().collect())
    }

    pub fn stats(&self) -> Result<Stats, Error> {
        stats::read(self)
    }

    /// How often the kernel killed a process here, or below, for memory.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        oom::kills(self)
    }

    /// A descriptor that becomes ready when memory runs out here.
    pub fn watch_oom(&self) -> Result<OomWatch, Error> {
        OomWatch::open(self)
    }

    fn relative(&self) -> &str {
        self.path.trim_start_matches('/')
    }

    fn unified_directory(&self) -> Option<PathBuf> {
        self.hierarchy.unified_root().map(|root| root.join(self.relative()))
    }

    /// Where its processes are listed: v2 where mounted, else the first v1 hierarchy.
    fn main_directory(&self) -> PathBuf {
        self.directories().into_iter().next().unwrap_or_else(|| Path::new("/nonexistent").to_owned())
    }

    /// Its directory in every hierarchy, v2 first.
    fn directories(&self) -> Vec<PathBuf> {
        self.hierarchy.places().iter().map(|place: &Place| place.join(&self.path)).collect()
    }
}

#[cfg(test)]
mod tests;
