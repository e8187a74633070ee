//! Container events: what GetContainerEvents streams, each with the pod's whole status at its instant.
//!
//! Invariant: an event is sent after its fact is on disk. A subscriber that lags is told so by the end of its stream, and
//! lists anew; nobody slow holds up the server.

use runtime_cri_api::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

use crate::facts;
use crate::node::{Node, Sandbox, now_ns};

/// Events a subscriber may lag behind.
const LAG_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<ContainerEventResponse>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(LAG_MAX) }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.sender.subscribe()
    }
}

impl Node {
    /// Tells subscribers about a container, or about a sandbox when `id` is the sandbox's own.
    pub(crate) fn tell(&self, sandbox: &Sandbox, id: &str, kind: ContainerEventType) {
        if self.events.sender.receiver_count() == 0 {
            return;
        }
        let containers_statuses = self
            .containers_of(&sandbox.id)
            .iter()
            .filter(|container| container.read(|record| record.created_at_ns.is_some()))
            .map(|container| container.read(facts::container_status))
            .collect();
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now_ns(),
            pod_sandbox_status: Some(sandbox.read(facts::sandbox_status)),
            containers_statuses,
        };
        // Nobody listening any more is no error.
        let _ = self.events.sender.send(event);
    }
}
