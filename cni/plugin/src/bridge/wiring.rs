//! Links, addresses and routes of one attachment.
//!
//! Host side: bridge and one end of the pair, in one batch each. Container side: everything in one batch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use cni_netlink::rtnetlink::{NewRoute, PortChange, RtnetlinkError, Veth, stable_mac};
use cni_netlink::{Batch, Link, Namespace, Rtnetlink};
use cni_spec::cidr::successor;
use cni_spec::{AddResult, Attachment, Cidr, Code, PluginError, Route};

use super::{attachment, netlink};
use crate::Request;
use crate::config::BridgeConfig;

const EEXIST: i32 = 17;

/// The two ends.
pub(super) struct Pair {
    pub(super) host: Link,
    pub(super) container: Link,
}

/// The hash in a name has 28 bits: of 20,000 attachments two may well have the same one. Each tries the next name then.
const NAMES_MAX: u64 = 4;
/// `IFALIASZ` is 256 with its NUL.
const OWNER_BYTES_MAX: usize = 200;

/// Names that the host end may have: `veth`, four digits for the network, seven for the attachment: 15 characters.
pub(super) fn names(network: &str, attachment: &Attachment) -> impl Iterator<Item = String> {
    let prefix = prefix(network);
    let owner = format!("{} {}", attachment.container_id, attachment.if_name);
    (0..NAMES_MAX).map(move |number| {
        let text = if number == 0 { owner.clone() } else { format!("{owner} {number}") };
        format!("{prefix}{:07x}", fnv(text.as_bytes()) & 0x0fff_ffff)
    })
}

/// Who an end belongs to, as its remark says it.
fn owner(network: &str, attachment: &Attachment) -> String {
    let text = format!("{network} {} {}", attachment.container_id, attachment.if_name);
    if text.len() <= OWNER_BYTES_MAX {
        return text;
    }
    let reversed: Vec<u8> = text.bytes().rev().collect();
    format!("{:016x}{:016x}", fnv(text.as_bytes()), fnv(&reversed))
}

/// The remark on a host end: bridge, gateways, owner. With it a bridge that somebody deleted gets its ports back (services
/// read it), and nobody takes another's end for his own.
fn remark(config: &BridgeConfig, result: &AddResult, owner: &str) -> String {
    let gateways: Vec<String> = result
        .ips
        .iter()
        .filter(|_| config.is_gateway)
        .filter_map(|ip| Some(format!("{}/{}", ip.gateway?, ip.address.prefix())))
        .collect();
    let gateways = if gateways.is_empty() { "-".to_owned() } else { gateways.join(",") };
    format!("{} {gateways} {owner}", config.bridge)
}

/// Whether the end belongs to this attachment. One without a remark was made by an earlier version, which had one name only.
pub(super) fn is_of(link: &Link, network: &str, attachment: &Attachment) -> bool {
    match &link.alias {
        Some(remark) => remark.ends_with(&format!(" {}", owner(network, attachment))),
        None => names(network, attachment).next().is_some_and(|first| first == link.name),
    }
}

