//! The result of ADD in every version of the specification, with conversion between them.
//!
//! Inside, only the newest shape exists ([`AddResult`]); [`AddResult::parse`] reads any version and
//! [`AddResult::to_json`] writes any. Converting down drops what the older version cannot say, as the reference
//! library does: 0.2.0 and older hold one address per family and no interfaces.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Cidr, SpecVersion};

/// Why a result cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// `cniVersion` names no known version.
    #[error("read the result's version")]
    Version(#[from] crate::version::UnknownVersion),
    /// The JSON does not have the shape its version prescribes.
    #[error("read a result of version {version}")]
    Shape { version: SpecVersion, source: serde_json::Error },
    /// 0.2.0 and older carry at least one address.
    #[error("a result without addresses cannot be written as version {0}; use 0.3.0 or newer")]
    NoAddress(SpecVersion),
}

/// What ADD made, in the shape of 1.1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Links made or found, host side and container side.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub ips: Vec<IpConfig>,
    /// Routes set in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub routes: Vec<Route>,
    /// Resolver settings the runtime may use.
    #[serde(default, skip_serializing_if = "Dns::is_empty", deserialize_with = "null_as_default")]
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The link's name.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of the network namespace; empty for the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket, for links that are one (1.1.0).
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// PCI device (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`AddResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address with the subnet's prefix length.
    pub address: Cidr,
    /// Gateway of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route; everything below `gw` came with 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; without one, the subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Maximum segment size to advertise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route with nothing but a destination and a next hop.
    #[must_use]
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Resolver settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers, by preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub search: Vec<String>,
    /// Options as in resolv.conf.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The shape of 0.1.0 and 0.2.0: one address per family.
#[derive(Debug, Deserialize)]
struct Legacy {
    ip4: Option<LegacyIp>,
    ip6: Option<LegacyIp>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct LegacyIp {
    ip: Cidr,
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "null_as_default")]
    routes: Vec<Route>,
}

impl AddResult {
    /// Reads a result of any version; `assumed` is used when it names none (a plugin may leave it out).
    ///
    /// # Errors
    /// An unknown version, or a shape the version does not have.
    pub fn parse(value: &Value, assumed: SpecVersion) -> Result<Self, ResultError> {
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => assumed,
            Some(text) => text.parse()?,
        };
        let shape = |source| ResultError::Shape { version, source };
        if version >= SpecVersion::V0_3_0 {
            return AddResult::deserialize(value).map_err(shape);
        }
        let legacy = Legacy::deserialize(value).map_err(shape)?;
        let mut result = AddResult { dns: legacy.dns, ..AddResult::default() };
        for ip in [legacy.ip4, legacy.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: ip.ip, gateway: ip.gateway });
            // An old route without a gateway went to the address's own; the newer shape says the same.
            result.routes.extend(ip.routes.into_iter().map(|route| Route::new(route.dst, route.gw.or(ip.gateway))));
        }
        Ok(result)
    }

    /// Writes the result as `version` prescribes, with its `cniVersion`.
    ///
    /// # Errors
    /// 0.2.0 and older cannot say "no address".
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, ResultError> {
        let mut object = if version < SpecVersion::V0_3_0 { self.to_legacy(version)? } else { self.to_modern(version) };
        object.insert("cniVersion".into(), json!(version));
        Ok(Value::Object(object))
    }

    /// Index of the interface called `name` inside the namespace `sandbox`.
    #[must_use]
    pub fn interface_in(&self, name: &str, sandbox: &str) -> Option<usize> {
        self.interfaces.iter().position(|interface| interface.name == name && interface.sandbox == sandbox)
    }

    fn to_legacy(&self, version: SpecVersion) -> Result<Map<String, Value>, ResultError> {
        let mut object = Map::new();
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let routes: Vec<Value> =
                self.routes.iter().filter(|route| route.dst.is_ipv4() == v4).map(old_route).collect();
            let mut entry = Map::new();
            entry.insert("ip".into(), json!(ip.address));
            insert_some(&mut entry, "gateway", ip.gateway.map(|gateway| json!(gateway)));
            insert_some(&mut entry, "routes", (!routes.is_empty()).then(|| json!(routes)));
            object.insert(key.into(), Value::Object(entry));
        }
        if object.is_empty() {
            return Err(ResultError::NoAddress(version));
        }
        object.insert("dns".into(), json!(self.dns));
        Ok(object)
    }

    fn to_modern(&self, version: SpecVersion) -> Map<String, Value> {
        let mut object = Map::new();
        let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
        let newest = version >= SpecVersion::V1_1_0;
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut kept = interface.clone();
            if !newest {
                (kept.mtu, kept.socket_path, kept.pci_id) = (0, String::new(), String::new());
            }
            json!(kept)
        });
        let ips = self.ips.iter().map(|ip| {
            let mut entry = json!(ip);
            if version < SpecVersion::V1_0_0 {
                entry["version"] = json!(if ip.address.is_ipv4() { "4" } else { "6" });
            }
            entry
        });
        let routes = self.routes.iter().map(|route| if newest { json!(route) } else { old_route(route) });
        insert_some(&mut object, "interfaces", list(interfaces.collect()));
        insert_some(&mut object, "ips", list(ips.collect()));
        insert_some(&mut object, "routes", list(routes.collect()));
        object.insert("dns".into(), json!(self.dns));
        object
    }
}

