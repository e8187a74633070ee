//! The CNI plugins bridge, host-local, portmap and loopback in one static binary.
//!
//! Which one is meant: the name it is called by (a symbolic link `bridge`, `host-local`, ...), else the key `plugin`
//! of the configuration, else `bridge`. One process, one request; the only state is leases on disk, links and rules.
//! ADD is undone when it fails; DEL succeeds for what is gone; both may be killed at any instruction.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use cni_spec::{Code, Command, Environment, PluginError, SpecVersion, VersionInfo};
use serde_json::{Value, json};

pub mod bridge;
pub mod config;
pub mod host_local;
pub mod loopback;
pub mod portmap;
mod request;

pub use request::Request;

/// A configuration beyond this is refused.
pub const INPUT_BYTES_MAX: u64 = 4 << 20;

/// What to print and how to exit.
#[derive(Debug)]
pub struct Answer {
    /// Standard output.
    pub output: String,
    /// Exit status 0 or 1.
    pub is_success: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Bridge,
    HostLocal,
    Loopback,
    Portmap,
}

impl Plugin {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "bridge" => Some(Self::Bridge),
            "host-local" => Some(Self::HostLocal),
            "loopback" => Some(Self::Loopback),
            "portmap" => Some(Self::Portmap),
            _ => None,
        }
    }
}

/// Handles one request. `get` reads the environment, `input` is what standard input held.
pub fn answer(called_as: &Path, get: impl Fn(&str) -> Option<OsString>, input: io::Result<Vec<u8>>) -> Answer {
    match handle(called_as, get, input) {
        Ok(value) => {
            let output = if value.is_null() { String::new() } else { format!("{value}\n") };
            Answer { output, is_success: true }
        }
        Err(error) => Answer { output: format!("{}\n", json!(error)), is_success: false },
    }
}

fn handle(
    called_as: &Path,
    get: impl Fn(&str) -> Option<OsString>,
    input: io::Result<Vec<u8>>,
) -> Result<Value, PluginError> {
    let environment = Environment::parse(get)?;
    let input = input.map_err(|error| PluginError::new(Code::Io, format!("read standard input: {error}")))?;
    if environment.command == Command::Version {
        return Ok(version(&input));
    }
    let request = Request::parse(environment, &input)?;
    let by_name = called_as.file_name().and_then(|name| name.to_str()).and_then(Plugin::parse);
    let plugin = match (by_name, request.text("plugin")) {
        (Some(plugin), _) => plugin,
        (None, None) => Plugin::Bridge,
        (None, Some(name)) => Plugin::parse(name).ok_or_else(|| {
            PluginError::new(
                Code::InvalidConfig,
                format!("plugin `{name}` is none of bridge, host-local, loopback, portmap"),
            )
        })?,
    };
    let outcome = match plugin {
        Plugin::Bridge => bridge::run(&request),
        Plugin::HostLocal => host_local::run(&request),
        Plugin::Loopback => loopback::run(&request),
        Plugin::Portmap => portmap::run(&request),
    };
    outcome.map_err(|error| PluginError { cni_version: request.version.to_string(), ..error })
}

/// Answers in the version that was asked for, if there was one.
fn version(input: &[u8]) -> Value {
    let asked: Option<Value> = serde_json::from_slice(input).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    json!(VersionInfo::of(asked.unwrap_or(SpecVersion::NEWEST.as_str()), &SpecVersion::ALL))
}

/// An error and its causes in one line, under the code for it.
pub(crate) fn failed(code: Code, what: &str, error: &dyn std::error::Error) -> PluginError {
    let mut message = if what.is_empty() { error.to_string() } else { format!("{what}: {error}") };
    let mut cause = error.source();
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&inner.to_string());
        cause = inner.source();
    }
    PluginError::new(code, message)
}

/// What a fuzzer calls: any bytes as the input of every plugin, up to where it would touch the machine; what was wrong.
#[doc(hidden)]
pub fn plan_any(input: &[u8]) -> Vec<PluginError> {
    let get = |key: &str| match key {
        "CNI_COMMAND" => Some(OsString::from("ADD")),
        "CNI_CONTAINERID" => Some("fuzz".into()),
        "CNI_IFNAME" => Some("eth0".into()),
        "CNI_NETNS" => Some("/dev/null".into()),
        _ => None,
    };
    let request = Environment::parse(get).and_then(|environment| Request::parse(environment, input));
    match request {
        Err(error) => vec![error],
        Ok(request) => {
            let plans = [bridge::plan_any(&request), host_local::plan_any(&request), portmap::plan_any(&request)];
            plans.into_iter().filter_map(Result::err).collect()
        }
    }
}
