//! The `CNI_*` variables: written by a runtime, read by a plugin. One type for both sides.
//!
//! Values are checked when read, so that a plugin works only with names that are safe in paths and link names.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::{Code, PluginError};

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the specification's own names")]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    /// As in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parameters of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for STATUS, GC and VERSION.
    pub container_id: String,
    /// `CNI_NETNS`; `None` where it is optional (DEL) or meaningless.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_ARGS`, `KEY=VALUE` pairs.
    pub args: Vec<(String, String)>,
    /// What is wrong with `CNI_ARGS`, for plugins that read them: others are called with anything (`none`, by some runtimes).
    pub bad_args: Option<String>,
    /// `CNI_PATH`, directories of plugins.
    pub path: Vec<PathBuf>,
}

impl Environment {
    /// Reads the variables through `get` (the process environment, in a plugin).
    ///
    /// # Errors
    /// Code 4 names what is missing or malformed.
    pub fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, PluginError> {
        let invalid = |message: String| PluginError::new(Code::InvalidEnvironment, message);
        let text = |key: &str| -> Result<String, PluginError> {
            get(key).unwrap_or_default().into_string().map_err(|_| invalid(format!("{key} is not valid UTF-8")))
        };
        let command = match text("CNI_COMMAND")?.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            "" => return Err(invalid("CNI_COMMAND is not set; this is a CNI plugin, started by a runtime".into())),
            other => return Err(invalid(format!("CNI_COMMAND `{other}` is not a command"))),
        };
        let container_id = text("CNI_CONTAINERID")?;
        let if_name = text("CNI_IFNAME")?;
        let netns = get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        if matches!(command, Command::Add | Command::Del | Command::Check) {
            check_container_id(&container_id).map_err(invalid)?;
            check_if_name(&if_name).map_err(invalid)?;
            if netns.is_none() && command != Command::Del {
                return Err(invalid(format!("CNI_NETNS is required for {command}")));
            }
        }
        let (args, bad_args) = match text("CNI_ARGS").map_err(|error| error.msg).and_then(|text| parse_args(&text)) {
            Ok(args) => (args, None),
            Err(message) => (Vec::new(), Some(message)),
        };
        let path = get("CNI_PATH").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default();
        Ok(Self { command, container_id, netns, if_name, args, bad_args, path })
    }

    /// The value of one `CNI_ARGS` key.
    #[must_use]
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

fn parse_args(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or(format!("CNI_ARGS: `{pair}` is not KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

// CNI 1.1, section 2: alphanumeric start, then alphanumerics, `_`, `.`, `-`.
fn check_container_id(id: &str) -> Result<(), String> {
    let good = id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if good { Ok(()) } else { Err(format!("CNI_CONTAINERID `{id}` is not a valid container id")) }
}

/// The kernel's rules for link names (`dev_valid_name`).
fn check_if_name(name: &str) -> Result<(), String> {
    let good = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(|c| !c.is_whitespace() && c != '/' && c != ':');
    if good { Ok(()) } else { Err(format!("CNI_IFNAME `{name}` is not a valid link name (1 to 15 characters)")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Environment, PluginError> {
        Environment::parse(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into()))
    }

    #[test]
    fn reads_a_call() {
        let environment = parse(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc-1"),
            ("CNI_NETNS", "/run/netns/a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:01"),
            ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        ])
        .unwrap();
        assert_eq!(environment.arg("MAC"), Some("02:00:00:00:00:01"));
        assert_eq!(environment.path.len(), 2);
    }

    #[test]
    fn each_bad_variable_is_code_4() {
        let good = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        assert!(parse(&good).is_ok());
        for (key, bad) in [
            ("CNI_COMMAND", "EAT"),
            ("CNI_COMMAND", ""),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", "much-too-long-name"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
        ] {
            let changed: Vec<_> =
                good.iter().map(|(name, value)| (*name, if *name == key { bad } else { value })).collect();
            assert_eq!(parse(&changed).unwrap_err().code, Code::InvalidEnvironment, "{key}={bad}");
        }
        assert!(parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).is_ok());
        let strange = parse(&[("CNI_COMMAND", "VERSION"), ("CNI_ARGS", "none")]).unwrap();
        assert!(strange.args.is_empty() && strange.bad_args.unwrap().contains("`none`"));
    }
}
