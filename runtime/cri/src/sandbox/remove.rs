//! RemovePodSandbox: stopped first if need be, then its containers, its directory and last its record. Idempotent.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use runtime_cri_api::v1::{ContainerEventType, RemovePodSandboxRequest, RemovePodSandboxResponse};

use crate::container;
use crate::node::{Node, Sandbox};
use crate::status::Error;

pub(crate) fn run(node: &Arc<Node>, request: &RemovePodSandboxRequest) -> Result<RemovePodSandboxResponse, Error> {
    let sandbox = match node.sandbox(&request.pod_sandbox_id) {
        Err(Error::NotFound { .. }) => return Ok(RemovePodSandboxResponse {}),
        other => other?,
    };
    super::stop::stop(node, &sandbox)?;
    let work = sandbox.work();
    erase(node, &sandbox)?;
    drop(work);
    node.tell(&sandbox, &sandbox.id, ContainerEventType::ContainerDeletedEvent);
    Ok(RemovePodSandboxResponse {})
}

/// Removes every trace of a sandbox that has been taken down.
pub(crate) fn erase(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    for container in node.containers_of(&sandbox.id) {
        container::remove::remove(node, &container)?;
    }
    match fs::remove_dir_all(&sandbox.dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &sandbox.dir)(error)),
        _ => {}
    }
    // The pod's own cgroup, where the kubelet named none.
    let own = sandbox.read(|record, _| container::own_cgroup(&node.config, record));
    if let Some(path) = own {
        super::stop::kill_cgroup(&path)?;
    }
    node.forget_sandbox(&sandbox.id)
}
