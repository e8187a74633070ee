//! Changes to links, addresses and routes, collected into one request.
//!
//! Names every change in words, which become the error message when the kernel refuses it.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Outgoing, Route, encode};

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const MAIN_TABLE: u8 = 254;

const GONE: &[i32] = &[libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL];
const THERE: &[i32] = &[libc::EEXIST];

/// A pair of links, one end here and one end in another namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Bridge to make this end a port of.
    pub bridge: Option<u32>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Namespace of the other end.
    pub peer_namespace: BorrowedFd<'a>,
    /// Hardware address of the other end; the kernel chooses otherwise.
    pub peer_mac: Option<[u8; 6]>,
    /// MTU of both ends; the kernel's default otherwise.
    pub mtu: Option<u32>,
}

/// Settings of a bridge's port; `None` leaves one as it is.
#[derive(Debug, Default, Clone, Copy)]
pub struct PortChange {
    /// Send frames back out of the port they came from.
    pub hairpin: Option<bool>,
    /// No traffic to other isolated ports.
    pub isolated: Option<bool>,
}

/// A route to add.
#[derive(Debug, Clone)]
pub struct NewRoute {
    /// Destination network.
    pub destination: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Next hop; without one the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing link.
    pub link: u32,
    /// Source address for connections that have none.
    pub source: Option<IpAddr>,
    /// Table; the main one otherwise.
    pub table: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// MTU.
    pub mtu: Option<u32>,
    /// Advertised MSS.
    pub advmss: Option<u32>,
    /// Scope; chosen from `gateway` otherwise.
    pub scope: Option<u8>,
    /// Packets are refused instead of sent.
    pub is_unreachable: bool,
}

impl NewRoute {
    /// A route with no options.
    #[must_use]
    pub fn new(destination: IpAddr, prefix: u8, gateway: Option<IpAddr>, link: u32) -> Self {
        Self {
            destination,
            prefix,
            gateway,
            link,
            source: None,
            table: None,
            priority: None,
            mtu: None,
            advmss: None,
            scope: None,
            is_unreachable: false,
        }
    }

    /// Refuses what no better route takes, at once instead of by way of the default route. Any route to the same network is
    /// better.
    #[must_use]
    pub fn unreachable(destination: IpAddr, prefix: u8) -> Self {
        Self { priority: Some(u32::MAX), is_unreachable: true, ..Self::new(destination, prefix, None, 0) }
    }
}

/// Changes in the order they are to happen.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) outgoing: Outgoing<Route>,
}

impl Batch {
    /// A bridge, up; one that is there is fine.
    pub fn create_bridge(&mut self, name: &str, mtu: Option<u32>, mac: Option<[u8; 6]>) -> &mut Self {
        let mut message = up();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        // Given at creation, so that the bridge does not take over the smallest address of its ports.
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let message = RouteNetlinkMessage::NewLink(message);
        self.push(format!("create bridge {name}"), &message, NLM_F_CREATE | NLM_F_EXCL, THERE)
    }

    /// A veth pair, this end up. The other end cannot be brought up here: while it is created it has no peer yet, and
    /// the driver answers ENOTCONN.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> &mut Self {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(veth.peer_name.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer_namespace.as_raw_fd()));
        peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        peer.attributes.extend(veth.peer_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut message = up();
        message.attributes.push(LinkAttribute::IfName(veth.name.to_owned()));
        message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(veth.bridge.map(LinkAttribute::Controller));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let label = format!("create veth pair {} and {}", veth.name, veth.peer_name);
        self.push(label, &RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &[])
    }

    /// Settings of a bridge's port, by name: it may have been created in this same batch.
    pub fn set_port(&mut self, name: &str, change: PortChange) -> &mut Self {
        self.set_labelled_port(name, change, None)
    }

