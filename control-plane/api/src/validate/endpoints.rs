//! Where a Service's traffic goes: Endpoints and EndpointSlices. No address in them may mean the node or its link (CVE-2020-8558).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::container::PROTOCOLS;
use super::field::Field;
use super::{Causes, address, metadata, unchanged};
use crate::{Cause, Object, name};

const ADDRESSES_MAX: usize = 100;
const ENDPOINTS_MAX: usize = 1000;
const HINTS_MAX: usize = 8;
const PORTS_MAX: usize = 20_000;
const TOPOLOGY_MAX: usize = 16;
/// Labels of a topology that have fields of their own.
const TOPOLOGY_RESERVED: &[&str] = &["kubernetes.io/hostname", "topology.kubernetes.io/zone"];

pub(super) fn check(object: &Object, causes: &mut Causes) {
    for subset in Field::top(object, "subsets").items() {
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| subset.key(list).list().is_empty()) {
            subset.required("must specify `addresses` or `notReadyAddresses`", causes);
        }
        for list in lists {
            for one in subset.key(list).items() {
                if !one.key("ip").text().is_empty() {
                    address::check_ordinary(&one.key("ip"), causes);
                }
                one.key("hostname").may_be(name::dns1123_label, causes);
                if one.key("nodeName").is_set() {
                    one.key("nodeName").must_be(name::dns1123_subdomain, causes);
                }
            }
        }
        let ports = subset.key("ports");
        for port in ports.items() {
            let given = port.key("name");
            if given.text().is_empty() && ports.list().len() > 1 {
                given.required("", causes);
            }
            given.may_be(name::dns1123_label, causes);
            port.key("port").port_number(causes);
            port.key("protocol").one_of(PROTOCOLS, causes);
            if port.key("appProtocol").is_set() {
                port.key("appProtocol").must_be(name::qualified, causes);
            }
        }
    }
}

pub(super) fn check_slice(object: &Object, causes: &mut Causes) {
    let kind = Field::top(object, "addressType");
    kind.one_of(&["FQDN", "IPv4", "IPv6"], causes);
    let endpoints = Field::top(object, "endpoints");
    if endpoints.list().len() > ENDPOINTS_MAX {
        causes.push(Cause::too_many(endpoints.path(), endpoints.list().len(), ENDPOINTS_MAX));
        return;
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.key("addresses");
        match addresses.list().len() {
            0 => addresses.required("must contain at least 1 address", causes),
            count if count > ADDRESSES_MAX => {
                causes.push(Cause::too_many(addresses.path(), count, ADDRESSES_MAX));
            }
            _ => {}
        }
        for one in addresses.items().take(ADDRESSES_MAX) {
            check_address(kind.text(), &one, causes);
        }
        if endpoint.key("nodeName").is_set() {
            endpoint.key("nodeName").must_be(name::dns1123_subdomain, causes);
        }
        if endpoint.key("hostname").is_set() {
            endpoint.key("hostname").must_be(name::dns1123_label, causes);
        }
        check_topology(&endpoint, causes);
    }
    check_slice_ports(object, causes);
}

fn check_address(kind: &str, one: &Field<'_, '_>, causes: &mut Causes) {
    let text = one.text();
    let address = match kind {
        "IPv4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "IPv6" => text.parse::<Ipv6Addr>().ok().filter(|one| one.to_ipv4_mapped().is_none()).map(IpAddr::V6),
        "FQDN" => return check_domain(one, causes),
        _ => return,
    };
    match address.map(address::special) {
        None => one.invalid_as(&text.into(), &format!("must be a valid {kind} address"), causes),
        Some(Some(why)) => one.invalid(&why, causes),
        Some(None) => {}
    }
}

fn check_domain(one: &Field<'_, '_>, causes: &mut Causes) {
    let text = one.text();
    let plain = text.strip_suffix('.').unwrap_or(text);
    if plain.is_empty() {
        return one.required("", causes);
    }
    let faults = name::dns1123_subdomain(plain);
    for fault in &faults {
        one.invalid(fault, causes);
    }
    if faults.is_empty() && !plain.contains('.') {
        one.invalid("should be a domain with at least two segments separated by dots", causes);
    }
}

fn check_topology(endpoint: &Field<'_, '_>, causes: &mut Causes) {
    let topology = endpoint.key("deprecatedTopology");
    let count = topology.entries().count();
    if count > TOPOLOGY_MAX {
        causes.push(Cause::too_many(topology.path(), count, TOPOLOGY_MAX));
    }
    metadata::labels(&topology, causes);
    for key in TOPOLOGY_RESERVED {
        if topology.entry(key).is_set() {
            topology.entry(key).forbidden("reserved and must not be set in deprecatedTopology", causes);
        }
    }
    let hints = endpoint.key("hints");
    for list in ["forZones", "forNodes"] {
        let all = hints.key(list);
        if all.list().len() > HINTS_MAX {
            causes.push(Cause::too_many(all.path(), all.list().len(), HINTS_MAX));
            continue;
        }
        let mut seen = BTreeSet::new();
        for one in all.items() {
            let given = one.key("name");
            if !seen.insert(given.text()) {
                given.duplicate(causes);
            }
            let syntax = if list == "forZones" { name::label_value } else { name::dns1123_subdomain };
            given.may_be(syntax, causes);
        }
    }
}

fn check_slice_ports(object: &Object, causes: &mut Causes) {
    let ports = Field::top(object, "ports");
    if ports.list().len() > PORTS_MAX {
        causes.push(Cause::too_many(ports.path(), ports.list().len(), PORTS_MAX));
        return;
    }
    let mut names = BTreeSet::new();
    for port in ports.items() {
        let given = port.key("name");
        given.may_be(name::dns1123_label, causes);
        if !names.insert(given.text()) {
            given.duplicate(causes);
        }
        if port.key("port").is_set() {
            port.key("port").port_number(causes);
        }
        port.key("protocol").one_of_if_set(PROTOCOLS, causes);
        if port.key("appProtocol").is_set() {
            port.key("appProtocol").must_be(name::qualified, causes);
        }
    }
}

pub(super) fn check_slice_update(new: &Object, old: &Object, causes: &mut Causes) {
    unchanged(new, old, &["addressType"], causes);
}
