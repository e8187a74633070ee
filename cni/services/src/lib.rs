//! The node's service networking: Services and EndpointSlices to nf_tables elements, cluster DNS.

use std::net::IpAddr;
use std::path::PathBuf;

use cni_spec::Cidr;

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
