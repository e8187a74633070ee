//! Containers: one file per RPC. What is not async blocks; the service runs it in the pool.

pub(crate) mod create;
pub(crate) mod exec_sync;
pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod reopen_log;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod update_resources;
pub(crate) mod volumes;

use std::path::PathBuf;

use runtime_cri_api::v1::ContainerState;

use crate::config::Config;
use crate::facts;
use crate::node::Container;
use crate::record::SandboxRecord;
use crate::status::Error;

/// Where a container's `config.json` lies.
pub(crate) fn bundle(container: &Container) -> PathBuf {
    container.sandbox.dir.join("bundles").join(&container.id)
}

/// The pod's cgroup below our own root, where the kubelet named no parent.
pub(crate) fn own_cgroup(config: &Config, record: &SandboxRecord) -> Option<String> {
    let named = record.config.linux.as_ref().is_some_and(|linux| !linux.cgroup_parent.is_empty());
    (!named).then(|| format!("{}/pods/{}", config.cgroup_root, record.id))
}

/// Refuses what only makes sense in a running container.
pub(crate) fn must_run(container: &Container, operation: &'static str) -> Result<(), Error> {
    match container.read(facts::container_state) {
        ContainerState::ContainerRunning => Ok(()),
        state => Err(Error::WrongState { kind: "container", id: container.id.clone(), state: word(state), operation }),
    }
}

pub(crate) fn word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}
