//! StartContainer. A container that cannot be made or executed ends at once, with containerd's code and reason: 128, `StartError`.

use std::sync::Arc;

use runtime_cri_api::v1::{ContainerEventType, ContainerState, StartContainerRequest, StartContainerResponse};

use crate::facts;
use crate::node::{Node, now_ns};
use crate::record::ExitFacts;
use crate::status::{Error, chain};

/// What kubelets show for a container that could not be started.
const START_FAILED: i32 = 128;

pub(crate) fn run(node: &Arc<Node>, request: &StartContainerRequest) -> Result<StartContainerResponse, Error> {
    let container = node.container(&request.container_id)?;
    let work = container.work();
    match container.read(facts::container_state) {
        ContainerState::ContainerCreated => {}
        state => {
            let (kind, id) = ("container", container.id.clone());
            return Err(Error::WrongState { kind, id, state: super::word(state), operation: "start" });
        }
    }
    // Recorded first: a crash after the start then finds a container that may run, and asks the shim.
    let started_at_ns = now_ns();
    node.change_container(&container, |record| record.started_at_ns = Some(started_at_ns));
    let started = match container.read(|record| record.refused.clone()) {
        Some(words) => Err(Error::Refused { words }),
        None => container.sandbox.shim().and_then(|mut client| Ok(client.start(&container.id)?)),
    };
    if let Err(error) = started {
        let exit = ExitFacts {
            finished_at_ns: now_ns(),
            code: START_FAILED,
            oom_killed: false,
            lost: false,
            message: chain(&error),
        };
        node.change_container(&container, |record| {
            // It never ran, as containerd says it: the time of its start is none.
            record.started_at_ns = None;
            record.exit.get_or_insert(exit);
        });
        drop(work);
        node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerStoppedEvent);
        return Err(error);
    }
    drop(work);
    node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerStartedEvent);
    Ok(StartContainerResponse {})
}
