//! A host of one's own: a network namespace that plays the node, one that plays the world outside, and containers.
//!
//! Everything dies with the value: namespaces have no name but the containers', which are unpinned on drop.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use cni_netlink::rtnetlink::{NewRoute, Veth};
use cni_netlink::{Batch, Namespace, Rtnetlink};
use cni_spec::invoke::{self, InvokeError};
use cni_spec::{AddResult, Attachment, ConfigList, Runtime};
use serde_json::{Map, Value, json};

pub(crate) const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) directory: tempfile::TempDir,
}

/// A container's namespace, pinned by path as a runtime does.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) runtime: Runtime,
    path: PathBuf,
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Namespace::unpin(&self.path);
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let (namespace, outside) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let mut at_host = Rtnetlink::open_in(&namespace).unwrap();
        let veth = Veth {
            name: "up0",
            bridge: None,
            peer_name: "eth0",
            peer_namespace: outside.as_fd(),
            peer_mac: None,
            mtu: None,
        };
        at_host.apply(Batch::default().set_up(1).create_veth(&veth)).unwrap();
        let up0 = at_host.link("up0").unwrap().unwrap();
        let default = NewRoute::new(Ipv4Addr::UNSPECIFIED.into(), 0, Some(OUTSIDE.into()), up0.index);
        let mut batch = Batch::default();
        batch.add_address(up0.index, HOST_OUTSIDE.into(), 24).add_route(&default);
        at_host.apply(&batch).unwrap();
        let mut at_outside = Rtnetlink::open_in(&outside).unwrap();
        let eth0 = at_outside.link("eth0").unwrap().unwrap();
        let mut batch = Batch::default();
        batch.set_up(1).set_up(eth0.index).add_address(eth0.index, OUTSIDE.into(), 24);
        at_outside.apply(&batch).unwrap();

        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("bin")).unwrap();
        for name in ["bridge", "host-local", "loopback", "portmap", "sampan-cni"] {
            let link = directory.path().join("bin").join(name);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sampan-cni"), link).unwrap();
        }
        Self { namespace, outside, directory }
    }

    pub(crate) fn bin_dirs(&self) -> Vec<PathBuf> {
        vec![self.directory.path().join("bin")]
    }

    /// The list a runtime would have: gateway, masquerade, hairpin, a /24 for containers.
    pub(crate) fn list(&self, version: &str) -> ConfigList {
        self.list_with(version, &json!({}))
    }

    pub(crate) fn list_with(&self, version: &str, changes: &Value) -> ConfigList {
        let mut bridge = json!({
            "type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipMasq": true, "mtu": 1450,
            "hairpinMode": true, "clusterCIDR": ["10.42.0.0/16"], "capabilities": {"mac": true, "ips": true},
            "ipam": {
                "type": "host-local", "dataDir": self.directory.path().join("leases"),
                "ranges": [[{"subnet": "10.42.0.0/24"}]],
            },
        });
        for (key, value) in changes.as_object().unwrap() {
            bridge[key] = value.clone();
        }
        let list = json!({"cniVersion": version, "name": "test", "plugins": [
            bridge, {"type": "portmap", "capabilities": {"portMappings": true}}]});
        ConfigList::parse(list.to_string().as_bytes()).unwrap()
    }

    /// A second network of the node, as another instance's would be.
    pub(crate) fn another_list(&self) -> ConfigList {
        let ipam =
            json!({"type": "host-local", "dataDir": self.directory.path().join("leases"), "subnet": "10.44.0.0/24"});
        let list = json!({"cniVersion": "1.0.0", "name": "another", "plugins": [
            {"type": "bridge", "bridge": "br1", "isDefaultGateway": true, "table": "another", "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}, "table": "another"}]});
        ConfigList::parse(list.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn pod(&self, id: &str) -> Pod {
        self.pod_with(id, Map::new())
    }

    pub(crate) fn pod_with(&self, id: &str, capabilities: Map<String, Value>) -> Pod {
        let path = self.directory.path().join(id);
        let namespace = Namespace::create().unwrap();
        namespace.pin(&path).unwrap();
        let runtime = Runtime {
            container_id: id.into(),
            netns: Some(path.clone()),
            if_name: "eth0".into(),
            args: vec![("K8S_POD_NAME".into(), id.into())],
            capabilities,
            bin_dirs: self.bin_dirs(),
            timeout: Duration::from_secs(30),
        };
        Pod { namespace, runtime, path }
    }

    pub(crate) fn add(&self, list: &ConfigList, pod: &Pod) -> Result<AddResult, InvokeError> {
        self.namespace.within(|| invoke::add(list, &pod.runtime)).unwrap()
    }

    pub(crate) fn del(&self, list: &ConfigList, pod: &Pod, result: Option<&AddResult>) {
        self.namespace.within(|| invoke::del(list, &pod.runtime, result)).unwrap().unwrap();
    }

    pub(crate) fn check(&self, list: &ConfigList, pod: &Pod, result: &AddResult) -> Result<(), InvokeError> {
        self.namespace.within(|| invoke::check(list, &pod.runtime, result)).unwrap()
    }

    pub(crate) fn gc(&self, list: &ConfigList, valid: &[Attachment]) {
        let dirs = self.bin_dirs();
        self.namespace.within(|| invoke::gc(list, valid, &dirs, Duration::from_secs(30))).unwrap().unwrap();
    }

    /// Names of the host's links but the fixed ones.
    pub(crate) fn veths(&self) -> Vec<String> {
        let links = Rtnetlink::open_in(&self.namespace).unwrap().links().unwrap();
        links.into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect()
    }

    /// Addresses that are given in the network `test`.
    pub(crate) fn leases(&self) -> Vec<IpAddr> {
        let Ok(entries) = std::fs::read_dir(self.directory.path().join("leases/test")) else { return Vec::new() };
        entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
    }
}

pub(crate) fn address(result: &AddResult) -> IpAddr {
    result.ips[0].address.address()
}

/// A server in `namespace` that answers each connection with the address it sees.
pub(crate) fn serve_tcp(namespace: &Namespace, port: u16) {
    let listener = namespace.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { break };
            let Ok(peer) = connection.peer_addr() else { continue };
            let _ = connection.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

/// The address the server saw, or why there is no connection.
pub(crate) fn ask_tcp(namespace: &Namespace, target: (IpAddr, u16)) -> std::io::Result<String> {
    let connect = || TcpStream::connect_timeout(&SocketAddr::from(target), Duration::from_secs(5));
    let mut stream = namespace.within(connect).unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok(seen)
}

/// A server in `namespace` that answers each datagram with its own name.
pub(crate) fn serve_udp_as(namespace: &Namespace, port: u16, name: &'static str) {
    let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// The same with one datagram each way.
pub(crate) fn serve_udp(namespace: &Namespace, port: u16) {
    let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

pub(crate) fn ask_udp(namespace: &Namespace, target: (IpAddr, u16)) -> std::io::Result<String> {
    let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap()?;
    say_udp(&socket, target)
}

pub(crate) fn say_udp(socket: &UdpSocket, target: (IpAddr, u16)) -> std::io::Result<String> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"?", SocketAddr::from(target))?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