/// The host end of this request's pair.
pub(super) fn host_end(request: &Request, host: &mut Rtnetlink) -> Result<Option<Link>, RtnetlinkError> {
    let attachment = attachment(request);
    for name in names(&request.name, &attachment) {
        if let Some(link) = host.link(&name)?.filter(|link| is_of(link, &request.name, &attachment)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// What the host ends of one network begin with.
pub(super) fn prefix(network: &str) -> String {
    format!("veth{:04x}", fnv(network.as_bytes()) & 0xffff)
}

/// FNV-1a, folded: the same in every version of this program, unlike the standard library's hashes.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash ^ (hash >> 32)
}

/// Hardware address asked for; `runtimeConfig` before `args` before `CNI_ARGS`.
pub(super) fn requested_mac(request: &Request, config: &BridgeConfig) -> Result<Option<[u8; 6]>, PluginError> {
    let asked = [config.runtime_config.mac.as_deref(), config.args.cni.mac.as_deref(), request.environment.arg("MAC")];
    let Some(text) = asked.into_iter().flatten().find(|text| !text.is_empty()) else { return Ok(None) };
    match parse_mac(text) {
        Some(mac) if mac[0] & 1 == 0 => Ok(Some(mac)),
        _ => {
            let message = format!("`{text}` is not a unicast hardware address such as 02:00:00:00:00:01");
            Err(PluginError::new(Code::InvalidConfig, message))
        }
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

pub(super) fn format_mac(mac: &[u8]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// Fills in what IPAM left open: gateways when the bridge is one, default routes.
pub(super) fn complete(config: &BridgeConfig, result: &mut AddResult) -> Result<(), PluginError> {
    if result.ips.is_empty() && !config.ipam.is_empty() {
        return Err(PluginError::new(Code::Internal, "the IPAM plugin gave no address"));
    }
    if config.is_gateway {
        for ip in &mut result.ips {
            if ip.gateway.is_none() {
                ip.gateway = successor(ip.address.first());
            }
        }
    }
    if config.is_default_gateway {
        for ip in &result.ips {
            let any = if ip.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let Some(default) = Cidr::new(any, 0) else { continue };
            if !result.routes.iter().any(|route| route.dst == default) {
                result.routes.push(Route::new(default, ip.gateway));
            }
        }
    }
    Ok(())
}

/// The bridge, up, with the gateways' addresses.
pub(super) fn ensure_bridge(
    host: &mut Rtnetlink,
    config: &BridgeConfig,
    result: &AddResult,
) -> Result<Link, PluginError> {
    let mtu = (config.mtu != 0).then_some(config.mtu);
    let find = |host: &mut Rtnetlink| host.link(&config.bridge).map_err(|error| netlink(&error));
    let link = match find(host)? {
        Some(link) => link,
        None => {
            let batch_error =
                host.apply(Batch::default().create_bridge(&config.bridge, mtu, Some(stable_mac(&config.bridge))));
            batch_error.map_err(|error| netlink(&error))?;
            find(host)?.ok_or_else(|| {
                PluginError::new(Code::TryAgainLater, format!("bridge {} vanished while it was made", config.bridge))
            })?
        }
    };
    if link.kind != "bridge" {
        let message = format!("link {} exists and is no bridge; rename it or set another `bridge`", config.bridge);
        return Err(PluginError::new(Code::InvalidConfig, message));
    }
    let mut batch = Batch::default();
    if !link.is_up {
        batch.set_up(link.index);
    }
    if config.promisc_mode && !link.is_promiscuous {
        batch.set_promiscuous(link.index);
    }
    if config.is_gateway {
        add_gateways(host, config, result, &link, &mut batch)?;
    }
    host.apply(&batch).map_err(|error| netlink(&error))?;
    Ok(link)
}

fn add_gateways(
    host: &mut Rtnetlink,
    config: &BridgeConfig,
    result: &AddResult,
    bridge: &Link,
    batch: &mut Batch,
) -> Result<(), PluginError> {
    let present = host.addresses(bridge.index).map_err(|error| netlink(&error))?;
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let prefix = ip.address.prefix();
        if present.contains(&(gateway, prefix)) {
            continue;
        }
        for (address, other) in &present {
            let clashes = address.is_ipv4() == gateway.is_ipv4()
                && Cidr::new(*address, *other)
                    .is_some_and(|cidr| cidr.contains(gateway) || ip.address.contains(*address));
            if !clashes {
                continue;
            }
            if !config.force_address {
                let message = format!(
                    "bridge {} has address {address}/{other}, which clashes with gateway {gateway}/{prefix}; remove \
                     it or set `forceAddress`",
                    config.bridge
                );
                return Err(PluginError::new(Code::InvalidConfig, message));
            }
            batch.delete_address(bridge.index, *address, *other);
        }
        batch.add_address(bridge.index, gateway, prefix);
    }
    Ok(())
}

/// The pair, with addresses and routes at the container's end.
pub(super) fn connect(
    request: &Request,
    config: &BridgeConfig,
    namespace: &Namespace,
    host: &mut Rtnetlink,
    bridge: &Link,
    mac: Option<[u8; 6]>,
    result: &AddResult,
) -> Result<Pair, PluginError> {
    let name = create_pair(request, config, namespace, host, bridge, mac, result)?;
    let vanished = |which: &str| PluginError::new(Code::UnknownContainer, format!("link {which} vanished during ADD"));
    let mut inside = Rtnetlink::open_in(namespace).map_err(|error| netlink(&error))?;
    let if_name = &request.environment.if_name;
    let container = inside.link(if_name).map_err(|error| netlink(&error))?.ok_or_else(|| vanished(if_name))?;
    inside.apply(&container_batch(&container, result)).map_err(|error| netlink(&error))?;
    let host_end = host.link(&name).map_err(|error| netlink(&error))?.ok_or_else(|| vanished(&name))?;
    Ok(Pair { host: host_end, container })
}

/// Makes the pair under the first name that is free or this attachment's own.
fn create_pair(
    request: &Request,
    config: &BridgeConfig,
    namespace: &Namespace,
    host: &mut Rtnetlink,
    bridge: &Link,
    mac: Option<[u8; 6]>,
    result: &AddResult,
) -> Result<String, PluginError> {
    let attachment = attachment(request);
    let remark = remark(config, result, &owner(&request.name, &attachment));
    let port = PortChange { hairpin: Some(config.hairpin()), isolated: config.port_isolation.then_some(true) };
    for name in names(&request.name, &attachment) {
        let veth = Veth {
            name: &name,
            bridge: Some(bridge.index),
            peer_name: &request.environment.if_name,
            peer_namespace: namespace.as_fd(),
            peer_mac: mac.or_else(|| mac_for(result)),
            mtu: (config.mtu != 0).then_some(config.mtu),
        };
        // Alone: what follows would change another's end, were it there.
        match host.apply(Batch::default().create_veth(&veth)) {
            Err(error) if error.errno() == Some(EEXIST) => {
                let found = host.link(&name).map_err(|error| netlink(&error))?;
                if found.is_some_and(|link| !is_of(&link, &request.name, &attachment)) {
                    continue;
                }
                // This attachment's own, and the container has no such link: a killed ADD left it behind, its other end in a
                // namespace that is gone or in this one under another name.
                let mut again = Batch::default();
                again.delete_link(&name).create_veth(&veth);
                host.apply(&again).map_err(|error| netlink(&error))?;
            }
            other => other.map_err(|error| netlink(&error))?,
        }
        let labelled = host.apply(Batch::default().set_labelled_port(&name, port, Some(&remark)));
        labelled.map_err(|error| netlink(&error))?;
        return Ok(name);
    }
    let message = format!("{NAMES_MAX} names for the host end of container {} are taken", attachment.container_id);
    Err(PluginError::new(Code::Internal, message))
}

fn container_batch(link: &Link, result: &AddResult) -> Batch {
    let mut batch = Batch::default();
    batch.set_up(link.index);
    for ip in &result.ips {
        batch.add_address(link.index, ip.address.address(), ip.address.prefix());
    }
    for route in &result.routes {
        let gateway = route.gw.or_else(|| {
            let same_family = |ip: &&cni_spec::IpConfig| ip.address.is_ipv4() == route.dst.is_ipv4();
            result.ips.iter().find(same_family).and_then(|ip| ip.gateway)
        });
        batch.add_route(&NewRoute {
            table: route.table,
            priority: route.priority,
            mtu: route.mtu,
            advmss: route.advmss,
            scope: route.scope.and_then(|scope| u8::try_from(scope).ok()),
            ..NewRoute::new(route.dst.first(), route.dst.prefix(), gateway, link.index)
        });
    }
    batch
}

/// A hardware address made from the IPv4 address: whoever gets the address next has the same one, so that no
/// neighbour's table is wrong for a minute. `0a:58` is the locally administered prefix others use for this.
fn mac_for(result: &AddResult) -> Option<[u8; 6]> {
    result.ips.iter().find_map(|ip| match ip.address.address() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            Some([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit() {
        let attachment = Attachment { container_id: "c1".into(), if_name: "eth0".into() };
        let all: Vec<String> = names("sampan", &attachment).collect();
        assert!(all.iter().all(|name| name.len() == 15 && name.starts_with(&prefix("sampan"))), "{all:?}");
        let unique: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
        assert_eq!(all, names("sampan", &attachment).collect::<Vec<_>>());
        let other = Attachment { if_name: "eth1".into(), ..attachment };
        assert_ne!(names("sampan", &other).next(), all.first().cloned());
    }

    #[test]
    fn an_end_says_whose_it_is() {
        let attachment = |id: &str| Attachment { container_id: id.into(), if_name: "eth0".into() };
        let mut config = BridgeConfig::default();
        config.is_gateway = true;
        for id in ["c1".to_owned(), "c".repeat(300)] {
            let owner = owner("net", &attachment(&id));
            let remark = remark(&config, &AddResult::default(), &owner);
            assert!(remark.len() < 256 && remark.starts_with("cni0 - "), "{remark}");
            let link = Link { alias: Some(remark), ..Link::default() };
            assert!(is_of(&link, "net", &attachment(&id)));
            assert!(!is_of(&link, "net", &attachment("other")) && !is_of(&link, "ne", &attachment(&id)));
        }
        let name = names("net", &attachment("c1")).next().unwrap();
        assert!(is_of(&Link { name, ..Link::default() }, "net", &attachment("c1")), "an earlier version's");
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        for bad in ["", "02:00", "02:00:00:00:00:00:00", "zz:00:00:00:00:00", "100:0:0:0:0:0"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
