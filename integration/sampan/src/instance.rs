//! One Sampan on this machine: where its files lie, and the names and numbers that only it uses.
//!
//! The paths follow from `--root` alone. The rest (ports, networks, names of kernel objects) is decided once, at the
//! first `up`, and kept in `instance.json`, so that a second instance beside it never takes the same.

use std::fs;
use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// Ports of the node that Services may have, as upstream.
pub(crate) const NODE_PORTS: (u16, u16) = (30000, 32767);
/// Parts of them, so that instances beside each other begin apart.
const NODE_PORT_PARTS: u16 = 16;

/// The version of `instance.json` that this program writes.
const RECORD_VERSION: u32 = 1;

/// Where everything lies. Without `--root`: the places that design and distributions expect.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub root: Option<PathBuf>,
    /// What must survive a reboot: state, images, pods' volumes, logs.
    pub data: PathBuf,
    /// What ends with a reboot: sockets, shims, leases.
    pub run: PathBuf,
    /// Certificates, kubeconfig, registries, static pods.
    pub config: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: Option<PathBuf>) -> io::Result<Self> {
        let Some(root) = root else {
            let (data, run, config) = ("/var/lib/sampan".into(), "/run/sampan".into(), "/etc/sampan".into());
            return Ok(Self { root: None, data, run, config });
        };
        let root = std::path::absolute(root)?;
        Ok(Self { data: root.join("data"), run: root.join("run"), config: root.join("config"), root: Some(root) })
    }

    /// A name for kernel objects of this instance: `sampan`, or with `--root` `sampan-` and four hex digits of its path.
    pub(crate) fn name(&self) -> String {
        self.root
            .as_ref()
            .map_or_else(|| "sampan".into(), |root| format!("sampan-{:04x}", fold(&root.to_string_lossy())))
    }

    /// A command line of this program for this instance, to be shown and typed: `sampan status`, `sampan --root DIR status`.
    pub(crate) fn command(&self, rest: &str) -> String {
        match &self.root {
            None => format!("sampan {rest}"),
            Some(root) => {
                let root = root.to_string_lossy();
                let is_plain = root.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte));
                let quoted = if is_plain { root.into_owned() } else { format!("'{}'", root.replace('\'', r"'\''")) };
                format!("sampan --root {quoted} {rest}")
            }
        }
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.config.join("instance.json")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.config.join("admin.kubeconfig")
    }

    pub(crate) fn cri_socket(&self) -> PathBuf {
        self.run.join("cri.sock")
    }

    /// Where images are imported and exported: CRI has no word for it.
    pub(crate) fn image_socket(&self) -> PathBuf {
        self.run.join("images.sock")
    }

    pub(crate) fn daemon_log(&self) -> PathBuf {
        self.data.join("logs/sampan.log")
    }

    /// Makes the directories. Nobody but root gets below the three of them, also where an older version made them wider:
    /// images have set-uid programs, the store has Secrets (CVE-2021-41103 was containerd's like it).
    pub(crate) fn create(&self) -> io::Result<()> {
        for (directory, is_root) in [
            (&self.data, true),
            (&self.run, true),
            (&self.config, true),
            (&self.data.join("logs"), false),
            (&self.config.join("manifests"), false),
        ] {
            let failed =
                |error: io::Error| io::Error::new(error.kind(), format!("create {}: {error}", directory.display()));
            fs::create_dir_all(directory).map_err(failed)?;
            if is_root {
                fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// What a person asked for on the command line of `up`; what is missing is chosen.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Wishes {
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address that other nodes and pods reach this node at [default: the source address of the default route]
    #[arg(long, visible_alias = "apiserver-advertise-address", value_name = "IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// Port of the API server [default: 6443, or the next free one with --root]
    #[arg(long, value_name = "PORT")]
    pub api_port: Option<u16>,
    /// Port of the kubelet [default: 10250, or the next free one with --root]
    #[arg(long, value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// Addresses of all pods, a /24 of it for each node [default: 10.42.0.0/16]
    #[arg(long, visible_alias = "pod-network-cidr", value_name = "CIDR")]
    pub pod_cidr: Option<Cidr>,
    /// Addresses of Services [default: 10.43.0.0/16]
    #[arg(long, visible_alias = "service-cidr-range", value_name = "CIDR")]
    pub service_cidr: Option<Cidr>,
    #[command(flatten)]
    pub cni: CniDirs,
}

/// Another network than Sampan's own: who puts plugins and configurations there decides what pods are attached to.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct CniDirs {
    /// Look for CNI plugins here first; without DIR in /opt/cni/bin [default: only Sampan's own]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "/opt/cni/bin")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Take the first network configuration of this directory and write none; without DIR of /etc/cni/net.d
    /// [default: Sampan's own network]
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "/etc/cni/net.d")]
    pub cni_conf_dir: Option<PathBuf>,
}

