//! What Services need of the node besides their table: the bridge, a route, the DNS address; and taking all of it away.
//!
//! Everything is idempotent and survives the daemon. What somebody takes away is heard of and made again ([`keep`]): a
//! bridge gets its ports back. Blocks, but for [`keep`].

use std::net::IpAddr;
use std::time::Duration;

use cni_netlink::monitor::{Gone, Heard, RouteMonitor};
use cni_netlink::nft::{Family, NftError, Nftables, Transaction};
use cni_netlink::rtnetlink::{NewRoute, PortChange, RtnetlinkError, stable_mac};
use cni_netlink::sysctl::{self, SysctlError};
use cni_netlink::{Batch, Rtnetlink};
use cni_spec::Cidr;
use tokio::io::unix::AsyncFd;
use tracing::{error, warn};

use crate::{counts, firewall};

const LOOPBACK: u32 = 1;
const MEND_PAUSE: Duration = Duration::from_secs(1);

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
        let mut batch = Batch::default();
        batch.create_bridge(bridge, None, Some(stable_mac(bridge)));
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
    socket.apply(&batch).map_err(NetworkError::Prepare)?;
    attach_orphans(&mut socket, bridge).map_err(NetworkError::Prepare)
}

/// A bridge that somebody deletes leaves its ports behind. Each says on itself whose it is (the bridge plugin's remark:
/// bridge, gateways, network, container, link), so that it finds back, also after a restart.
fn attach_orphans(socket: &mut Rtnetlink, bridge: &str) -> Result<(), RtnetlinkError> {
    let links = socket.links()?;
    let Some(found) = links.iter().find(|link| link.name == bridge) else { return Ok(()) };
    let mut batch = Batch::default();
    let mut count = 0_usize;
    for link in links.iter().filter(|link| link.kind == "veth" && link.controller.is_none()) {
        let mut words = link.alias.as_deref().unwrap_or_default().split(' ');
        if words.next() != Some(bridge) {
            continue;
        }
        for gateway in words.next().unwrap_or_default().split(',').filter_map(|text| text.parse::<Cidr>().ok()) {
            batch.add_address(found.index, gateway.address(), gateway.prefix());
        }
        batch.attach(link.index, found.index);
        batch.set_port(&link.name, PortChange { hairpin: Some(true), isolated: None });
        count = count.saturating_add(1);
    }
    if count > 0 {
        warn!(bridge, pods = count, "pods had lost their bridge; they are attached again");
        counts::MENDED.add();
    }
    socket.apply(&batch)
}

/// Follows what goes of the node's links, addresses and routes, and makes ours again, until it is dropped.
pub(crate) async fn keep(bridge: String, cluster_cidr: Cidr, service_cidr: Cidr, dns_address: IpAddr, table: String) {
    #[expect(
        deprecated,
        reason = "the other constructor is unsafe; a monitor's descriptor is its own as long as it lives"
    )]
    let mut monitor = match RouteMonitor::open().map_err(std::io::Error::other).and_then(AsyncFd::new) {
        Ok(monitor) => monitor,
        Err(error) => {
            warn!(%error, "links and routes that others take away are not made again before a restart");
            return std::future::pending().await;
        }
    };
    loop {
        gone(&mut monitor, &bridge, cluster_cidr, service_cidr, dns_address).await;
        let (name, table) = (bridge.clone(), table.clone());
        let mended = tokio::task::spawn_blocking(move || {
            ensure(&name, cluster_cidr, service_cidr, dns_address)?;
            open_loopback(&name, &table)
        });
        match mended.await {
            Ok(Ok(())) => counts::MENDED.add(),
            Ok(Err(failure)) => {
                error!(error = &failure as &dyn std::error::Error, bridge, "the node's network cannot be mended");
            }
            Err(join) => {
                counts::PANICS.add();
                error!(error = &join as &dyn std::error::Error, "mending the node's network panicked");
            }
        }
        // Who takes things away again and again does not keep us busy.
        tokio::time::sleep(MEND_PAUSE).await;
    }
}

/// Waits until something of ours went.
async fn gone(
    monitor: &mut AsyncFd<RouteMonitor>,
    bridge: &str,
    cluster_cidr: Cidr,
    service_cidr: Cidr,
    dns_address: IpAddr,
) {
    let networks = [cluster_cidr, service_cidr].map(|cidr| (Some(cidr.first()), cidr.prefix()));
    let is_ours = |gone: &Gone| match gone {
        Gone::Link(name) => name == bridge,
        Gone::Address(_, address) => *address == dns_address || cluster_cidr.contains(*address),
        Gone::Route(destination, prefix) => networks.contains(&(*destination, *prefix)),
    };
    loop {
        let Ok(mut ready) = monitor.readable_mut().await else { return };
        match ready.get_inner_mut().hear() {
            Ok(None) => ready.clear_ready(),
            Ok(Some(Heard::Changes(changes))) if !changes.iter().any(is_ours) => {}
            Ok(Some(heard)) => {
                warn!(?heard, "somebody took away parts of the node's network; they are made again");
                // What comes with it is mended with it.
                while let Ok(Some(_)) = ready.get_inner_mut().hear() {}
                return;
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "cannot hear of links and routes");
                return;
            }
        }
    }
}

/// A bridge that was made again lets 127.0.0.1:PORT through only where the guard against others' use of it stands.
fn open_loopback(bridge: &str, table: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::ListTables { source };
    let mut nft = Nftables::open().map_err(failed)?;
    let guard = nft.chain(Family::Inet, table, "guard").map_err(failed)?;
    if guard.is_some_and(|chain| chain.uses > 0) {
        sysctl::ensure(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1").map_err(NetworkError::Setting)?;
    }
    Ok(())
}

/// Removes the tables `table` and `table-cni`, our rules in others' firewalls, the bridge with its ports, the routes and
/// the DNS address.
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
    let failed = |source| NetworkError::RemoveTable { table: table.to_owned(), source };
    let firewalls = firewall::remove(table).map_err(failed);
    let routes = [service_route(service_cidr), pod_route(cluster_cidr)];
    let links = remove_links(bridge, &routes, dns_address).map_err(NetworkError::RemoveLinks);
    tables.and(firewalls).and(links)
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