/// A route as every version before 1.1.0 can say it.
fn old_route(route: &Route) -> Value {
    json!(Route::new(route.dst, route.gw))
}

fn insert_some(object: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        object.insert(key.into(), value);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes empty slices as `null`; plugins written in it print that.
fn null_as_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: 1450,
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.42.0.2/24".parse().unwrap(),
                    gateway: Some("10.42.0.1".parse().unwrap()),
                },
                IpConfig { interface: Some(0), address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                mtu: Some(1400),
                ..Route::new("0.0.0.0/0".parse().unwrap(), Some("10.42.0.1".parse().unwrap()))
            }],
            dns: Dns { nameservers: vec!["10.43.0.10".into()], ..Dns::default() },
        }
    }

    #[test]
    fn every_version_reads_back_what_it_can_say() {
        for version in SpecVersion::ALL {
            let written = full().to_json(version).unwrap();
            assert_eq!(written["cniVersion"], version.as_str());
            let read = AddResult::parse(&written, SpecVersion::NEWEST).unwrap();
            let addresses: Vec<String> = read.ips.iter().map(|ip| ip.address.to_string()).collect();
            assert_eq!(addresses, ["10.42.0.2/24", "fd00::2/64"], "{version}");
            assert_eq!(read.routes[0].mtu.is_some(), version == SpecVersion::V1_1_0, "{version}");
            assert_eq!(read.interfaces.is_empty(), version < SpecVersion::V0_3_0, "{version}");
            assert_eq!(read.dns, full().dns);
            assert_eq!(read.to_json(version).unwrap(), written, "{version} is stable");
        }
    }

    #[test]
    fn addresses_carry_their_family_before_1_0() {
        assert_eq!(full().to_json(SpecVersion::V0_4_0).unwrap()["ips"][1]["version"], "6");
        assert!(full().to_json(SpecVersion::V1_0_0).unwrap()["ips"][1].get("version").is_none());
    }

    #[test]
    fn null_lists_of_go_plugins_are_empty_lists() {
        let value = json!({"cniVersion": "1.0.0", "interfaces": null, "ips": null, "routes": null, "dns": {}});
        assert_eq!(AddResult::parse(&value, SpecVersion::V0_3_1).unwrap(), AddResult::default());
    }

    #[test]
    fn bad_results_are_named() {
        let newest = SpecVersion::NEWEST;
        assert!(matches!(AddResult::parse(&json!({"cniVersion": "9.9.9"}), newest), Err(ResultError::Version(_))));
        let bad = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]});
        assert!(matches!(AddResult::parse(&bad, newest), Err(ResultError::Shape { .. })));
        assert!(matches!(AddResult::default().to_json(SpecVersion::V0_2_0), Err(ResultError::NoAddress(_))));
    }
}
