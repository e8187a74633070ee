//! A bundle: a directory and its config.json, parsed once.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Process, Spec};
use serde::de::DeserializeOwned;

use crate::error::Error;

/// A bundle's directory (absolute) and its configuration.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    /// config.json as it was read: kept beside the state, so that what we do not know is not lost.
    pub(crate) raw: Vec<u8>,
    /// What reading it already had to say.
    pub(crate) warnings: Vec<String>,
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
        let (spec, warnings) = parse(&raw).map_err(|source| Error::Parse { path, source })?;
        Ok(Self { dir, spec, raw, warnings })
    }

    /// A bundle that never was on disk, as the shim makes it; relative paths are below `dir`, which is absolute.
    pub fn from_spec(dir: &Path, spec: Spec) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let raw = serde_json::to_vec(&spec).map_err(|source| Error::Parse { path, source })?;
        Ok(Self { dir: dir.to_owned(), spec, raw, warnings: Vec::new() })
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

    /// Binds a directory of the host, for what only the runtime knows.
    pub(crate) fn add_directory(&mut self, source: &Path, destination: &Path) {
        let mut mount = Mount::default();
        mount
            .set_destination(destination.to_owned())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(source.to_owned()))
            .set_options(Some(["bind", "nosuid", "noexec", "nodev", "rprivate"].map(str::to_owned).to_vec()));
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        self.spec.set_mounts(Some(mounts));
    }

    /// config.json as it was read.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

/// Unknown properties that are named one by one; beyond this only their number is told.
const UNKNOWN_MAX: usize = 16;

/// A configuration, with what has to be said about it. What the library spells otherwise than runtime-spec is put right; see `spelling.rs`.
pub(crate) fn parse(raw: &[u8]) -> Result<(Spec, Vec<String>), serde_json::Error> {
    let correct = |value: &mut serde_json::Value, warnings: &mut Vec<String>| {
        if let Some(process) = value.get_mut("process") {
            spelling::correct(process, warnings);
        }
    };
    let read = or_respelled::<Spec>(raw, correct)?;
    match spelling::lacks_page_size(&read.0).then(|| spelling::with_page_sizes(raw)).flatten() {
        Some(raw) => or_respelled(&raw, correct),
        None => Ok(read),
    }
}

/// A process object, as `exec --process` takes one, with warnings for people.
pub fn parse_process(raw: &[u8]) -> Result<(Process, Vec<String>), serde_json::Error> {
    or_respelled(raw, spelling::correct)
}

/// Only what is refused as it is pays for the second look.
fn or_respelled<T: DeserializeOwned>(
    raw: &[u8],
    correct: impl FnOnce(&mut serde_json::Value, &mut Vec<String>),
) -> Result<(T, Vec<String>), serde_json::Error> {
    let first = typed(raw);
    let Err(error) = first else { return first };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(raw) else { return Err(error) };
    let mut said = Vec::new();
    correct(&mut value, &mut said);
    // Through text again, so that there is one reader of configurations, not two. The first error names the line in what the user wrote.
    let second = serde_json::to_vec(&value).and_then(|text| typed(&text));
    let Ok((typed, unknown)) = second else {
        return Err(refusal::why(&value).map_or(error, serde::de::Error::custom));
    };
    said.extend(unknown);
    Ok((typed, said))
}

/// runtime-spec 1.3, "Extensibility": an unknown property is no error; here it is a warning.
fn typed<T: DeserializeOwned>(raw: &[u8]) -> Result<(T, Vec<String>), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(raw);
    let (mut warnings, mut unknown) = (Vec::new(), 0usize);
    let typed = serde_ignored::deserialize(&mut reader, |path| {
        unknown += 1;
        if unknown <= UNKNOWN_MAX {
            let path = path.to_string().replace(".?", "");
            warnings.push(format!("config.json: {path} is not a property that this runtime knows; it is not acted on"));
        }
    })?;
    reader.end()?;
    if let Some(more) = unknown.checked_sub(UNKNOWN_MAX).filter(|more| *more > 0) {
        warnings.push(format!("config.json: {more} further unknown properties are not acted on"));
    }
    Ok((typed, warnings))
}

mod refusal;
mod spelling;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_properties_are_told() {
        let raw = br#"{"ociVersion":"1.3.0","freebsd":{},"root":{"path":"x","color":"red"},"linux":{"resources":{"cpu":{"burts":1}}}}"#;
        let (_, warnings) = parse(raw).expect("parse");
        let all = warnings.join("\n");
        for name in [" freebsd ", " root.color ", " linux.resources.cpu.burts "] {
            assert!(all.contains(name), "{all}");
        }
        assert_eq!(warnings.len(), 3, "{all}");
        let many: Vec<String> = (0..100).map(|number| format!("\"x{number}\":0")).collect();
        let (_, warnings) = parse(format!("{{{}}}", many.join(",")).as_bytes()).expect("parse");
        assert_eq!(warnings.len(), UNKNOWN_MAX + 1);
        assert!(warnings[UNKNOWN_MAX].contains("84 further"));
        assert!(parse(br#"{"root":{"path":"x"}} trailing"#).is_err());
    }
}
