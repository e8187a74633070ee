//! RemoveContainer: killed if it runs, then the shim's part, the snapshot, the bundle and last the record. Idempotent.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use runtime_cri_api::v1::{ContainerEventType, RemoveContainerRequest, RemoveContainerResponse};

use crate::node::{Container, Node};
use crate::sandbox::stop::kill_cgroup;
use crate::status::Error;

const KILLED_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn run(node: &Arc<Node>, request: &RemoveContainerRequest) -> Result<RemoveContainerResponse, Error> {
    let container = match node.container(&request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(RemoveContainerResponse {}),
        other => other?,
    };
    remove(node, &container)?;
    Ok(RemoveContainerResponse {})
}

pub(crate) fn remove(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    super::stop::kill(node, container, KILLED_WITHIN)?;
    let work = container.work();
    erase(node, container)?;
    drop(work);
    node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

/// Removes every trace of a container that does not run, also of one half made.
pub(crate) fn erase(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    match container.sandbox.shim() {
        Ok(mut client) => client.delete_forced(&container.id)?,
        Err(Error::Shim(error)) if error.is_gone() => {
            kill_cgroup(&container.read(|record| record.cgroup.clone()))?;
        }
        Err(error) => return Err(error),
    }
    let bundle = super::bundle(container);
    match fs::remove_dir_all(&bundle) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &bundle)(error)),
        _ => {}
    }
    node.tokio.block_on(node.images.release(&container.id))?;
    node.forget_container(&container.id)
}
