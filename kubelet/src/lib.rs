//! Pods on this node: one task per pod, a pure plan, the only caller of CRI.
//!
//! `pods.rs` hears of pods and of the runtime, `worker.rs` owns one pod, `sync.rs` decides, `operation/` does, `status.rs` says how
//! it went. Not here: scheduling, service networking, images and containers themselves. Invariant: nothing is polled that an
//! event can tell, and a restart of the kubelet restarts no container.

pub mod admission;
pub mod collect;
mod config;
pub mod container_config;
pub mod counters;
pub mod cri;
pub mod env;
pub mod events;
pub mod handler;
pub mod image;
pub mod kit;
pub mod listeners;
pub mod machine;
pub mod manifests;
pub mod mirror;
pub mod node;
pub mod operation;
pub mod pod;
pub mod pod_cgroup;
pub mod pods;
pub mod probe;
pub mod profiles;
pub mod references;
pub mod resources;
pub mod sandbox_config;
pub mod security;
pub mod server;
pub mod status;
pub mod storage;
pub mod survival;
pub mod sync;
pub mod sysctls;
pub mod tokens;
pub mod tree;
pub mod volumes;
pub mod worker;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::{Config, CriEndpoint, Retention, ServingTls};

/// Between tries to reach the runtime at the start.
const RUNTIME_PAUSE: Duration = Duration::from_millis(20);
/// A runtime that starts together with the kubelet answers within this time; afterwards the wait is worth a word.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the configuration names no address of this node; set node_ips")]
    NoAddress,
    #[error("reach the container runtime")]
    Runtime(#[source] cri::Error),
    #[error("read the resolver configuration {}; set resolv_conf to one that exists", .path.display())]
    ResolvConf { path: PathBuf, source: std::io::Error },
    #[error("create {}", .path.display())]
    CreateDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Sysctls(#[from] sysctls::NotNamespaced),
    #[error("find out the host's control groups")]
    Cgroups(#[source] runtime_linux::cgroup::Error),
    #[error("start the kubelet's server")]
    Server(#[source] server::Error),
}

/// Runs the kubelet until `shutdown`. Pods live on.
///
/// # Errors
/// If the node cannot be served at all; what can heal is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.node_ips.is_empty() {
        return Err(Error::NoAddress);
    }
    for dir in [config.data_dir.join("pods"), config.log_dir.clone()] {
        // What pods write and are told is for nobody else on the host; containers get at it by mounts.
        let made = tokio::fs::create_dir_all(&dir).await;
        let closed = match made {
            Ok(()) => tokio::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).await,
            Err(error) => Err(error),
        };
        closed.map_err(|source| Error::CreateDir { path: dir, source })?;
    }
    let runtime = cri::Runtime::open(&config.cri).map_err(Error::Runtime)?;
    let Some(version) = wait_for_runtime(&runtime, &shutdown).await? else { return Ok(()) };
    let (changed, changes) = mpsc::unbounded_channel();
    let (recorder, recording) =
        events::Recorder::new(config.client.clone(), config.node_name.clone(), shutdown.clone());
    let machine = machine::Machine::detect(&config.data_dir);
    let kit = Arc::new(kit(&config, runtime, recorder, changed, &machine, &version).await?);
    let registry = pods::Registry::default();
    let (words, word_receiver) = mpsc::channel(16);
    let recording = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(recording));
    let mut tasks = tasks(&config, &kit, &registry, &words, machine, &version, &shutdown);
    let known = if config.static_pod_dir.is_some() { pods::Manifests::Awaited } else { pods::Manifests::Known };
    let takeover = pods::Takeover::new(known, config.found.clone());
    if let Some(listen) = config.listen {
        let server =
            server::bind(listen, config.tls.as_ref(), kit.clone(), registry.clone()).await.map_err(Error::Server)?;
        let (server, stop) = (Arc::new(server), shutdown.clone());
        let serving = move || {
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.run(stop).await }
        };
        tasks.push(survival::keep("server", kit.counters.clone(), shutdown.clone(), serving));
    }
    let capacity = admission::Capacity {
        cpu_millis: kit.allocatable_cpu_millis,
        memory_bytes: kit.allocatable_memory_bytes,
        pods: config.pods_max,
    };
    pods::run(kit, registry, capacity, takeover, word_receiver, changes, shutdown).await;
    drop((tasks, recording));
    Ok(())
}

