//! The directory below which the containers' records lie, and the host's cgroups, looked at once.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use runtime_linux::cgroup::{Cgroup, Hierarchy};

use crate::error::Error;

/// `/run/sampan-oci` for the command line, the pod's own directory for a shim.
#[derive(Clone, Debug)]
pub struct StateRoot {
    dir: PathBuf,
    hierarchy: OnceCell<Hierarchy>,
    /// What the hierarchy was found in.
    mounts: OnceCell<String>,
}

impl StateRoot {
    /// Nothing is touched until the first container is created.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), hierarchy: OnceCell::new(), mounts: OnceCell::new() }
    }

    /// With the host's cgroups as the caller knows them already.
    pub fn with_hierarchy(dir: impl Into<PathBuf>, hierarchy: Hierarchy) -> Self {
        Self { dir: dir.into(), hierarchy: OnceCell::from(hierarchy), mounts: OnceCell::new() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn hierarchy(&self) -> Result<&Hierarchy, Error> {
        if let Some(hierarchy) = self.hierarchy.get() {
            return Ok(hierarchy);
        }
        let hierarchy = Hierarchy::parse(self.mounts()?)?;
        Ok(self.hierarchy.get_or_init(|| hierarchy))
    }

    /// What the caller's mount table, proc_pid_mountinfo(5), has of cgroups, as it was first read.
    pub(crate) fn mounts(&self) -> Result<&str, Error> {
        if let Some(mounts) = self.mounts.get() {
            return Ok(mounts);
        }
        let path = PathBuf::from("/proc/self/mountinfo");
        let table = runtime_linux::proc::read_text(&path).map_err(|source| Error::Read { path, source })?;
        // A shim keeps it for its life, and a node has thousands of other mounts.
        let lines = table.lines().filter(|line| line.contains(" - cgroup"));
        Ok(self.mounts.get_or_init(|| lines.collect::<Vec<_>>().join("\n")))
    }

    /// No path is no cgroup.
    pub(crate) fn cgroup(&self, path: &str) -> Result<Cgroup, Error> {
        if path.is_empty() {
            return Ok(Cgroup::none());
        }
        Ok(Cgroup::new(self.hierarchy()?, path)?)
    }
}
