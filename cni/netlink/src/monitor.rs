//! Hearing of changes that others make: nf_tables objects, links, addresses, routes.
//!
//! Never blocks: whoever waits, waits for the descriptor to become readable, and reads until there is nothing more. What
//! was lost (a queue that overran) is told as [`Heard::Lost`], so that the reader looks for itself.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute};

use crate::attributes::{self, read_text};
use crate::nft::Family;
use crate::rtnetlink::decode;
use crate::socket::{Netfilter, Received, Route, Socket, SocketError};

/// linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_SUBSYSTEM: u16 = 10;
/// linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;

/// What one read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<T> {
    /// These, in order.
    Changes(Vec<T>),
    /// Some were lost.
    Lost,
}

/// The kind of thing in nf_tables that came, changed or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names nft uses")]
pub enum Object {
    Table,
    Chain,
    Rule,
    Set,
    Element,
    Other,
}

/// One change of nf_tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    /// Of what.
    pub object: Object,
    /// It went.
    pub is_removal: bool,
    /// Family of its table, as the kernel numbers it.
    pub family: u8,
    /// Name of its table; empty for what has none.
    pub table: String,
}

impl TableChange {
    /// Whether it is about this table.
    #[must_use]
    pub fn is_of(&self, family: Family, table: &str) -> bool {
        self.family == family.number() && self.table == table
    }
}

/// One thing of the node's network that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// A link.
    Link(String),
    /// An address of the link with this index.
    Address(u32, IpAddr),
    /// A route to this network; `None` is the default route.
    Route(Option<IpAddr>, u8),
}

/// Hears of every change of nf_tables in the namespace it was opened in.
#[derive(Debug)]
pub struct TableMonitor {
    socket: Socket<Netfilter>,
}

impl TableMonitor {
    /// From now on.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::subscribe(&[NFNLGRP_NFTABLES])? })
    }

    /// What came; `None` when there is nothing now.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn hear(&mut self) -> Result<Option<Heard<TableChange>>, SocketError> {
        hear(&mut self.socket, table_change)
    }
}

impl AsRawFd for TableMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl AsFd for TableMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Hears of links, IPv4 addresses and IPv4 routes that go.
#[derive(Debug)]
pub struct RouteMonitor {
    socket: Socket<Route>,
}

impl RouteMonitor {
    /// From now on.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::subscribe(&[RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE])? })
    }

    /// What came; `None` when there is nothing now.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn hear(&mut self) -> Result<Option<Heard<Gone>>, SocketError> {
        hear(&mut self.socket, gone)
    }
}

impl AsRawFd for RouteMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl AsFd for RouteMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn hear<P: crate::socket::Protocol, T>(
    socket: &mut Socket<P>,
    read: impl Fn(&Received) -> Option<T>,
) -> Result<Option<Heard<T>>, SocketError> {
    match socket.heard() {
        Ok(None) => Ok(None),
        Ok(Some(messages)) => Ok(Some(Heard::Changes(messages.iter().filter_map(read).collect()))),
        // netlink(7): the socket's queue overran, and goes on from here. A datagram that cannot be cut is lost as well.
        Err(SocketError::Receive(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Some(Heard::Lost)),
        Err(SocketError::Framing) => Ok(Some(Heard::Lost)),
        Err(SocketError::Receive(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}

/// linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`; the table's name is attribute 1 of all of them.
fn table_change(message: &Received) -> Option<TableChange> {
    if message.kind >> 8 != NFT_SUBSYSTEM {
        return None;
    }
    let (object, is_removal) = match message.kind & 0xff {
        0 => (Object::Table, false),
        2 => (Object::Table, true),
        3 => (Object::Chain, false),
        5 => (Object::Chain, true),
        6 => (Object::Rule, false),
        8 => (Object::Rule, true),
        9 => (Object::Set, false),
        11 => (Object::Set, true),
        12 => (Object::Element, false),
        14 => (Object::Element, true),
        _ => (Object::Other, false),
    };
    let family = *message.payload.first()?;
    let body = message.payload.get(4..)?;
    let table = if object == Object::Other { String::new() } else { read_text(attributes::find(body, 1)?) };
    Some(TableChange { object, is_removal, family, table })
}

fn gone(message: &Received) -> Option<Gone> {
    match decode(message)? {
        RouteNetlinkMessage::DelLink(link) => link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(Gone::Link(name)),
            _ => None,
        }),
        RouteNetlinkMessage::DelAddress(address) => {
            let index = address.header.index;
            address.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(Gone::Address(index, address)),
                _ => None,
            })
        }
        RouteNetlinkMessage::DelRoute(route) => {
            let destination = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            });
            Some(Gone::Route(destination, route.header.destination_prefix_length))
        }
        _ => None,
    }
}

/// What a fuzzer calls: any bytes as messages of both monitors.
#[doc(hidden)]
pub fn read_any(kind: u16, payload: &[u8]) {
    let message = Received { kind, payload: payload.to_vec() };
    let _ = (table_change(&message), gone(&message));
}
