//! The node's service networking: Services and EndpointSlices to nf_tables elements, cluster DNS.
//!
//! One task follows the API server and owns the table; the DNS server reads the same catalog. Stopping leaves table,
//! route and address in place, so that traffic goes on without the daemon; [`cleanup`] takes them away. IPv4 cluster
//! IPs; no NetworkPolicy and no routes between nodes yet.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use cni_spec::Cidr;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub mod catalog;
pub mod counts;
pub mod dns;
mod follow;
pub mod network;
pub mod proxy;

pub use network::cleanup;

use dns::{DnsSettings, Server};
use proxy::{Proxy, Settings};

const DNS_PORT: u16 = 53;

/// Everything the node's service networking needs to know; no defaults are taken from elsewhere.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "kube::Client has none")]
pub struct Config {
    /// In-process or remote access to the API server.
    pub client: kube::Client,
    /// This node's name, to tell local endpoints.
    pub node_name: String,
    /// Addresses of this node besides those the kernel reports as local.
    pub node_ips: Vec<IpAddr>,
    /// Where the node's own parts listen (API server, kubelet, DNS): no Service takes traffic from there.
    pub reserved: Vec<SocketAddr>,
    /// Name of the nf_tables table, for example `sampan`.
    pub table: String,
    /// Name of the pod bridge, for example `sampan0`.
    pub bridge: String,
    /// All pods of all nodes, for example `10.42.0.0/16`.
    pub cluster_cidr: Cidr,
    /// All cluster IPs, for example `10.43.0.0/16`.
    pub service_cidr: Cidr,
    /// The DNS server's own cluster IP, for example `10.43.0.10`.
    pub dns_address: IpAddr,
    /// For example `cluster.local`.
    pub cluster_domain: String,
    /// Servers for all other names, for example `/etc/resolv.conf`.
    pub upstream_resolv_conf: PathBuf,
}

/// Why service networking cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bridge, route, address.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    /// The DNS server.
    #[error("start cluster DNS")]
    Dns(#[from] dns::DnsError),
    /// A thread died.
    #[error("a blocking step of service networking did not end")]
    Blocking(#[source] tokio::task::JoinError),
}

/// Follows the API server until `shutdown`.
///
/// # Errors
/// Only what keeps it from starting; later failures are logged and tried again.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (bridge, service_cidr, dns_address) = (config.bridge.clone(), config.service_cidr, config.dns_address);
    let cluster_cidr = config.cluster_cidr;
    tokio::task::spawn_blocking(move || network::ensure(&bridge, cluster_cidr, service_cidr, dns_address))
        .await
        .map_err(Error::Blocking)??;
    let catalog = Arc::new(RwLock::default());
    let settings = DnsSettings {
        listen: SocketAddr::new(dns_address, DNS_PORT),
        address: dns_address,
        domain: config.cluster_domain.clone(),
        upstream_resolv_conf: config.upstream_resolv_conf.clone(),
        own_networks: vec![config.cluster_cidr, config.service_cidr],
    };
    let server = Server::bind(settings, Arc::clone(&catalog)).await?;
    let proxy = Proxy::new(Settings {
        table: config.table.clone(),
        bridge: config.bridge.clone(),
        service_cidr,
        cluster_cidr: config.cluster_cidr,
        dns_address,
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        reserved: config.reserved.clone(),
    });
    info!(table = %config.table, dns = %dns_address, "service networking runs");
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = server.serve() => {}
        () = follow::follow(config.client, catalog, proxy) => {}
    }
    Ok(())
}
