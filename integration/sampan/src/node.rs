//! The daemon: every part in one process, until a signal. A part that ends is started again, and the others go on.
//!
//! Parts speak to the API server through its in-process door, each as its own user. The end of the process ends no
//! container: shims hold them, and the next daemon finds them. Only an API server that does not start in the first place
//! is the end of the daemon: nothing can begin without it, and whoever called `up` is told why.

pub(crate) mod address;
pub(crate) mod board;
mod door;
pub(crate) mod supervise;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kubelet::node::Readiness;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use board::Board;
use door::Door;
use supervise::Supervisor;

use crate::daemon::Progress;
use crate::instance::{Instance, Layout};
use crate::inventory::Inventory;
use crate::kubeconfig;
use crate::parts::Parts;
use crate::pki::Pki;
use crate::programs::Programs;
use crate::runtime;

/// How the daemon tells its steps to whoever started it.
pub(crate) type Tell<'a> = &'a mut (dyn FnMut(Progress) + Send);

const API_SERVER: &str = "API server";
/// Annotation of a node: what its own parts listen on. The scheduler gives these ports to no pod.
const HOST_PORTS: &str = "sampan.dev/host-ports";
/// A node takes a tenth of a second; the rest is for slow machines.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// For everything from the first part's start.
const READY_PATIENCE: Duration = Duration::from_secs(40);
/// A part that has ended so often before the node is Ready will not come up by itself soon.
const ENDS_TOLD: u64 = 3;

