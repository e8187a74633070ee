//! Links, addresses, routes, neighbours and forwarding entries: questions one by one, changes in batches.
//!
//! Messages come from `netlink-packet-route`. A [`Batch`] is one system call for any number of changes; the kernel
//! executes them in order and does not stop at a failure, so a caller that fails undoes all of what it asked for.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoBridgePort, InfoPortData};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use crate::Namespace;
use crate::namespace::NamespaceError;
use crate::socket::{NLM_F_DUMP, Outgoing, Received, Route, Socket, SocketError};

mod batch;
pub use batch::{Batch, NewRoute, PortChange, Veth};

/// Why a question or a change failed.
#[derive(Debug, thiserror::Error)]
pub enum RtnetlinkError {
    /// The transport, or a refusal.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Entering the namespace to open a socket there.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// An answer that cannot be read.
    #[error("read the kernel's answer to `{0}`")]
    Decode(String),
}

impl RtnetlinkError {
    /// The errno of a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(error) => error.errno(),
            _ => None,
        }
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub is_up: bool,
    /// Promiscuous by request (`IFF_PROMISC`).
    pub is_promiscuous: bool,
    /// `bridge`, `veth`, ...; empty for plain devices.
    pub kind: String,
    /// Index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Index of the other end of a veth.
    pub peer: Option<u32>,
    /// Hairpin mode, for ports of a bridge.
    pub hairpin: Option<bool>,
    /// The remark that its maker left on it.
    pub alias: Option<String>,
}

/// A route as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRoute {
    /// Destination with prefix length; `None` for the default route.
    pub destination: Option<IpAddr>,
    /// Length of the destination's prefix.
    pub prefix: u8,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing link.
    pub link: Option<u32>,
    /// Table.
    pub table: u32,
    /// IPv6 rather than IPv4.
    pub is_ipv6: bool,
}

/// A socket to rtnetlink in one namespace.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket<Route>,
}

impl Rtnetlink {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, RtnetlinkError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// In another namespace.
    ///
    /// # Errors
    /// No socket, or the namespace cannot be entered.
    pub fn open_in(namespace: &Namespace) -> Result<Self, RtnetlinkError> {
        namespace.within(Self::open)?
    }

    /// Executes all changes; the first refusal that is not tolerated is the error.
    ///
    /// # Errors
    /// Transport errors and refusals.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), RtnetlinkError> {
        Ok(self.socket.apply(&batch.outgoing)?)
    }

    /// The link of this name.
    ///
    /// # Errors
    /// Transport errors; a link that does not exist is `None`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, RtnetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find_link(&format!("look for link {name}"), message)
    }

    /// The link with this index.
    ///
    /// # Errors
    /// Transport errors; a link that does not exist is `None`.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, RtnetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(&format!("look for link {index}"), message)
    }

    /// All links.
    ///
    /// # Errors
    /// Transport errors.
    pub fn links(&mut self) -> Result<Vec<Link>, RtnetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.ask("list links", &message, NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// Addresses with prefix lengths, of one link or of all (index 0).
    ///
    /// # Errors
    /// Transport errors.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<(IpAddr, u8)>, RtnetlinkError> {
        let answers = self.ask("list addresses", &RouteNetlinkMessage::GetAddress(Default::default()), NLM_F_DUMP)?;
        let mut found = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            if index != 0 && message.header.index != index {
                continue;
            }
            // IFA_LOCAL where there is one: on point-to-point links IFA_ADDRESS is the other end.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            found.extend(local.or(any).map(|address| (address, message.header.prefix_len)));
        }
        Ok(found)
    }

    /// All unicast routes of all tables but the local one.
    ///
    /// # Errors
    /// Transport errors.
    pub fn routes(&mut self) -> Result<Vec<FoundRoute>, RtnetlinkError> {
        let answers = self.ask("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_route).filter(|route| route.table != LOCAL_TABLE).collect())
    }

    fn find_link(&mut self, label: &str, message: LinkMessage) -> Result<Option<Link>, RtnetlinkError> {
        match self.ask(label, &RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &mut self,
        label: &str,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, RtnetlinkError> {
        let (kind, payload) = encode(message);
        let received = self.socket.request(label, kind, flags, &payload)?;
        received.iter().map(|answer| decode(answer).ok_or_else(|| RtnetlinkError::Decode(label.to_owned()))).collect()
    }
}

const LOCAL_TABLE: u32 = 255;

/// A unicast, locally administered hardware address that follows from a link's name: a bridge that is made again has the one
/// that its ports' neighbours still remember. FNV-1a; a bridge shares its network with nobody's of the same name.
#[must_use]
pub fn stable_mac(name: &str) -> [u8; 6] {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let [a, b, c, d, e, ..] = name.bytes().fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes();
    [0x0a, a, b, c, d, e]
}

/// Message type and payload, as the framing of [`Outgoing`] wants them.
pub(crate) fn encode(message: &RouteNetlinkMessage) -> (u16, Vec<u8>) {
    let mut payload = vec![0; message.buffer_len()];
    message.emit(&mut payload);
    (netlink_packet_core::NetlinkSerializable::message_type(message), payload)
}

pub(crate) fn decode(received: &Received) -> Option<RouteNetlinkMessage> {
    let mut bytes = vec![0; 16];
    bytes.extend_from_slice(&received.payload);
    let length = u32::try_from(bytes.len()).ok()?;
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(length);
    header.set_message_type(received.kind);
    match NetlinkMessage::deserialize(&bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

fn as_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| read_info(&mut link, info)),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => link.kind = "bridge".into(),
        LinkInfo::Kind(InfoKind::Veth) => link.kind = "veth".into(),
        LinkInfo::Kind(other) => link.kind = other.to_string(),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            link.hairpin = settings.into_iter().find_map(|setting| match setting {
                InfoBridgePort::HairpinMode(on) => Some(on),
                _ => None,
            });
        }
        _ => {}
    }
}

fn as_route(message: RouteNetlinkMessage) -> Option<FoundRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let mut route = FoundRoute {
        destination: None,
        prefix: message.header.destination_prefix_length,
        gateway: None,
        link: None,
        table: u32::from(message.header.table),
        is_ipv6: message.header.address_family == netlink_packet_route::AddressFamily::Inet6,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = as_ip(&address),
            RouteAttribute::Gateway(address) => route.gateway = as_ip(&address),
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Table(table) => route.table = table,
            _ => {}
        }
    }
    Some(route)
}

fn as_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
