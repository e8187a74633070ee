//! Network configuration: a list of plugin configurations under one name, and where it is found on disk.
//!
//! A plugin's own keys are kept untouched ([`PluginConfig`] is its JSON object with typed access to the protocol's keys).
//! A [`ConfigList`] that exists has a valid name, a version we speak and at least one plugin.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::SpecVersion;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The directory of configurations.
    #[error("list network configurations in {path}")]
    ListDirectory { path: PathBuf, source: io::Error },
    /// One file.
    #[error("read network configuration {path}")]
    ReadFile { path: PathBuf, source: io::Error },
    /// No file with a known ending.
    #[error(
        "no network configuration (*.conflist, *.conf, *.json) in {path}; write one, or wait for the network add-on"
    )]
    Nothing { path: PathBuf },
    /// Not JSON.
    #[error("the network configuration is not JSON")]
    Json(#[from] serde_json::Error),
    /// A key is absent or of the wrong type.
    #[error("network configuration: `{key}` must be {expected}")]
    Key { key: String, expected: &'static str },
    /// The name would not be safe in a path.
    #[error("network name `{0}` must start with a letter or digit and hold only letters, digits, `_`, `.` and `-`")]
    Name(String),
    /// No plugins.
    #[error("network `{0}` has an empty list of plugins")]
    NoPlugins(String),
    /// None of the versions is known.
    #[error("network `{name}`: none of the versions {versions:?} is one of 0.1.0 to 1.1.0")]
    Version { name: String, versions: Vec<String> },
}

/// One plugin's object.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    object: Map<String, Value>,
}

impl PluginConfig {
    /// Takes the object as it is; `type` must be a plain file name.
    ///
    /// # Errors
    /// Not an object, or no usable `type`.
    pub fn new(value: Value) -> Result<Self, ConfigError> {
        let Value::Object(object) = value else {
            return Err(ConfigError::Key { key: "plugins".into(), expected: "a list of objects" });
        };
        match object.get("type") {
            Some(Value::String(kind)) if !kind.is_empty() && !kind.contains('/') && kind != ".." => Ok(Self { object }),
            _ => Err(ConfigError::Key { key: "type".into(), expected: "the file name of a plugin" }),
        }
    }

    /// The plugin's file name.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.object.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether the plugin asks for this `runtimeConfig` key.
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        self.object.get("capabilities").and_then(|all| all.get(name)).and_then(Value::as_bool).unwrap_or(false)
    }

    /// All keys as written.
    #[must_use]
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }
}

/// A network: a name and the chain of plugins that make it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigList {
    /// The version to speak with the plugins: the newest known one of `cniVersion` and `cniVersions`.
    pub version: SpecVersion,
    /// Unique on the host.
    pub name: String,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<PluginConfig>,
}

impl ConfigList {
    /// Reads a configuration list (`.conflist`), or a single plugin's configuration, which becomes a list of one.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let Value::Object(mut object) = serde_json::from_slice(text)? else {
            return Err(ConfigError::Key { key: "(top level)".into(), expected: "an object" });
        };
        let name = text_of(&object, "name")?;
        check_name(&name)?;
        let version = version_of(&object, &name)?;
        let disable_check = flag_of(&object, "disableCheck")?;
        let disable_gc = flag_of(&object, "disableGC")?;
        let plugins = match object.remove("plugins") {
            None if object.contains_key("type") => vec![PluginConfig::new(Value::Object(object))?],
            Some(Value::Array(plugins)) => plugins.into_iter().map(PluginConfig::new).collect::<Result<_, _>>()?,
            _ => return Err(ConfigError::Key { key: "plugins".into(), expected: "a list of objects" }),
        };
        if plugins.is_empty() {
            return Err(ConfigError::NoPlugins(name));
        }
        Ok(Self { version, name, disable_check, disable_gc, plugins })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read(path).map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// The first valid configuration of a directory in the order of file names, as runtimes choose their default
    /// network. When every file is bad, the first one's error is returned.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_default(directory: &Path) -> Result<Self, ConfigError> {
        let mut first_error = None;
        for path in files(directory)? {
            match Self::load(&path) {
                Ok(list) => return Ok(list),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| ConfigError::Nothing { path: directory.to_owned() }))
    }
}

