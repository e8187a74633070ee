//! Everything the kubelet is told from outside. Holds no default that depends on the machine; the program that assembles the
//! daemons fills it. Invariant: no other module reads the environment or a well-known path.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where the container runtime answers.
#[derive(Clone, Debug)]
pub enum CriEndpoint {
    /// A unix socket; the path may be longer than `sun_path`.
    Socket(PathBuf),
    /// An open channel, for a runtime in the same process.
    Channel(tonic::transport::Channel),
}

/// Certificates of the kubelet's own server, all PEM.
#[derive(Clone)]
pub struct ServingTls {
    pub certificate_chain: Vec<u8>,
    pub private_key: Vec<u8>,
    /// Who may present a client certificate.
    pub client_ca: Vec<u8>,
}

impl fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingTls").finish_non_exhaustive()
    }
}

/// How large container logs and the image store may grow.
#[derive(Clone, Debug)]
pub struct Retention {
    pub log_size_bytes_max: u64,
    /// Files per container, the one being written included.
    pub log_files_max: u32,
    /// Start removing unused images above this share of the image file system, and stop below the low one.
    pub image_high_percent: u8,
    pub image_low_percent: u8,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { log_size_bytes_max: 10 << 20, log_files_max: 5, image_high_percent: 85, image_low_percent: 80 }
    }
}

/// See [`crate::run`].
#[derive(Clone)]
pub struct Config {
    /// A client that acts as `system:node:<node_name>`.
    pub client: kube::Client,
    pub node_name: String,
    /// First address is the node's own in `status.hostIP`.
    pub node_ips: Vec<IpAddr>,
    pub node_labels: BTreeMap<String, String>,
    pub cri: CriEndpoint,
    /// Holds `pods/<uid>/...`.
    pub data_dir: PathBuf,
    /// Holds `<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub log_dir: PathBuf,
    /// cgroup below which `kubepods` is made, such as `/sampan`.
    pub cgroup_root: String,
    /// `None`: no server (tests, or a node without one).
    pub listen: Option<SocketAddr>,
    pub tls: Option<ServingTls>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolver configuration, for `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    pub static_pod_dir: Option<PathBuf>,
    pub pods_max: u32,
    /// Names and patterns (`kernel.msg*`) of sysctls that pods may set beside the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Kept back from pods: CPU in millicores, memory in bytes.
    pub reserved_cpu_millis: u64,
    pub reserved_memory_bytes: u64,
    /// What `kubectl get nodes` shows as version, such as `v1.36.0`.
    pub version: String,
    /// How often the node's lease is renewed; four times as long makes the node look lost.
    pub lease_renewal: Duration,
    pub retention: Retention,
    /// Becomes `Ready` once the node has been registered as that.
    pub ready: Option<tokio::sync::watch::Sender<crate::node::Readiness>>,
    /// Becomes the number of pods that were found running, once all that are wanted have been looked for.
    pub found: Option<tokio::sync::watch::Sender<Option<usize>>>,
}

impl Config {
    /// A configuration with upstream's numbers; the caller sets the rest by name.
    #[must_use]
    pub fn new(
        client: kube::Client,
        node_name: impl Into<String>,
        cri: CriEndpoint,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        let data_dir = data_dir.into();
        Config {
            client,
            node_name: node_name.into(),
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            cri,
            log_dir: data_dir.join("logs/pods"),
            data_dir,
            cgroup_root: "/sampan".into(),
            listen: None,
            tls: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            static_pod_dir: None,
            pods_max: 110,
            allowed_unsafe_sysctls: Vec::new(),
            reserved_cpu_millis: 0,
            reserved_memory_bytes: 0,
            version: control_plane_api::KUBERNETES_VERSION.into(),
            lease_renewal: Duration::from_secs(10),
            retention: Retention::default(),
            ready: None,
            found: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("node_name", &self.node_name)
            .field("node_ips", &self.node_ips)
            .field("cri", &self.cri)
            .field("data_dir", &self.data_dir)
            .field("log_dir", &self.log_dir)
            .field("cgroup_root", &self.cgroup_root)
            .field("listen", &self.listen)
            .field("static_pod_dir", &self.static_pod_dir)
            .finish_non_exhaustive()
    }
}
