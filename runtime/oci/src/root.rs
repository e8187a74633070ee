//! The directory below which the containers' records lie.

use std::path::{Path, PathBuf};

/// `/run/sampan-oci` for the command line, the pod's own directory for a shim.
#[derive(Clone, Debug)]
pub struct StateRoot {
    dir: PathBuf,
}

impl StateRoot {
    /// Nothing is touched until the first container is created.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
