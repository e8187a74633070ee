//! Ending processes, whoever refuses: the shim is asked, and where it does not answer the kernel is.
//!
//!     shim answers, its exit comes                  -> the exit code is what it saw
//!     shim is stopped, hangs or says no exit        -> the container's cgroup is killed, the code is SIGKILL's
//!     shim is dead                                  -> cgroup killed, the shim's own record counts, else the end is "lost"
//!
//! Invariant: a container is told ended only when no process of it is left.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime_linux::cgroup::Cgroup;
use runtime_shim::record::{LOST_CODE, VERSION};
use runtime_shim::{ClientError, ExitRecord, FailureCode};
use tracing::warn;

use crate::adopt::record_exit;
use crate::facts::container_state;
use crate::node::{Container, Node, now_ns};
use crate::shim::ASK_WITHIN;
use crate::status::{Error, chain};
use runtime_cri_api::v1::ContainerState;

/// From the last process's end to the shim's word of it.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// The same, where the shim has missed a deadline already.
const TOLD_LATE_WITHIN: Duration = Duration::from_millis(500);

/// Kills every process of a container and waits until its end is a fact. Blocks; one that does not run is success.
pub(crate) fn kill(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    if container.read(container_state) != ContainerState::ContainerRunning {
        return Ok(());
    }
    let asked = container
        .sandbox
        .shim_within(ASK_WITHIN)
        .and_then(|mut client| ignore_ended(client.signal_all(&container.id, Signal::SIGKILL as i32)));
    let patience = match &asked {
        Ok(()) => TOLD_WITHIN,
        Err(error) if container.sandbox.is_gone(error) => return bury(node, container),
        Err(error) => {
            warn!(container = %container.id, error = %chain(error), "the pod's shim does not kill: the kernel does");
            Duration::ZERO
        }
    };
    if node.tokio.block_on(container.ended_within(patience)) {
        return Ok(());
    }
    kill_without_shim(node, container)
}

/// Kills through the cgroup alone, and says so truthfully if nobody else does.
pub(crate) fn kill_without_shim(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    empty_cgroup(node, &container.read(|record| record.cgroup.clone()))?;
    match container.read(container_state) {
        ContainerState::ContainerRunning | ContainerState::ContainerCreated => {}
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => return Ok(()),
    }
    if !node.tokio.block_on(container.ended_within(TOLD_LATE_WITHIN)) {
        let signal = Signal::SIGKILL as i32;
        let exit = ExitRecord { code: 128 + signal, signal: Some(signal), ..unseen(&container.id) };
        record_exit(node, container, &exit);
    }
    Ok(())
}

/// Ends a container whose shim is dead: its exit record if the shim wrote one, else 255 after its cgroup is killed.
pub(crate) fn bury(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    match container.read(container_state) {
        ContainerState::ContainerRunning | ContainerState::ContainerCreated => {}
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => return Ok(()),
    }
    let exit = match runtime_shim::record::load(&container.sandbox.dir, &container.id) {
        Ok(found) => found,
        Err(error) => {
            warn!(container = %container.id, error = %chain(&error), "exit code unknown");
            None
        }
    };
    kill_cgroup(node, &container.read(|record| record.cgroup.clone()))?;
    let exit = exit.unwrap_or_else(|| ExitRecord { code: LOST_CODE, lost: true, ..unseen(&container.id) });
    record_exit(node, container, &exit);
    Ok(())
}

fn unseen(id: &str) -> ExitRecord {
    ExitRecord {
        version: VERSION,
        id: id.to_owned(),
        exec_id: None,
        pid: 0,
        code: 0,
        signal: None,
        oom_killed: false,
        started_at_ns: 0,
        exited_at_ns: now_ns(),
        lost: false,
    }
}

/// Kills whatever is in a cgroup and removes it; gone is success.
pub(crate) fn kill_cgroup(node: &Node, path: &str) -> Result<(), Error> {
    let failed = |source: runtime_linux::cgroup::Error| Error::Cgroup { path: path.to_owned(), source };
    let cgroup = Cgroup::new(&node.hierarchy, path).map_err(failed)?;
    if cgroup.exists() {
        cgroup.kill().map_err(failed)?;
        cgroup.remove().map_err(failed)?;
    }
    Ok(())
}

/// Kills whatever is in a cgroup, which stays for its shim to remove; gone is success.
fn empty_cgroup(node: &Node, path: &str) -> Result<(), Error> {
    let failed = |source: runtime_linux::cgroup::Error| Error::Cgroup { path: path.to_owned(), source };
    let cgroup = Cgroup::new(&node.hierarchy, path).map_err(failed)?;
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup.kill().map_err(failed)?;
    if cgroup.wait_empty(TOLD_WITHIN).map_err(failed)? {
        return Ok(());
    }
    let seconds = i64::try_from(TOLD_WITHIN.as_secs()).unwrap_or(i64::MAX);
    Err(Error::Timeout { what: "killing the container (a process may be stuck in the kernel)", seconds })
}

/// What has ended needs no signal.
pub(crate) fn ignore_ended(outcome: Result<(), ClientError>) -> Result<(), Error> {
    match outcome {
        Err(ClientError::Failure(failure))
            if matches!(failure.code, FailureCode::WrongState | FailureCode::NotFound) =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}