    /// The same, and a remark (`IFLA_IFALIAS`, 255 bytes at most) that stays with the link.
    pub fn set_labelled_port(&mut self, name: &str, change: PortChange, alias: Option<&str>) -> &mut Self {
        let mut settings = Vec::new();
        settings.extend(change.hairpin.map(InfoBridgePort::HairpinMode));
        settings.extend(change.isolated.map(InfoBridgePort::Isolated));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)),
        ]));
        self.push(format!("set bridge port {name}"), &RouteNetlinkMessage::NewLink(message), 0, &[])
    }

    /// Makes a link a port of a bridge.
    pub fn attach(&mut self, index: u32, bridge: u32) -> &mut Self {
        let mut message = up();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.push(format!("attach link {index} to bridge {bridge}"), &RouteNetlinkMessage::SetLink(message), 0, GONE)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) -> &mut Self {
        let mut message = up();
        message.header.index = index;
        self.push(format!("bring link {index} up"), &RouteNetlinkMessage::SetLink(message), 0, &[])
    }

    /// Brings a link down; one that is gone is fine.
    pub fn set_down(&mut self, index: u32) -> &mut Self {
        let mut message = up();
        message.header.index = index;
        message.header.flags = LinkFlags::empty();
        self.push(format!("bring link {index} down"), &RouteNetlinkMessage::SetLink(message), 0, GONE)
    }

    /// Promiscuous mode on.
    pub fn set_promiscuous(&mut self, index: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Promisc;
        message.header.change_mask = LinkFlags::Promisc;
        self.push(format!("make link {index} promiscuous"), &RouteNetlinkMessage::SetLink(message), 0, &[])
    }

    /// MTU of a link.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.push(format!("set MTU {mtu} on link {index}"), &RouteNetlinkMessage::SetLink(message), 0, &[])
    }

    /// Deletes a link by name; one that is gone is fine.
    pub fn delete_link(&mut self, name: &str) -> &mut Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.push(format!("delete link {name}"), &RouteNetlinkMessage::DelLink(message), 0, GONE)
    }

    /// An address; one that is there is fine. IPv6 skips duplicate detection: the range is ours.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> &mut Self {
        let mut message = address_message(index, address, prefix);
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let label = format!("add address {address}/{prefix} to link {index}");
        self.push(label, &RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, THERE)
    }

    /// A single address that is only for this machine: the kernel does not choose it as a source.
    pub fn add_host_address(&mut self, index: u32, address: IpAddr) -> &mut Self {
        let mut message = address_message(index, address, if address.is_ipv4() { 32 } else { 128 });
        message.header.scope = AddressScope::Host;
        let label = format!("add address {address} to link {index}");
        self.push(label, &RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, THERE)
    }

    /// Removes an address; one that is gone is fine.
    pub fn delete_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> &mut Self {
        let message = address_message(index, address, prefix);
        let label = format!("remove address {address}/{prefix} from link {index}");
        self.push(label, &RouteNetlinkMessage::DelAddress(message), 0, GONE)
    }

    /// A route; one that is there is fine.
    pub fn add_route(&mut self, route: &NewRoute) -> &mut Self {
        self.route(route, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// A route in place of any other to the same destination with the same metric.
    pub fn replace_route(&mut self, route: &NewRoute) -> &mut Self {
        self.route(route, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; one that is gone is fine.
    pub fn delete_route(&mut self, route: &NewRoute) -> &mut Self {
        let label = format!("remove route {}/{}", route.destination, route.prefix);
        self.push(label, &RouteNetlinkMessage::DelRoute(route_message(route)), 0, GONE)
    }

    /// A permanent neighbour entry, in place of any other.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> &mut Self {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let label = format!("add neighbour {address} to link {index}");
        self.push(label, &RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, &[])
    }

    /// A static entry of a forwarding table: frames for `mac` leave by `index` (towards `remote`, on a VXLAN link).
    pub fn add_forwarding(&mut self, index: u32, mac: [u8; 6], remote: Option<IpAddr>) -> &mut Self {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message.attributes.extend(remote.map(|remote| {
            NeighbourAttribute::Destination(match remote {
                IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
            })
        }));
        let label = format!("add forwarding entry to link {index}");
        self.push(label, &RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, &[])
    }

    fn route(&mut self, route: &NewRoute, flags: u16) -> &mut Self {
        let label = format!("add route {}/{}", route.destination, route.prefix);
        self.push(label, &RouteNetlinkMessage::NewRoute(route_message(route)), flags, THERE)
    }

    fn push(
        &mut self,
        label: String,
        message: &RouteNetlinkMessage,
        flags: u16,
        tolerated: &'static [i32],
    ) -> &mut Self {
        let (kind, payload) = encode(message);
        self.outgoing.push(label, kind, flags, &payload, tolerated);
        self
    }
}

fn up() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.header.scope = if address.is_loopback() { AddressScope::Host } else { AddressScope::Universe };
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

fn route_message(route: &NewRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination);
    header.destination_prefix_length = route.prefix;
    header.protocol = RouteProtocol::Boot;
    header.kind = if route.is_unreachable { RouteType::Unreachable } else { RouteType::Unicast };
    header.table = match route.table.map(u8::try_from) {
        None => MAIN_TABLE,
        Some(Ok(table)) => table,
        // RT_TABLE_UNSPEC: the attribute says which.
        Some(Err(_)) => 0,
    };
    header.scope = match route.scope {
        Some(scope) => RouteScope::from(scope),
        None if route.gateway.is_some() || route.is_unreachable || route.destination.is_ipv6() => RouteScope::Universe,
        None => RouteScope::Link,
    };
    let as_address = |address: IpAddr| match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    if route.prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(as_address(route.destination)));
    }
    if !route.is_unreachable {
        message.attributes.push(RouteAttribute::Oif(route.link));
    }
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(as_address(gateway))));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(as_address(source))));
    message.attributes.extend(route.table.map(RouteAttribute::Table));
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}
