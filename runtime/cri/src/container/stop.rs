//! StopContainer: its stop signal, the time it was promised, then SIGKILL to all of it. Idempotent.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime_cri_api::v1::{ContainerState, StopContainerRequest, StopContainerResponse};
use runtime_shim::{ClientError, FailureCode, Target};

use crate::adopt;
use crate::facts;
use crate::node::{Container, Node};
use crate::status::Error;

/// How long a killed container may take to be seen ended.
const KILLED_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn run(node: &Arc<Node>, request: &StopContainerRequest) -> Result<StopContainerResponse, Error> {
    let container = match node.container(&request.container_id) {
        Err(Error::NotFound { .. }) => return Ok(StopContainerResponse {}),
        other => other?,
    };
    if container.read(facts::container_state) != ContainerState::ContainerRunning {
        return Ok(StopContainerResponse {});
    }
    // The lock is not held while the container is given its time: a second stop with less patience must get through.
    let patience = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    if !patience.is_zero() {
        let signal = container.read(|record| record.stop_signal);
        match container.sandbox.shim() {
            Ok(mut client) => ignore_ended(client.signal(Target::container(&container.id), signal))?,
            Err(Error::Shim(error)) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
        if container.wait_exit(patience) {
            return Ok(StopContainerResponse {});
        }
    }
    kill(node, &container, KILLED_WITHIN)?;
    Ok(StopContainerResponse {})
}

/// Kills every process of a container, and waits until its end is a fact.
pub(crate) fn kill(node: &Arc<Node>, container: &Arc<Container>, limit: Duration) -> Result<(), Error> {
    if container.read(facts::container_state) != ContainerState::ContainerRunning {
        return Ok(());
    }
    match container.sandbox.shim() {
        Ok(mut client) => ignore_ended(client.signal_all(&container.id, Signal::SIGKILL as i32))?,
        Err(Error::Shim(error)) if error.is_gone() => adopt::bury(node, container)?,
        Err(error) => return Err(error),
    }
    if container.wait_exit(limit) {
        return Ok(());
    }
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    Err(Error::Timeout { what: "killing the container (a process may be stuck in the kernel)", seconds })
}

fn ignore_ended(outcome: Result<(), ClientError>) -> Result<(), Error> {
    match outcome {
        Err(ClientError::Failure(failure))
            if matches!(failure.code, FailureCode::WrongState | FailureCode::NotFound) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}
