//! `sampan run --rm`: the container goes when it has ended, also when whoever typed that is gone (`--detach`, a closed terminal).
//!
//! The pod's label names the process of `run`. While that lives, it removes the container itself, since it still wants to read
//! the exit code; once it has ended, the daemon does. Both may try: what is gone is removed.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::PollTimeout;
use runtime_cri_api::v1;
use runtime_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use runtime_linux::pidfd;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::warn;

use crate::endpoint;

/// Label of a pod that is to be removed when its container has ended; its value is [`own_mark`] of who made it.
pub(crate) const LABEL: &str = "sampan.dev/remove-after";
/// Between one connection to the container runtime that ended and the next.
const PAUSE: Duration = Duration::from_secs(1);
/// How long whoever ran a container that has ended may take to read its exit code.
const READER_MAX: Duration = Duration::from_secs(30);

/// This process, told from others that had its pid before or will have it: `PID-START`.
pub(crate) fn own_mark() -> String {
    let pid = std::process::id();
    format!("{pid}-{}", started(pid).unwrap_or(0))
}

/// When a process started, in clock ticks since the boot: the 22nd field of proc_pid_stat(5), counted behind the name, which
/// may hold anything.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The process of a mark, if it still runs.
fn process(mark: &str) -> Option<OwnedFd> {
    let (pid, start) = mark.split_once('-')?;
    let pid: u32 = pid.parse().ok()?;
    let process = pidfd::open(i32::try_from(pid).ok()?).ok()?;
    // Looked at once the descriptor holds the pid.
    (started(pid)? == start.parse::<u64>().ok()?).then_some(process)
}

/// Removes what is to be removed until `shutdown`.
pub(crate) async fn run(socket: PathBuf, shutdown: CancellationToken) {
    let work = async {
        loop {
            if let Err(error) = follow(&socket).await {
                // The runtime is starting or ending; its own part says more.
                tracing::debug!(error = format!("{error:#}"), "containers that remove themselves are not followed");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

async fn follow(socket: &Path) -> Result<()> {
    let mut runtime = RuntimeServiceClient::new(endpoint::connect(socket).await?);
    // Before the first look, so that no end falls between the two.
    let mut events = runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let mut removals = JoinSet::new();
    for container in ended(&mut runtime, None).await? {
        removals.spawn(remove(runtime.clone(), container));
    }
    while let Some(event) = events.message().await.context("hear of containers")? {
        if event.container_event_type() == v1::ContainerEventType::ContainerStoppedEvent {
            for container in ended(&mut runtime, Some(event.container_id)).await? {
                removals.spawn(remove(runtime.clone(), container));
            }
        }
        while removals.try_join_next().is_some() {}
    }
    Ok(())
}

/// Those that have ended and are to be removed: all, or the one with this id.
async fn ended(runtime: &mut RuntimeServiceClient<Channel>, id: Option<String>) -> Result<Vec<v1::Container>> {
    let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited.into() };
    let filter =
        v1::ContainerFilter { id: id.unwrap_or_default(), state: Some(state), ..v1::ContainerFilter::default() };
    let listed = runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?;
    Ok(listed.into_inner().containers.into_iter().filter(|container| container.labels.contains_key(LABEL)).collect())
}

async fn remove(mut runtime: RuntimeServiceClient<Channel>, container: v1::Container) {
    if let Some(process) = container.labels.get(LABEL).and_then(|mark| process(mark)) {
        // It reads the exit code and ends; one that is stopped for so long finds the container gone.
        let limit = PollTimeout::try_from(READER_MAX).unwrap_or(PollTimeout::MAX);
        let _ended = tokio::task::spawn_blocking(move || pidfd::wait_ended(&process, limit)).await;
    }
    let pod_sandbox_id = container.pod_sandbox_id;
    let stopped = runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await;
    let removed = match stopped {
        Ok(_) => runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await.map(drop),
        Err(status) => Err(status),
    };
    match removed {
        Err(status) if status.code() != tonic::Code::NotFound => {
            warn!(container = container.id, error = status.message(), "a container that was to go with its end stays");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_a_process_and_none_that_has_its_pid_later() {
        let own = own_mark();
        assert!(process(&own).is_some());
        let (pid, start) = own.split_once('-').unwrap();
        let later = start.parse::<u64>().unwrap() + 1;
        for other in [format!("{pid}-{later}"), "0-0".into(), "x".into(), String::new(), format!("{}-1", u32::MAX)] {
            assert!(process(&other).is_none(), "{other}");
        }
    }
}
