//! Calls a network's plugins in order, as libcni does; the runtime's side of the protocol.
//!
//! Blocks; an async caller uses a blocking thread. Nothing is cached on disk: the caller keeps [`AddResult`] (in its own
//! checkpoint) and hands it to [`check`] and [`del`]. After a failed [`add`] the caller calls [`del`].

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{AddResult, Cidr, Command, ConfigList, PluginConfig, PluginError, SpecVersion, VersionInfo};

mod process;

/// How a call failed. `plugin` is the plugin's type.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// In none of the directories.
    #[error("CNI plugin `{plugin}` is not in {directories:?}; install it there or correct the list of directories")]
    NotFound { plugin: String, directories: Vec<PathBuf> },
    /// Could not be started, or its pipes broke.
    #[error("run CNI plugin {path}")]
    Run { path: PathBuf, source: std::io::Error },
    /// Did not end in time; it and its process group were killed.
    #[error("CNI plugin `{plugin}` did not finish {command} within {timeout:?} and was killed")]
    Timeout { plugin: String, command: Command, timeout: Duration },
    /// Answered with an error object.
    #[error("CNI plugin `{plugin}` failed {command}")]
    Plugin { plugin: String, command: Command, source: PluginError },
    /// Failed without an error object; `output` is the end of what it printed.
    #[error("CNI plugin `{plugin}` ended with {status} on {command} without an error object: {output}")]
    Crashed { plugin: String, command: Command, status: String, output: String },
    /// Standard output is not a result.
    #[error("CNI plugin `{plugin}` answered {command} with something that is not JSON")]
    Output { plugin: String, command: Command, source: serde_json::Error },
    /// The result has a wrong shape.
    #[error("CNI plugin `{plugin}`: result")]
    Result { plugin: String, source: crate::result::ResultError },
}

/// One attachment of one container, and how to reach the plugins.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Unique id of the container (sandbox).
    pub container_id: String,
    /// Path of its network namespace; `None` when it is gone (DEL only).
    pub netns: Option<PathBuf>,
    /// Link name inside, usually `eth0`.
    pub if_name: String,
    /// `CNI_ARGS`, such as `K8S_POD_NAME`.
    pub args: Vec<(String, String)>,
    /// `runtimeConfig` by capability (`portMappings`, `mac`, `ips`, ...); each plugin gets those it declares.
    pub capabilities: Map<String, Value>,
    /// Where plugins are, in order of preference.
    pub bin_dirs: Vec<PathBuf>,
    /// Limit for one plugin's one call.
    pub timeout: Duration,
}

/// A container's interface that is still in use, for GC.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// As in `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// As in `CNI_IFNAME`.
    #[serde(rename = "ifname")]
    pub if_name: String,
}

/// Attaches the container: every plugin in order, each seeing the result so far.
///
/// # Errors
/// The first plugin that fails ends the chain; the caller should then call [`del`].
pub fn add(list: &ConfigList, runtime: &Runtime) -> Result<AddResult, InvokeError> {
    let mut result: Option<AddResult> = None;
    for plugin in &list.plugins {
        let input = input(list, plugin, Some(runtime), previous(list, plugin, result.as_ref())?);
        let output =
            process::run(Command::Add, plugin.kind(), &input, Some(runtime), &runtime.bin_dirs, runtime.timeout)?;
        let value = parse_json(plugin.kind(), Command::Add, &output)?;
        let parsed = AddResult::parse(&value, list.version)
            .map_err(|source| InvokeError::Result { plugin: plugin.kind().to_owned(), source })?;
        result = Some(parsed);
    }
    Ok(result.unwrap_or_default())
}

/// Detaches the container: every plugin in reverse order. Succeeds for what is gone.
///
/// # Errors
/// The first plugin that fails ends the chain; calling again later is always right.
pub fn del(list: &ConfigList, runtime: &Runtime, result: Option<&AddResult>) -> Result<(), InvokeError> {
    // CNI 0.4.0 brought prevResult to DEL; older plugins may not know the key there.
    let result = result.filter(|_| list.version >= SpecVersion::V0_4_0);
    for plugin in list.plugins.iter().rev() {
        let input = input(list, plugin, Some(runtime), previous(list, plugin, result)?);
        process::run(Command::Del, plugin.kind(), &input, Some(runtime), &runtime.bin_dirs, runtime.timeout)?;
    }
    Ok(())
}

/// Asks every plugin whether the attachment is as ADD left it. Does nothing before 0.4.0 or with `disableCheck`.
///
/// # Errors
/// The first plugin that finds something wrong.
pub fn check(list: &ConfigList, runtime: &Runtime, result: &AddResult) -> Result<(), InvokeError> {
    if list.disable_check || list.version < SpecVersion::V0_4_0 {
        return Ok(());
    }
    for plugin in &list.plugins {
        let input = input(list, plugin, Some(runtime), previous(list, plugin, Some(result))?);
        process::run(Command::Check, plugin.kind(), &input, Some(runtime), &runtime.bin_dirs, runtime.timeout)?;
    }
    Ok(())
}

