//! What the server must be told: every path and name is explicit, nothing is taken from the environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

#[derive(Clone, Debug)]
pub struct Config {
    /// Where the gRPC server listens; a stale socket there is replaced.
    pub socket: PathBuf,
    /// Records that outlive a reboot; this server's alone.
    pub data_dir: PathBuf,
    /// Gone at reboot: `pods/<sandbox id>/` with a shim's socket and namespaces.
    pub run_dir: PathBuf,
    pub images: runtime_images::Config,
    /// The static `sampan-shim`.
    pub shim_binary: PathBuf,
    pub cni: Cni,
    /// Cgroup of what has no parent of its own, `/sampan`.
    pub cgroup_root: String,
    /// Where exec, attach and port-forward are served.
    pub streams: StreamListen,
    /// Copied into pods whose configuration names no DNS.
    pub host_resolv_conf: PathBuf,
    /// Set to `true` once requests are answered.
    pub ready: Option<watch::Sender<bool>>,
}

/// Where streams are served; their URLs carry the only credential, which works once and for a minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamListen {
    /// A socket that only this user can reach, for a kubelet that understands `unix://SOCKET#PATH`. Nobody's host port, Service
    /// or process can stand in front of it.
    Socket(PathBuf),
    /// A port of loopback, for what knows only `http://`: stock kubelets and crictl. Port 0 takes a free one. No pod of this
    /// runtime may map that host port.
    Loopback(SocketAddr),
}

impl StreamListen {
    /// A free port of loopback.
    #[must_use]
    pub fn any_loopback_port() -> Self {
        Self::Loopback(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))
    }
}

#[derive(Clone, Debug)]
pub struct Cni {
    /// The first valid list there is the pod network.
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    /// Written to `conf_dir` on UpdateRuntimeConfig; `None` leaves the network to the operator.
    pub template: Option<CniTemplate>,
    /// Limit for one plugin's one call.
    pub timeout: Duration,
}

/// The list that is written once the node has its pod range.
#[derive(Clone, Debug)]
pub struct CniTemplate {
    pub network: String,
    pub bridge: String,
    /// host-local's leases; gone at reboot.
    pub leases_dir: PathBuf,
    /// Merged into the bridge plugin's object: `table`, `mtu`, ...
    pub bridge_options: serde_json::Map<String, serde_json::Value>,
    /// Further plugins behind the bridge, such as `{"type": "portmap", "capabilities": {"portMappings": true}}`.
    pub chained: Vec<serde_json::Value>,
}

impl Config {
    /// The customary places below a data and a run directory; what cannot be guessed is an argument.
    pub fn new(data_dir: &Path, run_dir: PathBuf, shim_binary: PathBuf, cni: Cni) -> Self {
        Self {
            socket: run_dir.join("cri.sock"),
            streams: StreamListen::Socket(run_dir.join("streams.sock")),
            images: runtime_images::Config::new(data_dir.join("images")),
            data_dir: data_dir.join("cri"),
            run_dir,
            shim_binary,
            cni,
            cgroup_root: "/sampan".into(),
            host_resolv_conf: "/etc/resolv.conf".into(),
            ready: None,
        }
    }

    pub(crate) fn pod_dir(&self, sandbox_id: &str) -> PathBuf {
        self.run_dir.join("pods").join(sandbox_id)
    }
}
