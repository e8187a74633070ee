//! The world outside the node: a network namespace at the other end of a cable, with a name server in it.
//!
//! Connected before `up`, so that the node takes its address from the cable and its name server from `resolv.conf`:
//!
//!     let cluster = Cluster::prepare()?;
//!     let outside = Outside::connect(&cluster)?;
//!     cluster.up()?;
//!     let port = outside.serve_peer_addresses()?;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread;

use anyhow::{Context as _, Result};
use cni_netlink::rtnetlink::{NewRoute, Veth};
use cni_netlink::{Batch, Namespace, Rtnetlink};
use nix::mount::{MsFlags, mount};

use crate::cluster::Cluster;

/// TEST-NET-2 (RFC 5737): nobody else's addresses.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
const PREFIX: u8 = 24;
const LOOPBACK: u32 = 1;
const DNS_PORT: u16 = 53;

/// What the name server outside knows; everything else is NXDOMAIN.
pub const NAMES: [(&str, Ipv4Addr); 2] =
    [("outside.example", Ipv4Addr::new(198, 51, 100, 2)), ("other.example", Ipv4Addr::new(198, 51, 100, 77))];

/// The other end; it goes when dropped.
#[derive(Debug)]
pub struct Outside {
    namespace: Namespace,
}

impl Outside {
    /// Lays the cable to the cluster's namespace, which becomes the default route, and makes the name server out there
    /// the only one of the cluster's `/etc/resolv.conf`.
    pub fn connect(cluster: &Cluster) -> Result<Self> {
        let namespace = Namespace::create().context("make the outside")?;
        let veth = Veth {
            name: "up0",
            bridge: None,
            peer_name: "eth0",
            peer_namespace: namespace.as_fd(),
            peer_mac: None,
            mtu: None,
        };
        let mut here = Rtnetlink::open()?;
        here.apply(Batch::default().set_up(LOOPBACK).create_veth(&veth)).context("lay the cable")?;
        let up0 = here.link("up0")?.context("the cable's near end")?.index;
        let default = NewRoute::new(Ipv4Addr::UNSPECIFIED.into(), 0, Some(OUTSIDE), up0);
        here.apply(Batch::default().add_address(up0, NODE, PREFIX).add_route(&default))
            .context("the node's address")?;
        let mut there = Rtnetlink::open_in(&namespace)?;
        let eth0 = there.link("eth0")?.context("the cable's far end")?.index;
        let mut batch = Batch::default();
        batch.set_up(LOOPBACK).set_up(eth0).add_address(eth0, OUTSIDE, PREFIX);
        there.apply(&batch).context("the outside's address")?;
        let outside = Self { namespace };
        outside.serve_names()?;
        let resolv_conf = cluster.root().join("resolv.conf.test");
        fs::write(&resolv_conf, format!("search corp.example\nnameserver {OUTSIDE}\n"))?;
        // Over the machine's own, in this mount namespace alone.
        let over = fs::canonicalize("/etc/resolv.conf").context("find /etc/resolv.conf")?;
        mount(Some(&resolv_conf), &over, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cover resolv.conf")?;
        Ok(outside)
    }

    /// Does something as the outside would.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.within(work).context("enter the outside")
    }

    /// A TCP server that tells every client the address that it sees; its port.
    pub fn serve_peer_addresses(&self) -> Result<u16> {
        let listener = self.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?.context("listen outside")?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || serve_peer_addresses(&listener));
        Ok(port)
    }

    fn serve_names(&self) -> Result<()> {
        let socket = self.within(|| UdpSocket::bind((OUTSIDE, DNS_PORT)))?.context("serve names outside")?;
        thread::spawn(move || {
            let names: BTreeMap<&str, Ipv4Addr> = NAMES.into();
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..length], &names) {
                    let _gone = socket.send_to(&answer, client);
                }
            }
        });
        Ok(())
    }
}

/// Answers every connection, as HTTP, with the address it came from.
pub fn serve_peer_addresses(listener: &TcpListener) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { return };
        let Ok(peer) = connection.peer_addr().map(|peer: SocketAddr| peer.ip().to_canonical()) else { continue };
        let mut request = [0; 1024];
        // Whatever is asked: reading it first keeps the close from being a reset.
        let _asked = std::io::Read::read(&mut connection, &mut request);
        let body = format!("{peer}\n");
        let _gone = write!(connection, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
}

/// RFC 1035, section 4: the header and the question back, and an A record where the name has one.
fn answer(query: &[u8], names: &BTreeMap<&str, Ipv4Addr>) -> Option<Vec<u8>> {
    const HEADER_BYTES: usize = 12;
    const A: [u8; 2] = [0, 1];
    let mut labels = Vec::new();
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = query.get(at..at + 2)?;
    let question = query.get(HEADER_BYTES..at + 4)?;
    let address = names.get(labels.join(".").as_str());
    let records = u8::from(address.is_some() && kind == A);
    // QR and RD; RA, and RCODE 3 (no such name) where the name is unknown.
    let flags = [0x81, if address.is_some() { 0x80 } else { 0x83 }];
    let mut bytes = [query.get(..2)?, &flags, &[0, 1, 0, records, 0, 0, 0, 0], question].concat();
    if let (Some(address), 1) = (address, records) {
        // The name as a pointer to the question, type A, class IN, 60 seconds, four bytes.
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(address.octets());
    }
    Some(bytes)
}
