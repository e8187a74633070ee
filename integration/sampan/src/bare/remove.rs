//! `sampan stop` and `sampan rm`.

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;

use super::session::{Session, is_bare, said};
use crate::report::print;

#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// Containers by name or by the beginning of their ids
    #[arg(required = true)]
    containers: Vec<String>,
    /// Seconds from SIGTERM to SIGKILL
    #[arg(short, long, default_value_t = 10)]
    time: u32,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// Containers by name or by the beginning of their ids
    #[arg(required = true)]
    containers: Vec<String>,
    /// Also those that run
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn stop(session: &Session, args: &StopArgs) -> Result<()> {
    for name in &args.containers {
        let container = session.find(name).await?;
        let request = v1::StopContainerRequest { container_id: container.id, timeout: args.time.into() };
        session.runtime().stop_container(request).await.map_err(said).with_context(|| format!("stop {name}"))?;
        print(&format!("{name}\n")).context("write to standard output")?;
    }
    Ok(())
}

pub(super) async fn remove(session: &Session, args: &RemoveArgs) -> Result<()> {
    for name in &args.containers {
        let container = session.find(name).await?;
        if !is_bare(&container) {
            bail!("{name} belongs to a pod of the cluster: `kubectl delete pod` removes it");
        }
        if container.state() == v1::ContainerState::ContainerRunning && !args.force {
            bail!("{name} is running: stop it first (`sampan stop {name}`), or use --force");
        }
        remove_pod(session, &container.pod_sandbox_id).await.with_context(|| format!("remove {name}"))?;
        print(&format!("{name}\n")).context("write to standard output")?;
    }
    Ok(())
}

/// A pod of `run` holds one container: both go.
pub(super) async fn remove_pod(session: &Session, id: &str) -> Result<()> {
    let mut runtime = session.runtime();
    let pod_sandbox_id = id.to_owned();
    runtime
        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
        .await
        .map_err(said)?;
    runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await.map_err(said)?;
    Ok(())
}
