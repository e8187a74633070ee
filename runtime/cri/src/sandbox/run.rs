//! RunPodSandbox: intent on disk, then the shim and its namespaces, files, network; then the reply.
//!
//!     announced -> directory -> shim (namespaces pinned) -> files -> network -> ready
//!
//! A failure at any step undoes all steps, and so does a caller that has gone before it was ready. A crash at any step leaves the
//! announced record, which `adopt` undoes. What cannot be undone stays listed, not ready.

use std::path::Path;
use std::sync::Arc;

use cni_netlink::namespace::Namespace;
use cni_netlink::rtnetlink::{Batch, Rtnetlink};
use nix::mount::{MsFlags, mount};
use runtime_cri_api::v1::{
    ContainerEventType, NamespaceMode, PodSandboxConfig, PodSandboxState, RunPodSandboxRequest, RunPodSandboxResponse,
};
use runtime_shim::config::{Config as ShimConfig, NamespaceMode as ShimNamespace, PidMode};

use crate::caller::Caller;
use crate::facts::Shim;
use crate::node::{Node, Sandbox, fresh_id, now_ns};
use crate::record::{NetworkRecord, SandboxRecord, VERSION};
use crate::status::Error;
use crate::{adopt, network, private, spec};

/// The only handler there is, by the names kubelets may ask for it.
const HANDLERS: [&str; 2] = ["", "sampan"];

/// Of the host's own resolv.conf and hosts; one that is longer is nobody's.
const HOST_FILE_BYTES_MAX: usize = 1 << 20;

/// Size of a pod's /dev/shm, as everywhere.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