/// Asks every plugin whether ADD would work. Before 1.1.0 it only looks whether the plugins exist.
///
/// # Errors
/// The first plugin that is not ready (codes 50 and 51), or absent.
pub fn status(list: &ConfigList, bin_dirs: &[PathBuf], timeout: Duration) -> Result<(), InvokeError> {
    for plugin in &list.plugins {
        if list.version < SpecVersion::V1_1_0 {
            process::find(plugin.kind(), bin_dirs)?;
            continue;
        }
        let input = input(list, plugin, None, None);
        process::run(Command::Status, plugin.kind(), &input, None, bin_dirs, timeout)?;
    }
    Ok(())
}

/// Lets every plugin free what belongs to no attachment of `valid`. Does nothing before 1.1.0 or with `disableGC`.
///
/// # Errors
/// All plugins are called; the first failure is returned.
pub fn gc(list: &ConfigList, valid: &[Attachment], bin_dirs: &[PathBuf], timeout: Duration) -> Result<(), InvokeError> {
    if list.disable_gc || list.version < SpecVersion::V1_1_0 {
        return Ok(());
    }
    let mut outcome = Ok(());
    for plugin in &list.plugins {
        let mut input = input(list, plugin, None, None);
        input.insert("cni.dev/valid-attachments".into(), json!(valid));
        let ended = process::run(Command::Gc, plugin.kind(), &input, None, bin_dirs, timeout);
        outcome = outcome.and(ended.map(drop));
    }
    outcome
}

/// Asks one plugin which versions it speaks.
///
/// # Errors
/// See [`InvokeError`].
pub fn version(plugin: &str, bin_dirs: &[PathBuf], timeout: Duration) -> Result<VersionInfo, InvokeError> {
    let mut input = Map::new();
    input.insert("cniVersion".into(), json!(SpecVersion::NEWEST));
    let output = process::run(Command::Version, plugin, &input, None, bin_dirs, timeout)?;
    serde_json::from_slice(&output).map_err(|source| InvokeError::Output {
        plugin: plugin.to_owned(),
        command: Command::Version,
        source,
    })
}

/// Calls an IPAM plugin with a main plugin's own configuration and environment, which the child inherits unchanged
/// (CNI 1.1, section 4, "delegated plugins"). `None` for commands without a result.
///
/// # Errors
/// See [`InvokeError`].
pub fn delegate(
    plugin: &str,
    command: Command,
    config: &Map<String, Value>,
    bin_dirs: &[PathBuf],
    timeout: Duration,
) -> Result<Option<AddResult>, InvokeError> {
    let output = process::run(command, plugin, config, None, bin_dirs, timeout)?;
    if command != Command::Add {
        return Ok(None);
    }
    let value = parse_json(plugin, command, &output)?;
    let assumed = config.get("cniVersion").and_then(Value::as_str).and_then(|v| v.parse().ok());
    AddResult::parse(&value, assumed.unwrap_or(SpecVersion::V0_1_0))
        .map(Some)
        .map_err(|source| InvokeError::Result { plugin: plugin.to_owned(), source })
}

/// The addresses of a result, the first of each family first: what a runtime reports as the pod's IPs.
#[must_use]
pub fn addresses(result: &AddResult) -> Vec<Cidr> {
    let mut all: Vec<Cidr> = result.ips.iter().map(|ip| ip.address).collect();
    let (mut v4, mut v6) = (false, false);
    // Stable, so that later addresses of a family keep their order behind the first ones.
    all.sort_by_key(|cidr| {
        let seen = if cidr.is_ipv4() { &mut v4 } else { &mut v6 };
        std::mem::replace(seen, true)
    });
    all
}

fn previous(
    list: &ConfigList,
    plugin: &PluginConfig,
    result: Option<&AddResult>,
) -> Result<Option<Value>, InvokeError> {
    result
        .map(|result| result.to_json(list.version))
        .transpose()
        .map_err(|source| InvokeError::Result { plugin: plugin.kind().to_owned(), source })
}

/// What a plugin reads: its own keys, the network's name and version, its share of the runtime's, the result so far.
fn input(
    list: &ConfigList,
    plugin: &PluginConfig,
    runtime: Option<&Runtime>,
    previous: Option<Value>,
) -> Map<String, Value> {
    let mut object = plugin.object().clone();
    object.insert("name".into(), json!(list.name));
    object.insert("cniVersion".into(), json!(list.version));
    object.remove("cniVersions");
    if let Some(runtime) = runtime {
        let share: Map<String, Value> = runtime
            .capabilities
            .iter()
            .filter(|(name, _)| plugin.has_capability(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !share.is_empty() {
            object.insert("runtimeConfig".into(), Value::Object(share));
        }
    }
    if let Some(previous) = previous {
        object.insert("prevResult".into(), previous);
    }
    object
}

fn parse_json(plugin: &str, command: Command, output: &[u8]) -> Result<Value, InvokeError> {
    serde_json::from_slice(output).map_err(|source| InvokeError::Output { plugin: plugin.to_owned(), command, source })
}

#[cfg(test)]
mod tests;