/// The decided names and numbers of one instance, as kept in `instance.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub version: u32,
    /// Name of the nf_tables tables, the cgroup below each hierarchy's root, the kubeconfig context.
    pub name: String,
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub api_port: u16,
    pub kubelet_port: u16,
    pub pod_cidr: Cidr,
    pub service_cidr: Cidr,
    pub bridge: String,
    /// Where plugins are looked for before Sampan's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Where somebody else decides on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_conf_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a record of an instance; move it away to start anew, or restore it from a backup")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{path} has version {found}, this sampan knows up to {RECORD_VERSION}: use the newer sampan that wrote it")]
    TooNew { path: PathBuf, found: u32 },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "this instance was made with {what} {kept}, not {wished}; \
         `sampan down --purge` removes it, or give `--root DIR` for another one beside it"
    )]
    Settled { what: &'static str, kept: String, wished: String },
    #[error("port {port} ({purpose}) is taken on this machine: free it, or choose another with {flag}")]
    PortTaken { port: u16, purpose: &'static str, flag: &'static str, source: io::Error },
    #[error(
        "network {network} of this instance ({purpose}) is routed by {link} now, perhaps for another instance: end that \
         first, or make this one anew with `sampan down --purge` and `sampan up`, which chooses a free network"
    )]
    NetworkTaken { network: Cidr, purpose: &'static str, link: String },
    #[error("look for this instance's network")]
    Look(#[source] cni_services::network::NetworkError),
    #[error(
        "pods ({pods}) and Services ({services}) would share addresses; give networks apart from each other with --pod-cidr \
         and --service-cidr (an instance that has them already: `sampan down --purge` first)"
    )]
    Overlap { pods: Cidr, services: Cidr },
    #[error("no free network found for {what}: give one with {flag}")]
    NoNetwork { what: &'static str, flag: &'static str },
    #[error(
        "the host's name {name:?} is no node name (lower-case letters, digits, `-` and `.`): give one with --node-name"
    )]
    NodeName { name: String },
}

