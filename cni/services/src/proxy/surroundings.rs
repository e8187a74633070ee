//! What else has addresses and ports on this node, and which ways into a Service would take traffic from it.
//!
//! [`Surroundings::look`] asks the kernel; deciding is pure. What a Service may not have: an address of the cluster or of
//! a machine's inside as an external address, and a port that the node's own parts listen on. Node ports and external
//! addresses are looked at when their Service is planned; who begins to listen later is seen at the next look.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cni_netlink::Rtnetlink;
use cni_netlink::listening::{Transport, is_shadowed, listening};
use tracing::warn;

use super::Settings;
use super::elements::may_be_endpoint;

/// The node as it was when it was looked at.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Addresses of its links.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Where its processes listen.
    pub sockets: Vec<(Transport, SocketAddr)>,
}

/// Why a way in is not given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// An external address that is a Service's, a pod's or the DNS server's.
    Cluster(Ipv4Addr),
    /// An external address that means the machine itself, its link, or everybody.
    Special(Ipv4Addr),
    /// The node listens there.
    Listening {
        /// The external address, or none for a node port.
        address: Option<Ipv4Addr>,
        /// The port.
        port: u16,
        /// Who listens.
        socket: SocketAddr,
    },
}

impl Conflict {
    /// Whether looking again may find it gone.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Listening { .. })
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(address) => {
                write!(f, "external address {address} belongs to the cluster: no Service gets another's traffic")
            }
            Self::Special(address) => write!(f, "external address {address} is no address that others can reach"),
            Self::Listening { address: None, port, socket } => {
                write!(f, "node port {port} is one that this node itself listens on ({socket}): choose another")
            }
            Self::Listening { address: Some(address), port, socket } => {
                write!(f, "{address}:{port} is where this node itself listens ({socket}): choose another port")
            }
        }
    }
}

impl Surroundings {
    /// Looks. What cannot be seen is told and counts as absent; [`Settings::reserved`] holds all the same.
    #[must_use]
    pub fn look() -> Self {
        let mut found = Self::default();
        match Rtnetlink::open().and_then(|mut socket| socket.addresses(0)) {
            Ok(addresses) => found.addresses.extend(addresses.into_iter().filter_map(|(address, _)| match address {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            })),
            Err(error) => warn!(error = &error as &dyn std::error::Error, "this node's addresses cannot be listed"),
        }
        for transport in [Transport::Tcp, Transport::Udp] {
            match listening(transport) {
                Ok(sockets) => found.sockets.extend(sockets.into_iter().map(|socket| (transport, socket))),
                Err(error) => warn!(error = &error as &dyn std::error::Error, "listening sockets cannot be listed"),
            }
        }
        found
    }

    pub(super) fn external(&self, settings: &Settings, address: Ipv4Addr, protocol: u8, port: u16) -> Option<Conflict> {
        let ip = IpAddr::V4(address);
        if settings.service_cidr.contains(ip) || settings.cluster_cidr.contains(ip) || settings.dns_address == ip {
            return Some(Conflict::Cluster(address));
        }
        if !may_be_endpoint(address) {
            return Some(Conflict::Special(address));
        }
        let is_own = self.addresses.contains(&address) || settings.node_ips.contains(&ip);
        let socket = is_own.then(|| self.listener(settings, Some(ip), protocol, port)).flatten()?;
        Some(Conflict::Listening { address: Some(address), port, socket })
    }

    pub(super) fn node_port(&self, settings: &Settings, protocol: u8, port: u16) -> Option<Conflict> {
        let socket = self.listener(settings, None, protocol, port)?;
        Some(Conflict::Listening { address: None, port, socket })
    }

    fn listener(&self, settings: &Settings, at: Option<IpAddr>, protocol: u8, port: u16) -> Option<SocketAddr> {
        let transport = Transport::of(protocol);
        let found = self.sockets.iter().filter(|(of, _)| Some(*of) == transport).map(|(_, socket)| socket);
        let own = settings.reserved.iter().filter(|_| transport.is_some());
        own.chain(found).find(|socket| is_shadowed(socket, at, port)).copied()
    }
}