pub(crate) async fn run(node: Arc<Node>, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Error> {
    let (waiting, caller) = Caller::watch();
    // A task of its own, which goes on when the caller does not, and then undoes what it has made.
    let made = tokio::spawn(perform(node, request, caller)).await.unwrap_or(Err(Error::Panicked));
    waiting.answered();
    made
}

async fn perform(
    node: Arc<Node>,
    request: RunPodSandboxRequest,
    caller: Caller,
) -> Result<RunPodSandboxResponse, Error> {
    let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    validate(&config, &request.runtime_handler)?;
    let plan = Plan { config, handler: request.runtime_handler, caller };
    let sandbox = loop {
        let (announcing, wanted) = (Arc::clone(&node), plan.clone());
        match node.pool.run(move || announce(&announcing, wanted)).await {
            Err(Error::NameTaken { kind, name, holder }) => match node.sandbox(&holder) {
                // Whoever asked for it first may have gone: then it is being undone, and its name will be free.
                Ok(holder) if holder.making.is_under_way() => holder.making.until_ended().await,
                Ok(held) if is_the_same(&held, &plan) && held.making.take_abandoned() => {
                    return Ok(RunPodSandboxResponse { pod_sandbox_id: holder });
                }
                _ => return Err(Error::NameTaken { kind, name, holder }),
            },
            other => break other?,
        }
    };
    let making = Arc::clone(&node);
    node.pool.run(move || finish(&making, &sandbox)).await
}

/// Whether a sandbox is ready, and what is asked for.
fn is_the_same(sandbox: &Sandbox, plan: &Plan) -> bool {
    sandbox.read(|record, shim| {
        crate::facts::sandbox_state(record, shim) == PodSandboxState::SandboxReady
            && record.config == plan.config
            && record.runtime_handler == plan.handler
    })
}

/// What is asked for, and for whom.
#[derive(Clone, Debug)]
struct Plan {
    config: PodSandboxConfig,
    handler: String,
    caller: Caller,
}

fn announce(node: &Arc<Node>, plan: Plan) -> Result<Arc<Sandbox>, Error> {
    let Plan { config, handler, caller } = plan;
    let network = if spec::sandbox_namespaces(&config).network() == NamespaceMode::Node {
        None
    } else {
        // Chosen before anything is made: without a network there is nothing to undo.
        Some(NetworkRecord::intended(network::choose(&node.config.cni)?))
    };
    let record = SandboxRecord {
        version: VERSION,
        id: fresh_id(),
        config: config.clone(),
        runtime_handler: handler,
        created_at_ns: now_ns(),
        ready_at_ns: None,
        stopped_at_ns: None,
        released_at_ns: None,
        failed_at_ns: None,
        network,
    };
    if let Some(port) = node.streams.port()
        && super::host_ports(&record).contains(&port)
    {
        // Whoever maps it would be handed the sessions, and the tokens, of everybody else.
        let problem = format!("host port {port} is this runtime's own, for streams");
        return Err(Error::invalid("config.port_mappings", problem));
    }
    node.announce_sandbox(&super::name(&config), record, caller)
}

fn finish(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<RunPodSandboxResponse, Error> {
    let making = sandbox.making.guard();
    let work = sandbox.work();
    let made = make(node, sandbox).and_then(|()| {
        if sandbox.making.is_abandoned() { Err(Error::Abandoned { what: "the pod sandbox" }) } else { Ok(()) }
    });
    if made.is_err() {
        // What it left is told where it fails.
        let _ = super::remove::undo(node, sandbox);
    }
    drop(making);
    made?;
    drop(work);
    node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerCreatedEvent);
    node.tell(sandbox, &sandbox.id, ContainerEventType::ContainerStartedEvent);
    Ok(RunPodSandboxResponse { pod_sandbox_id: sandbox.id.clone() })
}

fn validate(config: &PodSandboxConfig, handler: &str) -> Result<(), Error> {
    let metadata = config.metadata.clone().ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if metadata.name.is_empty() || metadata.uid.is_empty() {
        return Err(Error::invalid("config.metadata", "needs a name and a uid"));
    }
    if !HANDLERS.contains(&handler) {
        return Err(Error::invalid("runtime_handler", format!("{handler:?} is not configured; leave it empty")));
    }
    if config.windows.is_some() {
        return Err(Error::invalid("config.windows", "this runtime runs Linux pods only"));
    }
    let options = spec::sandbox_namespaces(config);
    if options.pid() == NamespaceMode::Target {
        return Err(Error::invalid("namespace_options.pid", "TARGET is for containers"));
    }
    if options.userns_options.is_some_and(|user| user.mode() == NamespaceMode::Pod) {
        return Err(Error::invalid("namespace_options.userns_options", "user namespaces are not supported"));
    }
    if config.hostname.len() > 64 {
        return Err(Error::invalid("config.hostname", "is longer than the kernel's 64 bytes"));
    }
    Ok(())
}

fn make(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let (mut record, _) = sandbox.facts();
    let dir = &sandbox.dir;
    private::directory(dir).map_err(Error::io("make", dir))?;
    shim_config(node, &record).save(dir)?;
    let mut client = runtime_shim::spawn(&node.config.shim_binary, dir)?;
    sandbox.set_shim(Shim::Alive);
    let netns = dir.join("ns/net");
    if let Some(network) = &mut record.network {
        raise_loopback(&netns)?;
        let pod = network::Pod { id: &sandbox.id, config: &record.config, netns: Some(netns) };
        network::add(&node.config.cni, &pod, network)?;
    }
    let addresses = record.network.as_ref().map(|network| network.addresses.clone()).unwrap_or_default();
    write_files(node, dir, &record.config, addresses.first().map(String::as_str))?;
    client.info()?;
    let ready_at_ns = now_ns();
    node.commit_sandbox(sandbox, |facts| {
        facts.network.clone_from(&record.network);
        facts.ready_at_ns = Some(ready_at_ns);
    })?;
    adopt::follow(node, sandbox)
}

fn shim_config(node: &Node, record: &SandboxRecord) -> ShimConfig {
    let options = spec::sandbox_namespaces(&record.config);
    let namespace = |mode: NamespaceMode| match mode {
        NamespaceMode::Node => ShimNamespace::Host,
        _ => ShimNamespace::Pod,
    };
    let network = namespace(options.network());
    let hostname = (network == ShimNamespace::Pod).then(|| hostname(record));
    let sysctls = record.config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    ShimConfig {
        version: runtime_shim::config::VERSION,
        pod_id: record.id.clone(),
        state_root: node.config.pod_dir(&record.id).join("oci"),
        cgroup: format!("{}/shims/{}", node.config.cgroup_root, record.id),
        hostname,
        domainname: None,
        sysctls: sysctls.into_iter().collect(),
        network,
        ipc: namespace(options.ipc()),
        uts: network,
        pid: match options.pid() {
            NamespaceMode::Pod => PidMode::Pod,
            NamespaceMode::Node => PidMode::Host,
            NamespaceMode::Container | NamespaceMode::Target => PidMode::Container,
        },
        user: None,
    }
}

fn hostname(record: &SandboxRecord) -> String {
    if record.config.hostname.is_empty() { record.id[..12].to_owned() } else { record.config.hostname.clone() }
}

fn raise_loopback(netns: &Path) -> Result<(), Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| crate::network::NetworkError::Loopback(source);
    let namespace = Namespace::open(netns).map_err(|error| failed(Box::new(error)))?;
    let mut socket = Rtnetlink::open_in(&namespace).map_err(|error| failed(Box::new(error)))?;
    let index = socket.link("lo").map_err(|error| failed(Box::new(error)))?.map_or(1, |link| link.index);
    let mut batch = Batch::default();
    batch.set_up(index);
    socket.apply(&batch).map_err(|error| failed(Box::new(error)))?;
    Ok(())
}

