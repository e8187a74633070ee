//! What Services need of the node besides their table: the bridge, a route, the DNS address; and taking all of it away.
//!
//! Everything is idempotent and survives the daemon. Blocks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use cni_netlink::nft::{Family, NftError, Nftables, Transaction};
use cni_netlink::rtnetlink::{NewRoute, RtnetlinkError};
use cni_netlink::sysctl::{self, SysctlError};
use cni_netlink::{Batch, Rtnetlink};
use cni_spec::Cidr;

const LOOPBACK: u32 = 1;

/// Why the node is not as needed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Links, addresses or routes.
    #[error("prepare the node's network")]
    Prepare(#[source] RtnetlinkError),
    /// Something else has the name.
    #[error("link {0} exists and is no bridge; rename it or choose another bridge name")]
    NotABridge(String),
    /// A kernel setting.
    #[error("prepare the node's network")]
    Setting(#[source] SysctlError),
    /// Cluster IPs are IPv4 here.
    #[error("service range {0} is not IPv4; Services are IPv4 only")]
    Family(Cidr),
    /// Taking links, addresses or routes away.
    #[error("remove the node's links and addresses")]
    RemoveLinks(#[source] RtnetlinkError),
    /// Asking what is there.
    #[error("list nf_tables tables")]
    ListTables { source: NftError },
    /// Taking tables away.
    #[error("remove table {table}")]
    RemoveTable { table: String, source: NftError },
}

/// The bridge alone: what is made first and goes last, so that it tells whose addresses and routes there are.
///
/// # Errors
/// [`NetworkError`].
pub fn ensure_bridge(bridge: &str) -> Result<(), NetworkError> {
    let mut socket = Rtnetlink::open().map_err(NetworkError::Prepare)?;
    if socket.link(bridge).map_err(NetworkError::Prepare)?.is_none() {
        let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
        let mut batch = Batch::default();
        batch.create_bridge(bridge, None, Some([0x0a, a, b, c, d, e]));
        socket.apply(&batch).map_err(NetworkError::Prepare)?;
    }
    match socket.link(bridge).map_err(NetworkError::Prepare)? {
        Some(link) if link.kind == "bridge" => Ok(()),
        _ => Err(NetworkError::NotABridge(bridge.to_owned())),
    }
}

/// Whether anything of this bridge and table is there. Without, addresses and routes of the same networks are another's.
///
/// # Errors
/// [`NetworkError`].
pub fn stands(table: &str, bridge: &str) -> Result<bool, NetworkError> {
    let mut socket = Rtnetlink::open().map_err(NetworkError::Prepare)?;
    if socket.link(bridge).map_err(NetworkError::Prepare)?.is_some() {
        return Ok(true);
    }
    let failed = |source| NetworkError::ListTables { source };
    let tables = Nftables::open().and_then(|mut nft| nft.tables(Family::Inet)).map_err(failed)?;
    Ok(tables.iter().any(|found| found == table || *found == format!("{table}-cni")))
}

/// Bridge, settings, routes and DNS address.
///
/// # Errors
/// [`NetworkError`].
pub(crate) fn ensure(
    bridge: &str,
    cluster_cidr: Cidr,
    service_cidr: Cidr,
    dns_address: IpAddr,
) -> Result<(), NetworkError> {
    if !service_cidr.is_ipv4() {
        return Err(NetworkError::Family(service_cidr));
    }
    ensure_bridge(bridge)?;
    let mut socket = Rtnetlink::open().map_err(NetworkError::Prepare)?;
    sysctl::ensure("net/ipv4/ip_forward", "1").map_err(NetworkError::Setting)?;
    let mut batch = Batch::default();
    batch.set_up(LOOPBACK);
    // The route lets a node without a default route connect to cluster IPs; rules send the packets elsewhere. The DNS
    // address has host scope so that it is not chosen as the source of such connections.
    batch.add_host_address(LOOPBACK, dns_address);
    batch.add_route(&service_route(service_cidr));
    // Pods that are nowhere are refused here, not looked for beyond the default route; and whoever chooses a network sees that
    // this one is taken, before the first pod.
    batch.add_route(&pod_route(cluster_cidr));
    socket.apply(&batch).map_err(NetworkError::Prepare)
}

/// Removes the tables `table` and `table-cni`, the bridge with its ports, the routes and the DNS address.
///
/// What is gone already is success; every step is tried, the first failure is returned.
///
/// # Errors
/// [`NetworkError::RemoveLinks`], [`NetworkError::RemoveTable`].
pub fn cleanup(
    table: &str,
    bridge: &str,
    cluster_cidr: Cidr,
    service_cidr: Cidr,
    dns_address: IpAddr,
) -> Result<(), NetworkError> {
    let tables = remove_tables(table);
    let routes = [service_route(service_cidr), pod_route(cluster_cidr)];
    let links = remove_links(bridge, &routes, dns_address).map_err(NetworkError::RemoveLinks);
    tables.and(links)
}

fn remove_tables(table: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::RemoveTable { table: table.to_owned(), source };
    let mut nft = Nftables::open().map_err(failed)?;
    let mut transaction = Transaction::new(Family::Inet);
    transaction.remove_table(table).remove_table(&format!("{table}-cni"));
    nft.apply(transaction).map_err(failed)
}

fn remove_links(bridge: &str, routes: &[NewRoute], dns_address: IpAddr) -> Result<(), RtnetlinkError> {
    let mut socket = Rtnetlink::open()?;
    let mut batch = Batch::default();
    for route in routes {
        batch.delete_route(route);
    }
    batch.delete_address(LOOPBACK, dns_address, Cidr::host(dns_address).prefix());
    if let Some(found) = socket.link(bridge)?.filter(|link| link.kind == "bridge") {
        for port in socket.links()?.into_iter().filter(|link| link.controller == Some(found.index)) {
            batch.delete_link(&port.name);
        }
        batch.delete_link(bridge);
    }
    socket.apply(&batch)
}

fn pod_route(cluster_cidr: Cidr) -> NewRoute {
    NewRoute::unreachable(cluster_cidr.first(), cluster_cidr.prefix())
}

fn service_route(service_cidr: Cidr) -> NewRoute {
    NewRoute::new(service_cidr.first(), service_cidr.prefix(), None, LOOPBACK)
}