impl Instance {
    /// The kept record, or `None` before the first `up`.
    pub(crate) fn load(layout: &Layout) -> Result<Option<Self>, InstanceError> {
        let path = layout.record();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(InstanceError::Read { path, source }),
        };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|source| InstanceError::Parse { path: path.clone(), source })?;
        if record.version > RECORD_VERSION {
            return Err(InstanceError::TooNew { path, found: record.version });
        }
        Ok(Some(record))
    }

    /// The kept record where it agrees with the wishes, with the ports wished for; else a new one. Written before it is returned.
    pub(crate) fn load_or_decide(layout: &Layout, wishes: &Wishes) -> Result<Self, InstanceError> {
        if let Some(mut kept) = Self::load(layout)? {
            kept.agrees(wishes)?;
            // Ports are in nothing that lasts: kubeconfigs and the node's record are written at every start.
            // Nor are the directories of another network: pods keep the list that they were attached by.
            let before = kept.clone();
            kept.api_port = wishes.api_port.unwrap_or(kept.api_port);
            kept.kubelet_port = wishes.kubelet_port.unwrap_or(kept.kubelet_port);
            kept.cni_bin_dir = wishes.cni.cni_bin_dir.clone().or(kept.cni_bin_dir);
            kept.cni_conf_dir = wishes.cni.cni_conf_dir.clone().or(kept.cni_conf_dir);
            if kept != before {
                kept.save(layout)?;
            }
            return Ok(kept);
        }
        let decided = Self::decide(layout, wishes)?;
        decided.save(layout)?;
        Ok(decided)
    }

    /// Takes back a first decision whose `up` failed: the next one decides anew. The store that it began goes too; it holds
    /// nothing but the addresses decided on.
    pub(crate) fn take_back(layout: &Layout) -> Result<(), InstanceError> {
        for path in ["state.db", "state.db-wal", "state.db-shm"]
            .map(|name| layout.data.join(name))
            .into_iter()
            .chain([layout.record()])
        {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(InstanceError::Write { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn save(&self, layout: &Layout) -> Result<(), InstanceError> {
        let path = layout.record();
        let text = serde_json::to_vec_pretty(self).expect("a struct of strings and numbers encodes");
        crate::files::replace(&path, &text, 0o644).map_err(|source| InstanceError::Write { path, source })
    }

    fn decide(layout: &Layout, wishes: &Wishes) -> Result<Self, InstanceError> {
        let name = layout.name();
        let alone = layout.root.is_none();
        let routed = crate::cidr::routed().into_iter().map(|route| route.network).collect();
        let (pod_cidr, service_cidr) = networks(wishes, alone, routed)?;
        let port = |wish: Option<u16>, usual: u16, purpose, flag| match wish {
            Some(port) => check_port(port, purpose, flag),
            None if alone => check_port(usual, purpose, flag),
            None => Ok(next_free_port(usual)),
        };
        Ok(Self {
            version: RECORD_VERSION,
            node_name: wishes.node_name.clone().map_or_else(host_name, Ok)?,
            node_ip: wishes.node_ip.unwrap_or_else(|| default_source_address(pod_cidr)),
            api_port: port(wishes.api_port, 6443, "the API server", "--api-port")?,
            kubelet_port: port(wishes.kubelet_port, 10250, "the kubelet", "--kubelet-port")?,
            pod_cidr,
            service_cidr,
            // Interface names have 15 characters at most: `sampan-` and four digits fit with a number behind.
            bridge: format!("{name}0"),
            name,
            cni_bin_dir: wishes.cni.cni_bin_dir.clone(),
            cni_conf_dir: wishes.cni.cni_conf_dir.clone(),
        })
    }

    fn agrees(&self, wishes: &Wishes) -> Result<(), InstanceError> {
        fn same<T: PartialEq + ToString>(what: &'static str, kept: &T, wish: Option<&T>) -> Result<(), InstanceError> {
            match wish {
                Some(wished) if wished != kept => {
                    Err(InstanceError::Settled { what, kept: kept.to_string(), wished: wished.to_string() })
                }
                _ => Ok(()),
            }
        }
        same("node name", &self.node_name, wishes.node_name.as_ref())?;
        same("node address", &self.node_ip, wishes.node_ip.as_ref())?;
        same("pod network", &self.pod_cidr, wishes.pod_cidr.as_ref())?;
        same("Service network", &self.service_cidr, wishes.service_cidr.as_ref())
    }

    /// Both ports must be free when the daemon starts; a first `up` and every later one ask this.
    pub(crate) fn check_ports(&self) -> Result<(), InstanceError> {
        check_port(self.api_port, "the API server", "--api-port")?;
        check_port(self.kubelet_port, "the kubelet", "--kubelet-port")?;
        Ok(())
    }

    /// Another instance, or a cable, may have come while this one was down. With anything of it in place it was not down.
    pub(crate) fn check_networks(&self) -> Result<(), InstanceError> {
        apart(self.pod_cidr, self.service_cidr)?;
        if cni_services::network::stands(&self.name, &self.bridge).map_err(InstanceError::Look)? {
            return Ok(());
        }
        let routes = crate::cidr::routed();
        for (network, purpose) in [(self.pod_cidr, "pods"), (self.service_cidr, "Services")] {
            if let Some(route) = routes.iter().find(|route| route.network.is_within(network)) {
                return Err(InstanceError::NetworkTaken { network, purpose, link: route.link.clone() });
            }
        }
        Ok(())
    }

    /// The NodePorts that this instance gives first. Instances that run beside each other have different pod networks.
    pub(crate) fn node_ports_first(&self) -> (u16, u16) {
        let size = (NODE_PORTS.1 - NODE_PORTS.0 + 1) / NODE_PORT_PARTS;
        let number = self.pod_cidr.network().to_bits() >> (32 - u32::from(self.pod_cidr.prefix()));
        let part = u16::try_from(number % u32::from(NODE_PORT_PARTS)).unwrap_or_default();
        let first = NODE_PORTS.0 + part * size;
        (first, first + size - 1)
    }

    /// The tenth address of the Service network, as cluster DNS has it everywhere.
    pub(crate) fn dns_ip(&self) -> Ipv4Addr {
        self.service_cidr.nth(10)
    }

    pub(crate) fn cgroup_root(&self) -> String {
        format!("/{}", self.name)
    }

    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{}", self.node_ip, self.api_port)
    }

    /// Whether the node's address is one that Sampan itself put on `lo`, because the host has no other.
    pub(crate) fn owns_node_ip(&self) -> bool {
        self.node_ip == self.pod_cidr.last()
    }
}

/// FNV-1a, folded to 16 bits: a name for a path, not a digest.
fn fold(text: &str) -> u16 {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}

fn host_name() -> Result<String, InstanceError> {
    let name = nix::unistd::gethostname().map_or_else(|_| "node".into(), |name| name.to_string_lossy().to_lowercase());
    let is_valid = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.ends_with(|last: char| last.is_ascii_alphanumeric());
    if is_valid { Ok(name) } else { Err(InstanceError::NodeName { name }) }
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing. On a host without a route the
/// last address of the pod network serves, which no node but the last of 256 would give to a pod; `up` puts it on `lo`, so
/// that pods have something to reach.
fn default_source_address(pod_cidr: Cidr) -> Ipv4Addr {
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // 192.0.2.0/24 is reserved for documentation: only the default route leads there.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match found.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_loopback() && !address.is_unspecified() => address,
        _ => pod_cidr.last(),
    }
}

/// The networks of pods and Services: those wished for, else free ones that are neither anybody's nor each other's.
fn networks(wishes: &Wishes, alone: bool, mut taken: Vec<Cidr>) -> Result<(Cidr, Cidr), InstanceError> {
    taken.extend(wishes.service_cidr);
    let pods = match wishes.pod_cidr {
        Some(cidr) => cidr,
        None => free_network(42, &taken).ok_or(InstanceError::NoNetwork { what: "pods", flag: "--pod-cidr" })?,
    };
    taken.push(pods);
    let services = match wishes.service_cidr {
        Some(cidr) => cidr,
        None => free_network(if alone { 43 } else { pods.network().octets()[1].saturating_add(1) }, &taken)
            .ok_or(InstanceError::NoNetwork { what: "Services", flag: "--service-cidr" })?,
    };
    apart(pods, services)?;
    Ok((pods, services))
}

fn apart(pods: Cidr, services: Cidr) -> Result<(), InstanceError> {
    if pods.overlaps(services) { Err(InstanceError::Overlap { pods, services }) } else { Ok(()) }
}

/// The first free `10.N.0.0/16` from `10.first.0.0/16` on, and from the beginning behind the last.
fn free_network(first: u8, taken: &[Cidr]) -> Option<Cidr> {
    (first..=254)
        .chain(1..first)
        .map(|second| Cidr::v4([10, second, 0, 0], 16))
        .find(|candidate| !taken.iter().any(|t| t.overlaps(*candidate)))
}

fn check_port(port: u16, purpose: &'static str, flag: &'static str) -> Result<u16, InstanceError> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(|_| port).map_err(|source| InstanceError::PortTaken {
        port,
        purpose,
        flag,
        source,
    })
}

fn next_free_port(from: u16) -> u16 {
    (from..u16::MAX).find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok()).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        (directory, layout)
    }

    #[test]
    fn only_root_gets_below_the_directories_also_where_they_were_wider() {
        let (_directory, layout) = layout();
        fs::set_permissions(&layout.data, Permissions::from_mode(0o755)).unwrap();
        layout.create().unwrap();
        for directory in [&layout.data, &layout.run, &layout.config] {
            assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn decided_once() {
        let (_directory, layout) = layout();
        let wishes = Wishes { node_name: Some("n1".into()), ..Wishes::default() };
        let first = Instance::load_or_decide(&layout, &wishes).unwrap();
        let second = Instance::load_or_decide(&layout, &Wishes::default()).unwrap();
        assert_eq!(first, second);
        let other = Wishes { node_name: Some("n2".into()), ..Wishes::default() };
        let error = Instance::load_or_decide(&layout, &other).unwrap_err().to_string();
        assert!(error.contains("made with node name n1, not n2"), "{error}");
        let ports = Wishes { api_port: Some(first.api_port + 1), ..Wishes::default() };
        let moved = Instance::load_or_decide(&layout, &ports).unwrap();
        assert_eq!(moved.api_port, first.api_port + 1);
        assert_eq!(Instance::load(&layout).unwrap(), Some(moved), "the other port is kept");
    }

    #[test]
    fn reads_the_first_record_version() {
        let (_directory, layout) = layout();
        let record = r#"{"version":1,"name":"sampan","node_name":"a","node_ip":"192.0.2.7","api_port":6443,
            "kubelet_port":10250,"pod_cidr":"10.42.0.0/16","service_cidr":"10.43.0.0/16","bridge":"sampan0"}"#;
        fs::write(layout.record(), record).unwrap();
        let loaded = Instance::load(&layout).unwrap().unwrap();
        assert_eq!(loaded.dns_ip(), Ipv4Addr::new(10, 43, 0, 10));
        fs::write(layout.record(), record.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(Instance::load(&layout).unwrap_err().to_string().contains("has version 2"));
    }

    #[test]
    fn hints_name_the_root_that_was_given() {
        let check = |root: Option<&str>, expect: &str| {
            assert_eq!(Layout::new(root.map(PathBuf::from)).unwrap().command("status"), expect);
        };
        check(None, "sampan status");
        check(Some("/srv/one"), "sampan --root /srv/one status");
        check(Some("/srv/it's one"), r"sampan --root '/srv/it'\''s one' status");
    }

    #[test]
    fn a_first_decision_that_failed_is_taken_back() {
        let (_directory, layout) = layout();
        let wishes = Wishes { node_name: Some("n1".into()), ..Wishes::default() };
        Instance::load_or_decide(&layout, &wishes).unwrap();
        fs::write(layout.data.join("state.db"), "").unwrap();
        Instance::take_back(&layout).unwrap();
        assert_eq!(Instance::load(&layout).unwrap(), None);
        assert!(!layout.data.join("state.db").exists());
        Instance::take_back(&layout).unwrap();
    }

    #[test]
    fn two_roots_two_names() {
        let names: Vec<String> = ["/a", "/b"].map(|root| Layout::new(Some(root.into())).unwrap().name()).into();
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|name| format!("{name}0").len() <= 15));
        assert_eq!(Layout::new(None).unwrap().name(), "sampan");
    }

    #[test]
    fn a_taken_port_is_named() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = check_port(port, "the API server", "--api-port").unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--api-port"), "{error}");
    }

    #[test]
    fn instances_begin_with_node_ports_of_their_own() {
        let (_directory, layout) = layout();
        let mut instance = Instance::load_or_decide(&layout, &Wishes::default()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for second in [42, 44, 46, 48, 50, 52] {
            instance.pod_cidr = Cidr::v4([10, second, 0, 0], 16);
            let (first, last) = instance.node_ports_first();
            assert!(NODE_PORTS.0 <= first && first < last && last <= NODE_PORTS.1, "{first}-{last}");
            assert!(seen.insert(first), "10.{second}.0.0/16 begins where another does");
        }
    }

    #[test]
    fn pods_and_services_never_share_a_network() {
        let cidr = |second: u8| Cidr::v4([10, second, 0, 0], 16);
        let check = |pods: Option<u8>, services: Option<u8>, taken: &[u8], alone: bool, expect: Option<(u8, u8)>| {
            let wishes = Wishes { pod_cidr: pods.map(cidr), service_cidr: services.map(cidr), ..Wishes::default() };
            let found = networks(&wishes, alone, taken.iter().map(|second| cidr(*second)).collect()).ok();
            assert_eq!(found, expect.map(|(pods, services)| (cidr(pods), cidr(services))), "{wishes:?} {taken:?}");
        };
        check(None, None, &[], true, Some((42, 43)));
        // A host with k3s, or any other 10.42.0.0/16.
        check(None, None, &[42], true, Some((43, 44)));
        check(None, None, &[42, 43], true, Some((44, 45)));
        check(None, None, &[43], true, Some((42, 44)));
        check(None, None, &[42], false, Some((43, 44)));
        check(None, Some(42), &[], true, Some((43, 42)));
        check(Some(43), None, &[], true, Some((43, 44)));
        check(Some(254), None, &[], false, Some((254, 1)));
        check(Some(50), Some(50), &[], true, None);
    }

    #[test]
    fn networks_in_use_are_avoided() {
        let taken = [Cidr::v4([10, 42, 3, 0], 24), Cidr::v4([10, 43, 0, 0], 16)];
        assert_eq!(free_network(42, &taken), Some(Cidr::v4([10, 44, 0, 0], 16)));
    }
}
