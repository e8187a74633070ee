//! A node of one's own: a namespace with a bridge, containers on it, and a world outside.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use cni_netlink::rtnetlink::{NewRoute, PortChange, Veth};
use cni_netlink::{Batch, Namespace, Rtnetlink};
use cni_services::catalog::{Catalog, ServiceName};
use cni_services::proxy::{Proxy, Settings};

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
const WAIT: Duration = Duration::from_secs(5);

pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) outside: Namespace,
}

pub(crate) fn settings() -> Settings {
    Settings {
        table: "sampan".into(),
        bridge: "sampan0".into(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        dns_address: DNS.into(),
        node_name: "here".into(),
        node_ips: vec![NODE.into()],
        reserved: vec!["0.0.0.0:30643".parse().unwrap()],
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let (namespace, outside) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let node = Self { namespace, outside };
        let mut host = Rtnetlink::open_in(&node.namespace).unwrap();
        host.apply(Batch::default().set_up(1).create_bridge("sampan0", None, Some([2, 0, 0, 0, 0, 1]))).unwrap();
        let bridge = host.link("sampan0").unwrap().unwrap();
        host.apply(Batch::default().add_address(bridge.index, GATEWAY.into(), 24)).unwrap();
        node.connect(&node.outside, "up0", None, OUTSIDE, None);
        let up0 = host.link("up0").unwrap().unwrap();
        host.apply(Batch::default().add_address(up0.index, NODE.into(), 24)).unwrap();
        // The outside knows the way to cluster IPs and pods, so that only our rules decide what it can reach.
        let mut out = Rtnetlink::open_in(&node.outside).unwrap();
        let eth0 = out.link("eth0").unwrap().unwrap().index;
        let to = |network: [u8; 4]| NewRoute::new(Ipv4Addr::from(network).into(), 16, Some(NODE.into()), eth0);
        out.apply(Batch::default().add_route(&to([10, 43, 0, 0])).add_route(&to([10, 42, 0, 0]))).unwrap();
        node
    }

    /// A container at `10.42.0.<last>`.
    pub(crate) fn pod(&self, last: u8) -> Namespace {
        let pod = Namespace::create().unwrap();
        self.connect(&pod, &format!("veth{last}"), Some("sampan0"), Ipv4Addr::new(10, 42, 0, last), Some(GATEWAY));
        pod
    }

    pub(crate) fn connect(
        &self,
        inner: &Namespace,
        name: &str,
        bridge: Option<&str>,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) {
        let mut host = Rtnetlink::open_in(&self.namespace).unwrap();
        let bridge = bridge.map(|bridge| host.link(bridge).unwrap().unwrap().index);
        let mut batch = Batch::default();
        let peer_namespace = inner.as_fd();
        batch.create_veth(&Veth { name, bridge, peer_name: "eth0", peer_namespace, peer_mac: None, mtu: None });
        if bridge.is_some() {
            batch.set_port(name, PortChange { hairpin: Some(true), isolated: None });
        }
        host.apply(&batch).unwrap();
        let mut inside = Rtnetlink::open_in(inner).unwrap();
        let eth0 = inside.link("eth0").unwrap().unwrap().index;
        let mut batch = Batch::default();
        batch.set_up(1).set_up(eth0).add_address(eth0, address.into(), 24);
        if let Some(gateway) = gateway {
            batch.add_route(&NewRoute::new(Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateway.into()), eth0));
        }
        inside.apply(&batch).unwrap();
    }

    /// What `run` does first.
    pub(crate) fn prepare(&self) {
        let settings = settings();
        let prepare = || {
            cni_netlink::sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
        };
        self.namespace.within(prepare).unwrap();
        let cidr = settings.service_cidr;
        let route = NewRoute::new(cidr.first(), cidr.prefix(), None, 1);
        Rtnetlink::open_in(&self.namespace).unwrap().apply(Batch::default().add_route(&route)).unwrap();
    }

    /// Takes these Services from the catalog into the proxy and the kernel.
    pub(crate) fn apply(&self, proxy: &mut Proxy, catalog: &Catalog, names: &[ServiceName]) {
        let work = || {
            for name in names {
                proxy.set(name, catalog.get(name));
            }
            proxy.apply()
        };
        self.namespace.within(work).unwrap().unwrap();
    }
}

/// Answers each connection with `label` and the address it sees, then echoes.
pub(crate) fn serve_tcp(namespace: &Namespace, port: u16, label: &'static str) {
    let listener = namespace.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { break };
            std::thread::spawn(move || {
                let Ok(peer) = connection.peer_addr() else { return };
                let _ = connection.write_all(format!("{label} {}\n", peer.ip()).as_bytes());
                let mut byte = [0];
                while connection.read_exact(&mut byte).is_ok() && connection.write_all(&byte).is_ok() {}
            });
        }
    });
}

pub(crate) fn connect(namespace: &Namespace, target: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let target = SocketAddr::from((IpAddr::from(target.0), target.1));
    let stream = namespace.within(|| TcpStream::connect_timeout(&target, WAIT)).unwrap()?;
    stream.set_read_timeout(Some(WAIT))?;
    Ok(stream)
}

/// The greeting of whoever answers.
pub(crate) fn ask_tcp(namespace: &Namespace, target: (Ipv4Addr, u16)) -> io::Result<String> {
    greeting(&mut connect(namespace, target)?)
}

pub(crate) fn greeting(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.push(byte[0]);
    }
}

/// Whether the connection still carries a byte there and back.
pub(crate) fn echo(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok() && byte == *b"x"
}

pub(crate) fn serve_udp(namespace: &Namespace, port: u16, label: &'static str) {
    let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{label} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

pub(crate) fn udp_client(namespace: &Namespace, target: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = namespace.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    socket.connect(target).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

pub(crate) fn ask_udp(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