/// Configuration files of a directory, sorted by name.
///
/// # Errors
/// The directory cannot be read; one that does not exist is empty.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::ListDirectory { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ["conflist", "conf", "json"].iter().any(|known| ending == *known)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good { Ok(()) } else { Err(ConfigError::Name(name.to_owned())) }
}

// CNI 1.1, section 1: `cniVersions` lists further versions; the runtime takes the highest it supports.
fn version_of(object: &Map<String, Value>, name: &str) -> Result<SpecVersion, ConfigError> {
    let mut versions = Vec::new();
    match object.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => versions.extend(list.iter().map(|v| v.as_str().unwrap_or_default().to_owned())),
        Some(_) => return Err(ConfigError::Key { key: "cniVersions".into(), expected: "a list of versions" }),
    }
    match object.get("cniVersion") {
        None if !versions.is_empty() => {}
        None => versions.push(String::new()),
        Some(Value::String(version)) => versions.push(version.clone()),
        Some(_) => return Err(ConfigError::Key { key: "cniVersion".into(), expected: "a text such as \"1.1.0\"" }),
    }
    versions
        .iter()
        .filter_map(|version| version.parse().ok())
        .max()
        .ok_or_else(|| ConfigError::Version { name: name.to_owned(), versions })
}

fn text_of(object: &Map<String, Value>, key: &str) -> Result<String, ConfigError> {
    object
        .get(key)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| ConfigError::Key { key: key.into(), expected: "a text" })
}

// libcni accepts the text "true" as well as the boolean.
fn flag_of(object: &Map<String, Value>, key: &str) -> Result<bool, ConfigError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(_) => Err(ConfigError::Key { key: key.into(), expected: "true or false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<(SpecVersion, usize), &str>) {
        match (ConfigList::parse(text.as_bytes()), expect) {
            (Ok(list), Ok(expected)) => assert_eq!((list.version, list.plugins.len()), expected, "{text}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{text}: {error}"),
            (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn parses_lists_and_single_plugins() {
        check(
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"b","x":1}]}"#,
            Ok((SpecVersion::V1_0_0, 2)),
        );
        check(r#"{"name":"n","type":"bridge","cniVersion":"0.3.1"}"#, Ok((SpecVersion::V0_3_1, 1)));
        check(
            r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","7.0.0"],"plugins":[{"type":"a"}]}"#,
            Ok((SpecVersion::V1_1_0, 1)),
        );
        check("[]", Err("object"));
        check("{", Err("not JSON"));
        check(r#"{"name":"../x","plugins":[]}"#, Err("network name"));
        check(r#"{"name":"n","plugins":[]}"#, Err("empty list"));
        check(r#"{"name":"n","plugins":[{"type":"../../bin/sh"}]}"#, Err("`type`"));
        check(r#"{"name":"n","cniVersion":"3.0.0","plugins":[{"type":"a"}]}"#, Err("3.0.0"));
        check(r#"{"name":"n","disableCheck":3,"plugins":[{"type":"a"}]}"#, Err("disableCheck"));
    }

    #[test]
    fn the_first_valid_file_by_name_is_the_default() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(ConfigList::load_default(directory.path()), Err(ConfigError::Nothing { .. })));
        fs::write(directory.path().join("05.conflist"), "broken").unwrap();
        assert!(matches!(ConfigList::load_default(directory.path()), Err(ConfigError::Json(_))));
        fs::write(directory.path().join("20.conf"), r#"{"name":"late","type":"a"}"#).unwrap();
        fs::write(directory.path().join("10.conflist"), r#"{"name":"early","plugins":[{"type":"a"}]}"#).unwrap();
        fs::write(directory.path().join("01.txt"), r#"{"name":"no","type":"a"}"#).unwrap();
        assert_eq!(ConfigList::load_default(directory.path()).unwrap().name, "early");
    }
}
