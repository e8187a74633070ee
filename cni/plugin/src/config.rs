//! The configuration of `bridge` and `host-local`, with the reference plugins' keys plus `table` and `clusterCIDR`.
//!
//! Keys that would change what a pod gets and that this plugin cannot honour are refused by name (code 2), never
//! ignored; keys nobody knows belong to somebody else and are left alone, as CNI wants.

use std::net::IpAddr;
use std::path::PathBuf;

use cni_spec::{Cidr, Code, PluginError, Route};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What `bridge` reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BridgeConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge gets the gateway's address.
    pub is_gateway: bool,
    /// And is the container's default route.
    pub is_default_gateway: bool,
    /// Replace a different address on the bridge.
    pub force_address: bool,
    /// Masquerade what leaves for elsewhere.
    pub ip_masq: bool,
    /// MTU of both ends.
    pub mtu: u32,
    /// Frames may leave by the port they came from; on for gateways unless the bridge is promiscuous.
    pub hairpin_mode: Option<bool>,
    /// Promiscuous bridge.
    pub promisc_mode: bool,
    /// Ports cannot talk to each other.
    pub port_isolation: bool,
    /// Base name of the nf_tables table; `-cni` is appended.
    pub table: String,
    /// Addresses reached without masquerade, besides the container's own subnets: all pods of all nodes.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Vec<Cidr>,
    /// IPAM section; `{}` for layer 2 only.
    pub ipam: Map<String, Value>,
    /// What the runtime adds.
    pub runtime_config: RuntimeConfig,
    /// `args.cni`.
    pub args: Args,
    vlan: u32,
    vlan_trunk: Vec<Value>,
    macspoofchk: bool,
    disable_container_interface: bool,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            bridge: "cni0".into(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: None,
            promisc_mode: false,
            port_isolation: false,
            table: "sampan".into(),
            cluster_cidr: Vec::new(),
            ipam: Map::new(),
            runtime_config: RuntimeConfig::default(),
            args: Args::default(),
            vlan: 0,
            vlan_trunk: Vec::new(),
            macspoofchk: false,
            disable_container_interface: false,
        }
    }
}

/// `runtimeConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Hardware address asked for.
    pub mac: Option<String>,
    /// Addresses asked for, with or without prefix length.
    pub ips: Vec<String>,
    /// Ranges that replace those of the configuration.
    pub ip_ranges: Option<Vec<Vec<RangeConfig>>>,
}

/// `args`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// `args.cni`.
    pub cni: CniArgs,
}

/// `args.cni`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CniArgs {
    /// Hardware address asked for.
    pub mac: Option<String>,
    /// Addresses asked for.
    pub ips: Vec<String>,
}

impl BridgeConfig {
    /// Refuses what cannot be honoured.
    ///
    /// # Errors
    /// Codes 2 and 7.
    pub fn validate(mut self) -> Result<Self, PluginError> {
        let unsupported = [
            ("vlan", self.vlan != 0),
            ("vlanTrunk", !self.vlan_trunk.is_empty()),
            ("macspoofchk", self.macspoofchk),
            ("disableContainerInterface", self.disable_container_interface),
        ];
        if let Some((key, _)) = unsupported.into_iter().find(|(_, is_set)| *is_set) {
            let message = format!("`{key}` is set, but this bridge plugin does not implement it; remove it");
            return Err(PluginError::new(Code::UnsupportedField, message));
        }
        let invalid = |message: String| Err(PluginError::new(Code::InvalidConfig, message));
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ']) {
            return invalid(format!("`bridge` is `{}`, not a link name of 1 to 15 characters", self.bridge));
        }
        if self.table.is_empty() || self.table.len() > 64 {
            return invalid("`table` must have 1 to 64 characters".into());
        }
        if self.promisc_mode && self.hairpin_mode == Some(true) {
            return invalid("`hairpinMode` and `promiscMode` exclude each other".into());
        }
        if self.mtu != 0 && !(68..=65535).contains(&self.mtu) {
            return invalid(format!("`mtu` {} is not between 68 and 65535", self.mtu));
        }
        self.is_gateway |= self.is_default_gateway;
        Ok(self)
    }

    /// Whether ports get hairpin mode.
    #[must_use]
    pub fn hairpin(&self) -> bool {
        self.hairpin_mode.unwrap_or(self.is_gateway && !self.promisc_mode)
    }
}

/// What `host-local` reads from the `ipam` section.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpamConfig {
    /// One address is given from each inner list.
    pub ranges: Vec<Vec<RangeConfig>>,
    /// Routes of the result.
    pub routes: Vec<Route>,
    /// Where leases are kept.
    pub data_dir: Option<PathBuf>,
    /// A file to read resolver settings from.
    pub resolv_conf: Option<PathBuf>,
    /// The oldest form: a single range in the section itself.
    #[serde(flatten)]
    pub single: RangeConfig,
}

/// A range of addresses.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RangeConfig {
    /// The network.
    pub subnet: Option<Cidr>,
    /// First address to give.
    pub range_start: Option<IpAddr>,
    /// Last address to give.
    pub range_end: Option<IpAddr>,
    /// Gateway; the first address of the network otherwise.
    pub gateway: Option<IpAddr>,
}