/// What runs beside the pods; each is started again when it falls.
fn tasks(
    config: &Config,
    kit: &Arc<kit::Kit>,
    registry: &pods::Registry,
    words: &mpsc::Sender<pods::Word>,
    machine: machine::Machine,
    version: &runtime_cri_api::v1::VersionResponse,
    shutdown: &CancellationToken,
) -> Vec<tokio_util::task::AbortOnDropHandle<()>> {
    let counters = &kit.counters;
    let own = kit.clone();
    let services = move || pods::follow_services(own.client.clone(), own.services.clone());
    let runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
    let (own, known, settings) = (kit.clone(), registry.clone(), config.clone());
    let (told, stop) = (words.clone(), shutdown.clone());
    let registration = move || {
        let registration =
            node::Registration::new(own.clone(), known.clone(), machine.clone(), &settings, runtime_version.clone());
        registration.run(told.clone(), stop.clone())
    };
    let (own, known, retention, stop) = (kit.clone(), registry.clone(), config.retention.clone(), shutdown.clone());
    let collection = move || collect::run(own.clone(), known.clone(), retention.clone(), stop.clone());
    let mut tasks = vec![
        survival::keep("services", counters.clone(), shutdown.clone(), services),
        survival::keep("node", counters.clone(), shutdown.clone(), registration),
        survival::keep("collection", counters.clone(), shutdown.clone(), collection),
    ];
    if let Some(dir) = config.static_pod_dir.clone() {
        let (name, words) = (config.node_name.clone(), words.clone());
        let manifests = move || {
            let (dir, name, words) = (dir.clone(), name.clone(), words.clone());
            async move {
                if let Err(error) = manifests::follow(dir, name, words.clone()).await {
                    tracing::error!(error = operation::chain(&error), "static pods are not followed");
                    // The pods' manager is gone only if the kubelet ends.
                    let _ = words.send(pods::Word::NoManifests).await;
                }
            }
        };
        tasks.push(survival::keep("manifests", counters.clone(), shutdown.clone(), manifests));
    }
    tasks
}

/// `None` if it is shut down before the runtime answers.
async fn wait_for_runtime(
    runtime: &cri::Runtime,
    shutdown: &CancellationToken,
) -> Result<Option<runtime_cri_api::v1::VersionResponse>, Error> {
    let began = tokio::time::Instant::now();
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => return Ok(Some(version)),
            Err(error) if error.is_unavailable() || shutdown.is_cancelled() => {
                if !told && began.elapsed() > RUNTIME_PATIENCE {
                    tracing::warn!(%error, "waiting for the container runtime");
                    told = true;
                }
            }
            Err(error) => return Err(Error::Runtime(error)),
        }
        if tokio::time::timeout(RUNTIME_PAUSE, shutdown.cancelled()).await.is_ok() {
            return Ok(None);
        }
    }
}

async fn kit(
    config: &Config,
    runtime: cri::Runtime,
    recorder: events::Recorder,
    changed: mpsc::UnboundedSender<String>,
    machine: &machine::Machine,
    version: &runtime_cri_api::v1::VersionResponse,
) -> Result<kit::Kit, Error> {
    let read = tokio::fs::read_to_string(&config.resolv_conf).await;
    let resolv_conf = read.map_err(|source| Error::ResolvConf { path: config.resolv_conf.clone(), source })?;
    let client = config.client.clone();
    Ok(kit::Kit {
        runtime,
        recorder,
        access: volumes::Access {
            references: references::References::new(&client, changed),
            tokens: tokens::Tokens::new(client.clone()),
            claims: volumes::Claims { client: client.clone() },
        },
        client,
        host: sandbox_config::Host {
            data_dir: config.data_dir.clone(),
            log_dir: config.log_dir.clone(),
            cgroup_root: config.cgroup_root.clone(),
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            resolv_conf,
            selinux: machine::has_selinux(),
        },
        node_name: config.node_name.clone(),
        facts: status::NodeFacts {
            ips: config.node_ips.iter().map(ToString::to_string).collect(),
            runtime_name: version.runtime_name.clone(),
        },
        services: kit::Services::default(),
        counters: Arc::default(),
        allowed_sysctls: sysctls::Allowed::parse(&config.allowed_unsafe_sysctls)?,
        cpu_capacity_millis: machine.cpus * 1000,
        memory_capacity_bytes: machine.memory_bytes,
        allocatable_cpu_millis: (machine.cpus * 1000).saturating_sub(config.reserved_cpu_millis),
        allocatable_memory_bytes: machine.memory_bytes.saturating_sub(config.reserved_memory_bytes),
        cgroups: pod_cgroup::Cgroups::detect(&config.cgroup_root).map_err(Error::Cgroups)?,
    })
}
