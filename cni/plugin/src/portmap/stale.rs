//! Forgetting where datagrams to a host port went. UDP has no end of connection: a busy client's datagrams would follow a
//! container that is gone, or find nobody, for as long as the client goes on. The reference plugin does the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use cni_netlink::Rtnetlink;
use cni_netlink::conntrack::Conntrack;
use cni_spec::{Code, PluginError};

use crate::failed;

const UDP: u8 = 17;

/// Forgets all datagrams to these ports of the node but those that reach `holder`.
pub(super) fn forget(ports: &BTreeSet<u16>, holder: Option<Ipv4Addr>) -> Result<(), PluginError> {
    if ports.is_empty() {
        return Ok(());
    }
    let addresses = Rtnetlink::open().and_then(|mut socket| socket.addresses(0));
    let addresses = addresses.map_err(|error| failed(Code::Internal, "list this node's addresses", &error))?;
    let local: BTreeSet<IpAddr> = addresses.into_iter().map(|(address, _)| address).collect();
    // All of 127.0.0.0/8 is local, one address of it is listed.
    let is_local = |address: Ipv4Addr| address.is_loopback() || local.contains(&IpAddr::V4(address));
    let deleted = Conntrack::open().and_then(|mut conntrack| {
        conntrack.delete(|connection| {
            let (original, reply) = (&connection.original, &connection.reply);
            original.protocol == UDP
                && ports.contains(&original.destination_port)
                && is_local(original.destination)
                && Some(reply.source) != holder
        })
    });
    deleted.map(drop).map_err(|error| failed(Code::Internal, "forget datagrams of a host port's last holder", &error))
}

/// The port of a key that ends with protocol and port, where the protocol is UDP.
pub(super) fn udp_port(key: &[u8]) -> Option<u16> {
    let at = key.len().checked_sub(8)?;
    match key.get(at..)? {
        [UDP, _, _, _, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}
