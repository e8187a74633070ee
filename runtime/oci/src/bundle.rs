//! A bundle: a directory and its config.json, parsed once.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::Error;

/// A bundle's directory (absolute) and its configuration.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    /// config.json as it was read: kept beside the state, so that what we do not know is not lost.
    pub(crate) raw: Vec<u8>,
}

impl Bundle {
    /// Reads `dir/config.json`.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let read = |path: PathBuf| move |source| Error::Read { path, source };
        let dir = std::fs::canonicalize(dir).map_err(read(dir.to_owned()))?;
        let path = dir.join("config.json");
        let raw = std::fs::read(&path).map_err(read(path.clone()))?;
        let spec = serde_json::from_slice(&raw).map_err(|source| Error::Parse { path, source })?;
        Ok(Self { dir, spec, raw })
    }

    /// A bundle that never was on disk, as the shim makes it; relative paths are below `dir`, which is absolute.
    pub fn from_spec(dir: &Path, spec: Spec) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let raw = serde_json::to_vec(&spec).map_err(|source| Error::Parse { path, source })?;
        Ok(Self { dir: dir.to_owned(), spec, raw })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// config.json as it was read.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}