/// Runs until `shutdown`. `Progress::Ready` is told once, when the node is Ready.
pub(crate) async fn run(layout: Layout, shutdown: CancellationToken, tell: Tell<'_>) -> Result<()> {
    let instance =
        Instance::load(&layout)?.ok_or_else(|| anyhow!("there is no instance here yet: `sampan up` makes one"))?;
    let programs = Programs::find()?;
    programs.link_plugins(&layout.run.join("cni-bin"))?;
    Inventory::keep_first(&layout, &instance)?;
    cni_services::network::ensure_bridge(&instance.bridge)?;
    address::ensure(&instance)?;
    if let Some(advice) = cni_services::firewall::advice(&instance.bridge) {
        step(tell, "firewall", &advice);
    }
    join_own_cgroup(&instance)?;
    let pki = Pki::ensure(&layout, &instance, SystemTime::now())?;
    kubeconfig::write(&layout.kubeconfig(), &kubeconfig::admin(&instance, &pki)?)?;
    step(tell, "certificates", &layout.config.join("pki").display().to_string());

    let parts = Parts { layout, instance, pki, programs };
    let board = Arc::new(Board::of(&parts.layout));
    let (door, server_stop) = (Door::default(), CancellationToken::new());
    let mut server = Supervisor::new(Arc::clone(&board), server_stop.clone());
    let (config, behind) = (parts.apiserver()?, door.clone());
    server.start(API_SERVER, move |token| behind.clone().serve(config.clone(), token));

    let stop = shutdown.child_token();
    let mut running = Supervisor::new(Arc::clone(&board), stop.clone());
    let outcome = tokio::select! {
        // Without it nothing else can begin: then this is no daemon.
        reason = board.trouble(1) => Err(anyhow!(reason)),
        () = shutdown.cancelled() => Ok(()),
        () = door.opened() => {
            step(tell, API_SERVER, &parts.instance.api_url());
            match start_parts(&parts, &door, &mut running) {
                Ok(ready) => {
                    follow(&parts, ready, &door, &board, &shutdown, tell).await;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    };
    info!("stopping; containers go on");
    stop.cancel();
    running.stopped().await;
    server_stop.cancel();
    server.stopped().await;
    outcome
}

fn step(tell: Tell<'_>, name: &str, detail: &str) {
    tell(Progress::Step { name: name.into(), detail: detail.into() });
}

/// What becomes ready one after the other.
struct Ready {
    cri: watch::Receiver<bool>,
    node: watch::Receiver<Readiness>,
    found: watch::Receiver<Option<usize>>,
}

fn start_parts(parts: &Parts, door: &Door, running: &mut Supervisor) -> Result<Ready> {
    let (cri_ready, cri) = watch::channel(false);
    let (node_ready, node) = watch::channel(Readiness::default());
    let mut cri_config = parts.cri();
    cri_config.ready = Some(cri_ready);
    let node_user = format!("system:node:{}", parts.instance.node_name);
    let mut kubelet_config = parts.kubelet(door.client("kubelet", &node_user, &["system:nodes"]))?;
    kubelet_config.ready = Some(node_ready);
    let (pods_found, found) = watch::channel(None);
    kubelet_config.found = Some(pods_found);
    let controllers = parts.controllers(door.client(
        "kube-controller-manager",
        "system:kube-controller-manager",
        &["system:masters"],
    ))?;
    let scheduler = control_plane_scheduler::Config {
        client: door.client("kube-scheduler", "system:kube-scheduler", &[]),
        scheduler_name: control_plane_scheduler::DEFAULT_NAME.into(),
    };
    let services = parts.services(door.client("kube-proxy", "system:kube-proxy", &[]));

    let image_socket = parts.layout.image_socket();
    running.start("container runtime", move |token| runtime::run(cri_config.clone(), image_socket.clone(), token));
    running.start("controllers", move |token| control_plane_controllers::run(controllers.clone(), token));
    running.start("scheduler", move |token| control_plane_scheduler::run(scheduler.clone(), token));
    running.start("service networking", move |token| cni_services::run(services.clone(), token));
    running.start("kubelet", move |token| kubelet::run(kubelet_config.clone(), token));
    Ok(Ready { cri, node, found })
}

/// Tells the steps, and then waits for the end.
async fn follow(parts: &Parts, ready: Ready, door: &Door, board: &Board, shutdown: &CancellationToken, tell: Tell<'_>) {
    let (say, mut said) = mpsc::unbounded_channel();
    let steps = steps(parts, ready, door, say);
    let mut steps = std::pin::pin!(steps);
    let impatience = async {
        let late = Instant::now().checked_add(READY_PATIENCE).unwrap_or_else(Instant::now);
        tokio::select! {
            // A part that does not come up is known long before patience ends.
            reason = board.trouble(ENDS_TOLD) => reason,
            () = tokio::time::sleep_until(late) => match board.parts().into_iter().find_map(|part| part.last_error) {
                Some(reason) => reason,
                None => "it takes longer than usual".to_owned(),
            },
        }
    };
    let mut impatience = std::pin::pin!(impatience);
    let (mut is_told, mut is_over) = (false, false);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(progress) = said.recv() => {
                is_told |= matches!(progress, Progress::Ready | Progress::NotReady { .. });
                tell(progress);
            }
            () = &mut steps, if !is_over => is_over = true,
            reason = &mut impatience, if !is_told => {
                is_told = true;
                tell(Progress::NotReady { reason });
            }
        }
    }
}

/// Becoming ready, step by step.
async fn steps(parts: &Parts, mut ready: Ready, door: &Door, say: mpsc::UnboundedSender<Progress>) {
    // Whoever listens does so until the daemon ends.
    let say = |progress| drop(say.send(progress));
    let step = |name: &str, detail: String| say(Progress::Step { name: name.into(), detail });
    if ready.cri.wait_for(|is_ready| *is_ready).await.is_ok() {
        step("container runtime", parts.layout.cri_socket().display().to_string());
    }
    if !node_ready(&mut ready.node, &say).await {
        return;
    }
    if let Err(error) = mark_node(door, parts).await {
        warn!(%error, "the node has no control-plane label, and does not tell its ports");
    }
    step("node Ready", format!("{} at {}", parts.instance.node_name, parts.instance.node_ip));
    if let Ok(found) = ready.found.wait_for(Option::is_some).await
        && let Some(count @ 1..) = *found
    {
        step("pods found again", count.to_string());
    }
    say(Progress::Ready);
}

/// Waits for the node, and tells once if that takes too long: what keeps it may go away, but a person should know.
async fn node_ready(node: &mut watch::Receiver<Readiness>, say: &impl Fn(Progress)) -> bool {
    let is_ready = |readiness: &Readiness| *readiness == Readiness::Ready;
    if let Ok(came) = tokio::time::timeout(NODE_PATIENCE, node.wait_for(is_ready)).await {
        return came.is_ok();
    }
    let reason = match &*node.borrow() {
        Readiness::NotReady(why) => why.clone(),
        Readiness::Unknown | Readiness::Ready => "it has not been registered yet".to_owned(),
    };
    say(Progress::NotReady { reason });
    node.wait_for(is_ready).await.is_ok()
}

/// What the scheduler must know of this node and the node may not say of itself, or cannot: its role (NodeRestriction), and
/// the ports of parts other than the kubelet. So an administrator writes it.
async fn mark_node(door: &Door, parts: &Parts) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(door.client("sampan", "kubernetes-admin", &["system:masters"]));
    let metadata = json!({
        "labels": {"node-role.kubernetes.io/control-plane": ""},
        "annotations": {HOST_PORTS: host_ports(&parts.own_sockets())},
    });
    let patch = Patch::Merge(json!({"metadata": metadata}));
    nodes.patch(&parts.instance.node_name, &PatchParams::default(), &patch).await.map(drop)
}

/// As the scheduler reads it: `TCP:0.0.0.0:6443`. A part that listens on one protocol takes the port of both: DNS has two.
fn host_ports(sockets: &[SocketAddr]) -> String {
    let both = sockets.iter().flat_map(|socket| [format!("TCP:{socket}"), format!("UDP:{socket}")]);
    both.collect::<Vec<_>>().join(",")
}

/// Out of the cgroup of whoever called `up`, which may be limited, or ended with their session.
pub(crate) fn join_own_cgroup(instance: &Instance) -> Result<()> {
    let hierarchy = runtime_linux::cgroup::Hierarchy::detect().context("find this host's cgroups")?;
    let path = format!("{}/daemon", instance.cgroup_root());
    let cgroup = runtime_linux::cgroup::Cgroup::create(&hierarchy, &path).context("make the daemon's cgroup")?;
    let pid = i32::try_from(std::process::id()).context("this process's id")?;
    cgroup.add(pid).context("move into the daemon's cgroup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_as_the_scheduler_reads_them() {
        let sockets = ["0.0.0.0:6443", "[fd00::1]:53"].map(|text| text.parse().unwrap());
        assert_eq!(host_ports(&sockets), "TCP:0.0.0.0:6443,UDP:0.0.0.0:6443,TCP:[fd00::1]:53,UDP:[fd00::1]:53");
    }
}
