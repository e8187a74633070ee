//! StopContainer: its stop signal, the time it was promised, then SIGKILL to all of it. Idempotent.
//!
//! The time is waited for without a thread, and whoever asked may go away: a stop that has begun ends.

use std::sync::Arc;
use std::time::Duration;

use runtime_cri_api::v1::{ContainerState, StopContainerRequest, StopContainerResponse};
use runtime_shim::Target;

use crate::facts;
use crate::kill::{self, ignore_ended};
use crate::node::{Container, Node};
use crate::shim::ASK_WITHIN;
use crate::status::{Error, chain};

pub(crate) async fn run(node: Arc<Node>, request: StopContainerRequest) -> Result<StopContainerResponse, Error> {
    let container = match node.container(&request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(StopContainerResponse {}),
        other => other?,
    };
    let patience = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    // The work lock is not held while the container is given its time: a second stop with less patience must get through.
    tokio::spawn(stop(node, container, patience)).await.unwrap_or(Err(Error::Panicked))?;
    Ok(StopContainerResponse {})
}

async fn stop(node: Arc<Node>, container: Arc<Container>, patience: Duration) -> Result<(), Error> {
    if container.read(facts::container_state) != ContainerState::ContainerRunning {
        return Ok(());
    }
    if !patience.is_zero() {
        let asked = Arc::clone(&container);
        let told = node.pool.run(move || tell_to_stop(&asked)).await;
        if let Err(error) = &told {
            tracing::warn!(container = %container.id, error = %chain(error), "not told to stop: it is killed");
        }
        if told.is_ok() && container.ended_within(patience).await {
            return Ok(());
        }
    }
    let killing = Arc::clone(&node);
    node.pool.run(move || kill::kill(&killing, &container)).await
}

fn tell_to_stop(container: &Container) -> Result<(), Error> {
    let signal = container.read(|record| record.stop_signal);
    let mut client = container.sandbox.shim_within(ASK_WITHIN)?;
    ignore_ended(client.signal(Target::container(&container.id), signal))
}
