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
        Self::load_named(dir, Path::new("config.json"))
    }

    /// Reads a configuration by another name; relative to `dir`.
    pub fn load_named(dir: &Path, name: &Path) -> Result<Self, Error> {
        let read = |path: PathBuf| move |source| Error::Read { path, source };
        let dir = std::fs::canonicalize(dir).map_err(read(dir.to_owned()))?;
        let path = dir.join(name);
        let raw = std::fs::read(&path).map_err(read(path.clone()))?;
        let spec = parse(&raw).map_err(|source| Error::Parse { path, source })?;
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

    /// Where its root file system is.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(self.spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path()))
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Adds variables to the process's environment, for what only the caller knows.
    pub fn add_environment(&mut self, variables: &[String]) {
        if let Some(process) = self.spec.process_mut() {
            let mut environment = process.env().clone().unwrap_or_default();
            environment.extend(variables.iter().cloned());
            process.set_env(Some(environment));
        }
    }

    /// config.json as it was read.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

/// A configuration; capabilities that this version does not know are left out, as runc leaves them out.
pub(crate) fn parse(raw: &[u8]) -> Result<Spec, serde_json::Error> {
    let first = serde_json::from_slice(raw);
    let Err(error) = first else { return first };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(raw) else { return Err(error) };
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(serde_json::Value::as_object_mut) {
        for names in sets.values_mut().filter_map(serde_json::Value::as_array_mut) {
            names.retain(|name| name.as_str().is_some_and(|name| runtime_linux::capability::number(name).is_some()));
        }
    }
    // The first error names the line in what the user wrote.
    serde_json::from_value(value).map_err(|_| error)
}
