//! What the server is told. It computes no default from the machine it runs on.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use crate::authn::User;

/// Everything the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to accept TLS connections; port 0 picks a free one, see [`crate::ApiServer::address`].
    pub listen: SocketAddr,
    /// The serving certificate chain and key, PEM. Reading again while running is a restart's business.
    pub tls_certificate: Vec<u8>,
    pub tls_key: Vec<u8>,
    /// Client certificates are verified against these, PEM.
    pub client_ca: Vec<u8>,
    /// Signs and verifies service-account tokens, PEM: RSA or EC P-256.
    pub service_account_key: Vec<u8>,
    /// The issuer in those tokens, a URL.
    pub service_account_issuer: String,
    /// Audiences that this server answers to; the first is put into tokens that name none.
    pub audiences: Vec<String>,
    /// Tokens with a fixed user, for bootstrap.
    pub static_tokens: BTreeMap<String, User>,
    /// How to reach kubelets for logs, exec, attach, port-forward and node proxy; without it those answer 503.
    pub kubelet: Option<KubeletConfig>,
    /// The range of ClusterIPs; its first address is that of the `kubernetes` Service.
    pub service_cidr: Cidr,
    /// NodePorts, both ends included.
    pub node_ports: (u16, u16),
    /// Of these, the ports that are given first to who asks for none, so that two servers of one machine seldom give the same.
    pub node_ports_first: (u16, u16),
    /// The address that the `kubernetes` Service leads to.
    pub advertise: SocketAddr,
    /// The store's file.
    pub store: PathBuf,
    /// Revisions older than this are compacted away.
    pub history_seconds: u64,
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub network: std::net::Ipv4Addr,
    pub prefix: u8,
}

/// Why a text is no range.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no IPv4 range; write one like 10.43.0.0/16, with a prefix from 8 to 30")]
pub struct CidrError {
    text: String,
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let refused = || CidrError { text: text.to_owned() };
        let (network, prefix) = text.split_once('/').ok_or_else(refused)?;
        let network: std::net::Ipv4Addr = network.parse().map_err(|_| refused())?;
        let prefix: u8 = prefix.parse().map_err(|_| refused())?;
        if !(8..=30).contains(&prefix) {
            return Err(refused());
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        Ok(Self { network: std::net::Ipv4Addr::from(u32::from(network) & mask), prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Cidr {
    /// Addresses in the range, network and broadcast included.
    pub fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    pub fn contains(self, address: std::net::Ipv4Addr) -> bool {
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        u32::from(address) & mask == u32::from(self.network)
    }

    /// The address at an offset from the network's.
    pub fn nth(self, offset: u32) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from(u32::from(self.network).wrapping_add(offset))
    }
}

/// How the server presents itself to kubelets, PEM.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    /// Kubelets' serving certificates are verified against these.
    pub ca: Vec<u8>,
    /// Accept any serving certificate: for kubelets that sign their own. Their identity is then unproven, as upstream's default.
    pub insecure: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cidr: Cidr = "10.43.7.9/16".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.43.0.0/16");
        assert_eq!(cidr.nth(10).to_string(), "10.43.0.10");
        assert!(cidr.contains("10.43.255.255".parse().unwrap()) && !cidr.contains("10.44.0.0".parse().unwrap()));
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/4", "x/16", "fd00::/64"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
