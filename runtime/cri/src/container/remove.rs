//! RemoveContainer: killed if it runs, then the shim's part, the snapshot, the volumes, the bundle and last the record. Idempotent.

use std::sync::Arc;

use runtime_cri_api::v1::{ContainerEventType, RemoveContainerRequest, RemoveContainerResponse};
use runtime_linux::tree;
use tracing::warn;

use crate::kill::{self, kill_cgroup};
use crate::node::{Container, Node};
use crate::shim::ASK_WITHIN;
use crate::status::{Error, chain};

pub(crate) fn run(node: &Arc<Node>, request: &RemoveContainerRequest) -> Result<RemoveContainerResponse, Error> {
    let container = match node.container(&request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(RemoveContainerResponse {}),
        other => other?,
    };
    remove(node, &container)?;
    Ok(RemoveContainerResponse {})
}

pub(crate) fn remove(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    kill::kill(node, container)?;
    let work = container.work();
    // Another removal may have been first.
    if node.container(&container.id).is_err() {
        return Ok(());
    }
    erase(node, container)?;
    drop(work);
    node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

/// Removes every trace of a container that does not run, also of one half made.
pub(crate) fn erase(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let cgroup = container.read(|record| record.cgroup.clone());
    match container.sandbox.shim_within(ASK_WITHIN).and_then(|mut client| Ok(client.delete_forced(&container.id)?)) {
        Ok(()) => {}
        // The shim is dead, or does not do it: what the container has left in the kernel is its cgroup.
        Err(error) => {
            if !container.sandbox.is_gone(&error) {
                warn!(container = %container.id, error = %chain(&error), "not deleted by the pod's shim");
            }
            kill_cgroup(node, &cgroup)?;
        }
    }
    let bundle = super::bundle(container);
    tree::remove(&bundle).map_err(|error| Error::io("remove", &bundle)(error.into_io()))?;
    super::volumes::remove(node, &container.id)?;
    node.tokio.block_on(node.images.release(&container.id))?;
    node.forget_container(container)
}
