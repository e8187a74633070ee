//! Addresses for the bridge: our own `host-local` without another process, any other IPAM plugin by its name.
//!
//! A program called `host-local` in `CNI_PATH` that is not this one is the user's choice and is called.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use cni_spec::invoke::{self, InvokeError};
use cni_spec::{AddResult, Code, Command, PluginError};
use serde_json::Value;

use crate::config::BridgeConfig;
use crate::{Request, failed, host_local};

/// A delegate may ask a DHCP server.
const DELEGATE_LIMIT: Duration = Duration::from_secs(60);

pub(super) enum Ipam<'a> {
    /// Layer 2 only.
    None,
    Own(&'a Request),
    Delegate(&'a Request, String),
}

impl<'a> Ipam<'a> {
    pub(super) fn of(request: &'a Request, config: &BridgeConfig) -> Result<Self, PluginError> {
        match config.ipam.get("type") {
            None => Ok(Self::None),
            Some(Value::String(kind)) if kind.is_empty() => Ok(Self::None),
            Some(Value::String(kind)) if kind.contains('/') || kind == ".." => Err(PluginError::new(
                Code::InvalidConfig,
                format!("ipam type `{kind}` is not the file name of a plugin"),
            )),
            Some(Value::String(kind)) if is_ours(kind, request) => Ok(Self::Own(request)),
            Some(Value::String(kind)) => Ok(Self::Delegate(request, kind.clone())),
            Some(_) => Err(PluginError::new(Code::InvalidConfig, "ipam `type` is not a text")),
        }
    }

    pub(super) fn add(&self) -> Result<AddResult, PluginError> {
        match self {
            Self::None => Ok(AddResult::default()),
            Self::Own(request) => host_local::add(request),
            Self::Delegate(request, kind) => delegate(request, kind, Command::Add).map(Option::unwrap_or_default),
        }
    }

    pub(super) fn del(&self) -> Result<(), PluginError> {
        self.call(Command::Del, host_local::del)
    }

    pub(super) fn check(&self) -> Result<(), PluginError> {
        self.call(Command::Check, host_local::check)
    }

    pub(super) fn status(&self) -> Result<(), PluginError> {
        self.call(Command::Status, host_local::status)
    }

    pub(super) fn gc(&self) -> Result<(), PluginError> {
        self.call(Command::Gc, host_local::gc)
    }

    fn call(&self, command: Command, own: fn(&Request) -> Result<(), PluginError>) -> Result<(), PluginError> {
        match self {
            Self::None => Ok(()),
            Self::Own(request) => own(request),
            Self::Delegate(request, kind) => delegate(request, kind, command).map(drop),
        }
    }
}

fn delegate(request: &Request, kind: &str, command: Command) -> Result<Option<AddResult>, PluginError> {
    // CNI 1.1, section 4: the delegate gets the same environment and the whole configuration.
    let path = &request.environment.path;
    invoke::delegate(kind, command, &request.original, path, DELEGATE_LIMIT).map_err(|error| match error {
        InvokeError::Plugin { source, .. } => source,
        other => failed(Code::Internal, "ipam", &other),
    })
}

fn is_ours(kind: &str, request: &Request) -> bool {
    if kind == "sampan-cni" {
        return true;
    }
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let installed = request.environment.path.iter().map(|directory| directory.join(kind)).find(|path| path.is_file());
    kind == "host-local" && installed.is_none_or(|path| identity(&path) == identity(Path::new("/proc/self/exe")))
}
