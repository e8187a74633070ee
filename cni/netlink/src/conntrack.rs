//! Connection tracking: removing entries that would keep sending packets to an endpoint that is gone.
//!
//! Only lists and deletes. TCP needs none of this (its connections end); UDP "connections" are refreshed by every
//! datagram of a busy client and would never expire.

use std::net::Ipv4Addr;

use crate::attributes::{self, Attributes};
use crate::socket::{NLM_F_DUMP, Netfilter, Outgoing, Socket, SocketError, nfgenmsg};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const IPV4: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Tuple {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

/// A tracked IPv4 connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// As the client sent it.
    pub original: Tuple,
    /// As answers are expected: after destination NAT, `reply.source` is the real endpoint.
    pub reply: Tuple,
    raw_original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// A socket to conntrack in the namespace it was opened in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket<Netfilter>,
}

impl Conntrack {
    /// In the calling thread's namespace.
    ///
    /// # Errors
    /// No socket.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Deletes the IPv4 connections `stale` chooses and returns how many.
    ///
    /// # Errors
    /// Transport errors; an entry that expired meanwhile is fine.
    pub fn delete(&mut self, stale: impl Fn(&Connection) -> bool) -> Result<usize, SocketError> {
        let request = nfgenmsg(IPV4, 0);
        let received = self.socket.request("list connections", SUBSYSTEM | GET, NLM_F_DUMP, request.as_bytes())?;
        let mut outgoing = Outgoing::default();
        for answer in &received {
            let Some(connection) = answer.payload.get(4..).and_then(read_connection) else { continue };
            if !stale(&connection) {
                continue;
            }
            let mut body = nfgenmsg(IPV4, 0);
            put_nested_raw(&mut body, TUPLE_ORIGINAL, &connection.raw_original);
            if let Some(zone) = &connection.zone {
                body.put(ZONE, zone);
            }
            let label = format!("delete connection to {}", connection.original.destination);
            outgoing.push(label, SUBSYSTEM | DELETE, 0, body.as_bytes(), &[libc::ENOENT]);
        }
        self.socket.apply(&outgoing)?;
        Ok(outgoing.len())
    }
}

fn put_nested_raw(body: &mut Attributes, kind: u16, inner: &[u8]) {
    body.nest(kind, |nested| nested.raw(inner));
}

fn read_connection(body: &[u8]) -> Option<Connection> {
    let raw_original = attributes::find(body, TUPLE_ORIGINAL)?;
    Some(Connection {
        original: read_tuple(raw_original)?,
        reply: read_tuple(attributes::find(body, TUPLE_REPLY)?)?,
        raw_original: raw_original.to_vec(),
        zone: attributes::find(body, ZONE).map(<[u8]>::to_vec),
    })
}

fn read_tuple(tuple: &[u8]) -> Option<Tuple> {
    let (addresses, transport) = (attributes::find(tuple, 1)?, attributes::find(tuple, 2)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attributes::find(addresses, kind)?).ok()?));
    // ICMP has no ports.
    let port = |kind| {
        let bytes = attributes::find(transport, kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        bytes.map(u16::from_be_bytes).unwrap_or_default()
    };
    Some(Tuple {
        source: address(1)?,
        destination: address(2)?,
        protocol: *attributes::find(transport, 1)?.first()?,
        source_port: port(2),
        destination_port: port(3),
    })
}

/// What a fuzzer calls: any bytes as the kernel's description of a connection.
#[doc(hidden)]
pub fn read_any(bytes: &[u8]) {
    let _ = read_connection(bytes);
}