/// What containers find in /etc and /dev/shm unless they mount their own.
fn write_files(node: &Node, dir: &Path, config: &PodSandboxConfig, address: Option<&str>) -> Result<(), Error> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        // For the container's users to read, through the mount that they get of it; the directory is nobody else's.
        private::write(&path, 0o644, text.as_bytes()).map_err(Error::io("write", &path))
    };
    let options = spec::sandbox_namespaces(config);
    let host_network = options.network() == NamespaceMode::Node;
    let host_name = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let hostname = match (config.hostname.as_str(), host_network) {
        ("", true) => host_name(),
        ("", false) => dir.file_name().map(|id| id.to_string_lossy()[..12].to_owned()).unwrap_or_default(),
        (name, _) => name.to_owned(),
    };
    write("hostname", &format!("{hostname}\n"))?;
    write("resolv.conf", &resolv_conf(node, config)?)?;
    let hosts = if host_network { read_text(Path::new("/etc/hosts")).ok() } else { None };
    write("hosts", &hosts.unwrap_or_else(|| hosts_file(&hostname, address)))?;
    if options.ipc() != NamespaceMode::Node {
        let shm = dir.join("shm");
        private::directory(&shm).map_err(Error::io("make", &shm))?;
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
            .map_err(std::io::Error::from)
            .map_err(Error::io("mount a tmpfs at", &shm))?;
    }
    Ok(())
}

/// A file of the host that pods get a copy of.
fn read_text(path: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&private::read(path, HOST_FILE_BYTES_MAX)?).into_owned())
}

fn hosts_file(hostname: &str, address: Option<&str>) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if let Some(address) = address {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    text
}

/// resolv.conf(5) from the pod's DNS configuration; without one, the host's.
fn resolv_conf(node: &Node, config: &PodSandboxConfig) -> Result<String, Error> {
    let Some(dns) = &config.dns_config else {
        let path = &node.config.host_resolv_conf;
        return match read_text(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other.map_err(Error::io("read", path)),
        };
    };
    let fields = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if fields.into_iter().any(|field| field.contains(['\n', '\r'])) {
        return Err(Error::invalid("config.dns_config", "has a line break in it"));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}
