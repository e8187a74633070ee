//! The node's service networking: Services and EndpointSlices to nf_tables elements, cluster DNS.
//!
//! One task follows the API server and owns the table; the DNS server reads the same catalog. Stopping leaves table,
//! route and address in place, so that traffic goes on without the daemon; [`cleanup`] takes them away. A part that ends
//! or panics is started again. IPv4 cluster IPs; no NetworkPolicy and no routes between nodes yet.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use cni_spec::Cidr;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub mod catalog;
pub mod counts;
pub mod dns;
pub mod firewall;
mod follow;
pub mod network;
pub mod proxy;
mod writer;

pub use network::cleanup;

use dns::{DnsSettings, Server};
use proxy::Settings;

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
    // The first one is bound here: what keeps it from starting is told to whoever starts us.
    let mut server = Some(Server::bind(settings.clone(), Arc::clone(&catalog)).await?);
    let rules = Settings {
        table: config.table.clone(),
        bridge: config.bridge.clone(),
        service_cidr,
        cluster_cidr,
        dns_address,
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        reserved: config.reserved.clone(),
    };
    info!(table = %config.table, dns = %dns_address, "service networking runs");
    let names = persist("cluster DNS", || {
        let (bound, settings, catalog) = (server.take(), settings.clone(), Arc::clone(&catalog));
        async move {
            let server = match bound {
                Some(server) => Ok(server),
                None => Server::bind(settings, catalog).await,
            };
            match server {
                Ok(server) => server.serve().await,
                Err(failure) => error!(error = &failure as &dyn std::error::Error, "cluster DNS cannot start again"),
            }
        }
    });
    let services =
        persist("service rules", || follow::follow(config.client.clone(), Arc::clone(&catalog), rules.clone()));
    let links = persist("the node's links", || {
        network::keep(config.bridge.clone(), cluster_cidr, service_cidr, dns_address, config.table.clone())
    });
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = async { tokio::join!(names, services, links) } => {}
    }
    Ok(())
}

const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// Whoever ran this long begins again at the first pause.
const STEADY: Duration = Duration::from_secs(60);

/// Starts a part again whenever it ends or panics, after a pause that grows; until it is dropped.
async fn persist<F: Future<Output = ()>>(part: &'static str, mut start: impl FnMut() -> F) {
    let mut pause = RESTART_FIRST;
    loop {
        let begun = tokio::time::Instant::now();
        let has_panicked = AssertUnwindSafe(start()).catch_unwind().await.is_err();
        if has_panicked {
            counts::PANICS.add();
        }
        if begun.elapsed() > STEADY {
            pause = RESTART_FIRST;
        }
        error!(part, has_panicked, ?pause, "a part of service networking ended; it starts again");
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(RESTART_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_ends_or_panics_is_started_again() {
        let starts = AtomicUsize::new(0);
        let part = persist("test", || async {
            match starts.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("on purpose"),
                1 => {}
                _ => std::future::pending().await,
            }
        });
        let waited = tokio::time::timeout(Duration::from_secs(5), part).await;
        assert!(waited.is_err(), "it never ends by itself");
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }
}
