//! RemovePodSandbox: stopped first if need be, then its containers, its directory and last its record. Idempotent.

use std::sync::Arc;

use runtime_cri_api::v1::{ContainerEventType, RemovePodSandboxRequest, RemovePodSandboxResponse};
use runtime_linux::tree;
use tracing::error;

use crate::container;
use crate::kill::kill_cgroup;
use crate::node::{Node, Sandbox, now_ns};
use crate::status::{Error, chain};

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
    tree::remove(&sandbox.dir).map_err(|error| Error::io("remove", &sandbox.dir)(error.into_io()))?;
    // The pod's own cgroup, where the kubelet named none.
    let own = sandbox.read(|record, _| container::own_cgroup(&node.config, record));
    if let Some(path) = own {
        kill_cgroup(node, &path)?;
    }
    node.forget_sandbox(sandbox)
}

/// Takes back what was made. Where that fails the sandbox stays listed, not ready, and can be stopped and removed by whoever sees it.
pub(crate) fn undo(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let undone = super::stop::take_down(node, sandbox).and_then(|()| erase(node, sandbox));
    if let Err(error) = &undone {
        error!(sandbox = %sandbox.id, error = %chain(error), "half-made sandbox left, listed as not ready");
        node.change_sandbox(sandbox, |record| {
            record.failed_at_ns.get_or_insert_with(now_ns);
            record.stopped_at_ns.get_or_insert_with(now_ns);
        });
    }
    undone
}
