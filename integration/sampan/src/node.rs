//! The daemon: every part in one process, until a signal or the end of a part.
//!
//! Parts speak to the API server through its in-process door, each as its own user. The end of the process ends no
//! container: shims hold them, and the next daemon finds them.

pub(crate) mod address;

use std::future::Future;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use control_plane_apiserver::{ApiServer, User};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kubelet::node::Readiness;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

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

/// A node takes a tenth of a second; the rest is for slow machines.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// The parts' end, named.
type Ended = (&'static str, Result<()>);

/// Runs until `shutdown`. `Progress::Ready` is told once, when the node is Ready.
pub(crate) async fn run(layout: Layout, shutdown: CancellationToken, tell: Tell<'_>) -> Result<()> {
    let instance =
        Instance::load(&layout)?.ok_or_else(|| anyhow!("there is no instance here yet: `sampan up` makes one"))?;
    let programs = Programs::find()?;
    programs.link_plugins(&layout.run.join("cni-bin"))?;
    Inventory::keep_first(&layout, &instance)?;
    cni_services::network::ensure_bridge(&instance.bridge)?;
    address::ensure(&instance)?;
    join_own_cgroup(&instance)?;
    let pki = Pki::ensure(&layout, &instance, SystemTime::now())?;
    kubeconfig::write(&layout.kubeconfig(), &kubeconfig::admin(&instance, &pki)?)?;
    step(tell, "certificates", &layout.config.join("pki").display().to_string());

    let parts = Parts { layout, instance, pki, programs };
    let server = ApiServer::start(parts.apiserver()?).await.context("start the API server")?;
    step(tell, "API server", &parts.instance.api_url());

    let mut running: JoinSet<Ended> = JoinSet::new();
    let stop = shutdown.child_token();
    let ready = start_parts(&parts, &server, &mut running, &stop)?;
    let outcome = follow(&parts, ready, &server, &mut running, &shutdown, tell).await;
    info!("stopping; containers go on");
    stop.cancel();
    while let Some(ended) = running.join_next().await {
        report_late_end(ended);
    }
    server.stop().await;
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

/// `agent` is what managed fields show of the part.
fn client(server: &ApiServer, agent: &'static str, user: &str, groups: &[&str]) -> kube::Client {
    kube::Client::new(server.local_service(User::new(user, groups)).named(agent), "default")
}

fn start_parts(
    parts: &Parts,
    server: &ApiServer,
    running: &mut JoinSet<Ended>,
    stop: &CancellationToken,
) -> Result<Ready> {
    let (cri_ready, cri) = watch::channel(false);
    let (node_ready, node) = watch::channel(Readiness::default());
    let mut cri_config = parts.cri();
    cri_config.ready = Some(cri_ready);
    let node_user = format!("system:node:{}", parts.instance.node_name);
    let mut kubelet_config = parts.kubelet(client(server, "kubelet", &node_user, &["system:nodes"]))?;
    kubelet_config.ready = Some(node_ready);
    let (pods_found, found) = watch::channel(None);
    kubelet_config.found = Some(pods_found);
    let controllers = parts.controllers(client(
        server,
        "kube-controller-manager",
        "system:kube-controller-manager",
        &["system:masters"],
    ))?;
    let scheduler = control_plane_scheduler::Config {
        client: client(server, "kube-scheduler", "system:kube-scheduler", &[]),
        scheduler_name: control_plane_scheduler::DEFAULT_NAME.into(),
    };
    let services = parts.services(client(server, "kube-proxy", "system:kube-proxy", &[]));

    let token = || stop.clone();
    spawn(running, "container runtime", runtime::run(cri_config, parts.layout.image_socket(), token()));
    spawn(running, "controllers", control_plane_controllers::run(controllers, token()));
    spawn(running, "scheduler", control_plane_scheduler::run(scheduler, token()));
    spawn(running, "service networking", cni_services::run(services, token()));
    spawn(running, "kubelet", kubelet::run(kubelet_config, token()));
    Ok(Ready { cri, node, found })
}

fn spawn<E>(
    running: &mut JoinSet<Ended>,
    name: &'static str,
    part: impl Future<Output = Result<(), E>> + Send + 'static,
) where
    E: std::error::Error + Send + Sync + 'static,
{
    running.spawn(async move { (name, part.await.map_err(anyhow::Error::from)) });
}

/// Tells the steps, then waits for the end: a signal's, or that of a part, which is a failure.
async fn follow(
    parts: &Parts,
    mut ready: Ready,
    server: &ApiServer,
    running: &mut JoinSet<Ended>,
    shutdown: &CancellationToken,
    tell: Tell<'_>,
) -> Result<()> {
    let server_ended = server.stopped();
    let steps = async {
        if ready.cri.wait_for(|is_ready| *is_ready).await.is_ok() {
            step(tell, "container runtime", &parts.layout.cri_socket().display().to_string());
        }
        if node_ready(&mut ready.node, tell).await {
            if let Err(error) = mark_control_plane(server, &parts.instance.node_name).await {
                warn!(%error, "the node has no control-plane label");
            }
            step(tell, "node Ready", &format!("{} at {}", parts.instance.node_name, parts.instance.node_ip));
            if let Ok(found) = ready.found.wait_for(Option::is_some).await
                && let Some(count @ 1..) = *found
            {
                step(tell, "pods found again", &count.to_string());
            }
            tell(Progress::Ready);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // Told to end, parts end too: that is no failure of theirs.
        biased;
        () = steps => Ok(()),
        () = shutdown.cancelled() => Ok(()),
        () = server_ended.cancelled() => Err(anyhow!("the API server ended; the log says why")),
        Some(ended) = running.join_next() => match ended {
            Ok((name, Ok(()))) => Err(anyhow!("the {name} ended without being asked to")),
            Ok((name, Err(error))) => Err(error.context(format!("the {name} ended"))),
            Err(error) => Err(anyhow::Error::from(error).context("a part of the daemon panicked")),
        },
    }
}

/// Waits for the node, and tells once if that takes too long: what keeps it may go away, but a person should know.
async fn node_ready(node: &mut watch::Receiver<Readiness>, tell: Tell<'_>) -> bool {
    let is_ready = |readiness: &Readiness| *readiness == Readiness::Ready;
    if let Ok(came) = tokio::time::timeout(READY_PATIENCE, node.wait_for(is_ready)).await {
        return came.is_ok();
    }
    let reason = match &*node.borrow() {
        Readiness::NotReady(why) => why.clone(),
        Readiness::Unknown | Readiness::Ready => "it has not been registered yet".to_owned(),
    };
    tell(Progress::NotReady { reason });
    node.wait_for(is_ready).await.is_ok()
}

/// A node may not give itself a role (NodeRestriction), so an administrator does.
async fn mark_control_plane(server: &ApiServer, node: &str) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client(server, "sampan", "kubernetes-admin", &["system:masters"]));
    let patch = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn report_late_end(ended: Result<Ended, tokio::task::JoinError>) {
    match ended {
        Ok((_, Ok(()))) => {}
        Ok((name, Err(error))) => error!(part = name, error = format!("{error:#}"), "did not end cleanly"),
        Err(error) => error!(%error, "a part panicked while it ended"),
    }
}

/// Out of the cgroup of whoever called `up`, which may be limited, or ended with their session.
pub(crate) fn join_own_cgroup(instance: &Instance) -> Result<()> {
    let hierarchy = runtime_linux::cgroup::Hierarchy::detect().context("find this host's cgroups")?;
    let path = format!("{}/daemon", instance.cgroup_root());
    let cgroup = runtime_linux::cgroup::Cgroup::create(&hierarchy, &path).context("make the daemon's cgroup")?;
    let pid = i32::try_from(std::process::id()).context("this process's id")?;
    cgroup.add(pid).context("move into the daemon's cgroup")
}
