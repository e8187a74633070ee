//! The container runtime as a part: the CRI server, and beside it the door for images that CRI has no word for.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use runtime_cri_api::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::daemon::Progress;
use crate::instance::{Instance, Layout, Wishes};
use crate::inventory::Inventory;
use crate::node::board::Board;
use crate::node::supervise::Supervisor;
use crate::node::{Tell, address, join_own_cgroup};
use crate::parts::Parts;
use crate::pki::Pki;
use crate::programs::Programs;
use crate::{bare_removal, endpoint, image_door};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Cri(#[from] runtime_cri::Error),
    #[error("open the image store")]
    Images(#[source] runtime_images::Error),
    #[error(transparent)]
    ImageDoor(#[from] image_door::Error),
    #[error("open the image store: its task panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Both until `shutdown`.
pub(crate) async fn run(
    config: runtime_cri::Config,
    image_socket: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let store = config.images.clone();
    let cri_socket = config.socket.clone();
    let opened =
        tokio::task::spawn_blocking(move || runtime_images::Images::open(store)).await.map_err(Error::Panicked)?;
    let images = opened.map_err(Error::Images)?;
    let door = image_door::serve(image_socket, images.clone(), shutdown.clone());
    let cri = runtime_cri::run_with_images(config, images, shutdown.clone());
    let removals = bare_removal::run(cri_socket, shutdown);
    tokio::try_join!(async { door.await.map_err(Error::from) }, async { cri.await.map_err(Error::from) }, async {
        removals.await;
        Ok(())
    })?;
    Ok(())
}

/// The runtime without a control plane: pods from the command line only.
pub(crate) async fn run_alone(layout: Layout, shutdown: CancellationToken, tell: Tell<'_>) -> Result<()> {
    let instance = Instance::load_or_decide(&layout, &Wishes::default())?;
    let programs = Programs::find()?;
    programs.link_plugins(&layout.run.join("cni-bin"))?;
    Inventory::keep_first(&layout, &instance)?;
    join_own_cgroup(&instance)?;
    // Streams and published ports live on loopback.
    address::ensure(&instance).context("set up lo")?;
    let parts = Parts { pki: Pki::paths(&layout), layout, instance, programs };
    let (is_ready, mut ready) = watch::channel(false);
    let mut config = parts.cri();
    config.ready = Some(is_ready);
    // A stock kubelet or crictl may be the client, and they know streams by TCP only.
    config.streams = runtime_cri::StreamListen::any_loopback_port();
    let board = Arc::new(Board::of(&parts.layout));
    let mut running = Supervisor::new(Arc::clone(&board), shutdown.clone());
    let socket = parts.layout.image_socket();
    running.start("container runtime", move |token| run(config.clone(), socket.clone(), token));
    let started = async {
        // The sender lives in the part's configuration.
        let _never_closed = ready.wait_for(|is_ready| *is_ready).await;
        set_pod_range(&parts).await
    };
    let outcome = tokio::select! {
        started = started => started,
        reason = board.trouble(1) => Err(anyhow!(reason)),
        () = shutdown.cancelled() => Ok(()),
    };
    if outcome.is_ok() && !shutdown.is_cancelled() {
        tell(Progress::Ready);
        shutdown.cancelled().await;
    }
    shutdown.cancel();
    running.stopped().await;
    outcome
}

/// The range that a cluster's first node would get, so that a later `up` finds it unchanged.
async fn set_pod_range(parts: &Parts) -> Result<()> {
    let channel = endpoint::connect(&parts.layout.cri_socket()).await?;
    let mut client = v1::runtime_service_client::RuntimeServiceClient::new(channel);
    let network_config = Some(v1::NetworkConfig { pod_cidr: parts.first_node_range() });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
    client.update_runtime_config(request).await.context("set the pods' network")?;
    Ok(())
}
