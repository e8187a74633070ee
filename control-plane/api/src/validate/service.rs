//! Services: their ports, addresses and what goes with their type.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::container::PROTOCOLS;
use super::field::Field;
use super::{Causes, address, metadata};
use crate::{Cause, Object, name};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
/// A client stays with its endpoint for a day at most.
const AFFINITY_SECONDS_MAX: i64 = 86400;
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn is_headless(spec: &Field<'_, '_>) -> bool {
    let first = spec.key("clusterIPs").list().first().and_then(Value::as_str);
    first.unwrap_or(spec.key("clusterIP").text()) == "None"
}

/// Whether somebody outside of the cluster reaches it.
fn is_external(spec: &Field<'_, '_>) -> bool {
    let by_address = !spec.key("externalIPs").list().is_empty();
    matches!(spec.key("type").text(), "NodePort" | "LoadBalancer")
        || (spec.key("type").text() == "ClusterIP" && by_address)
}

fn needs_health_check(spec: &Field<'_, '_>) -> bool {
    spec.key("type").text() == "LoadBalancer" && spec.key("externalTrafficPolicy").text() == "Local"
}

pub(super) fn check(object: &Object, causes: &mut Causes) {
    let spec = Field::top(object, "spec");
    let meta = Field::top(object, "metadata");
    let annotations = meta.key("annotations");
    let (mode, hints) = (annotations.entry(MODE), annotations.entry(HINTS));
    if mode.is_set() && hints.is_set() && mode.text() != hints.text() {
        mode.invalid(&format!("must match annotations[{HINTS}] when both are specified"), causes);
    }
    let kind = spec.key("type");
    let ports = spec.key("ports");
    if ports.list().is_empty() && !is_headless(&spec) && kind.text() != "ExternalName" {
        ports.required("", causes);
    }
    check_type(&spec, causes);
    check_ports(&spec, causes);
    metadata::labels(&spec.key("selector"), causes);
    check_affinity(&spec, causes);
    if kind.text() != "ExternalName" {
        check_addresses(&spec, causes);
    }
    for ip in spec.key("externalIPs").items() {
        address::check_ordinary(&ip, causes);
    }
    kind.one_of(TYPES, causes);
    check_balancer(&spec, &annotations, causes);
    check_traffic(&spec, causes);
}

fn check_type(spec: &Field<'_, '_>, causes: &mut Causes) {
    match spec.key("type").text() {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
            let list = spec.key("clusterIPs");
            list.index(0).invalid_as(&"None".into(), &format!("may not be set to 'None' for {kind} services"), causes);
        }
        "ExternalName" => {
            let addresses = spec.key("clusterIPs");
            if !addresses.list().is_empty() || !spec.key("clusterIP").text().is_empty() {
                addresses.forbidden("may not be set for ExternalName services", causes);
            }
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if !metadata::is_nothing(spec.key(key).value) {
                    spec.key(key).forbidden("may not be set for ExternalName services", causes);
                }
            }
            let external = spec.key("externalName");
            // The last dot says that the name is complete.
            let plain = external.text().strip_suffix('.').unwrap_or(external.text());
            if plain.is_empty() {
                external.required("", causes);
            } else {
                for fault in name::dns1123_subdomain(plain) {
                    external.invalid_as(&plain.into(), &fault, causes);
                }
            }
        }
        _ => {}
    }
}

fn check_ports(spec: &Field<'_, '_>, causes: &mut Causes) {
    let ports = spec.key("ports");
    let kind = spec.key("type").text();
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for port in ports.items() {
        let (given, number, protocol) = (port.key("name"), port.key("port"), port.key("protocol"));
        if given.text().is_empty() && ports.list().len() > 1 {
            given.required("", causes);
        } else if !given.text().is_empty() {
            given.must_be(name::dns1123_label, causes);
            if !names.insert(given.text()) {
                given.duplicate(causes);
            }
        }
        number.port_number(causes);
        protocol.one_of(PROTOCOLS, causes);
        port.key("targetPort").port_or_name(causes);
        if port.key("appProtocol").is_set() {
            port.key("appProtocol").must_be(name::qualified, causes);
        }
        let node_port = port.key("nodePort");
        if node_port.int() != 0 {
            if ["ClusterIP", "ExternalName"].contains(&kind) {
                node_port.forbidden(&format!("may not be used when `type` is '{kind}'"), causes);
            }
            if !node_ports.insert((node_port.int(), protocol.text())) {
                node_port.duplicate(causes);
            }
        }
        if !numbers.insert((number.int(), protocol.text())) {
            let shown = json!({"port": number.int(), "protocol": protocol.text()});
            causes.push(Cause::duplicate(port.path(), &shown));
        }
    }
}

fn check_affinity(spec: &Field<'_, '_>, causes: &mut Causes) {
    let (affinity, config) = (spec.key("sessionAffinity"), spec.key("sessionAffinityConfig"));
    affinity.one_of(&["ClientIP", "None"], causes);
    match affinity.text() {
        "ClientIP" => {
            let client = config.key("clientIP");
            let timeout = client.key("timeoutSeconds");
            if !timeout.is_set() {
                timeout.required("when session affinity type is ClientIP", causes);
            } else if !(1..=AFFINITY_SECONDS_MAX).contains(&timeout.int()) {
                timeout.invalid(&format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}"), causes);
            }
        }
        "None" if config.is_set() => config.forbidden("must not be set when session affinity is None", causes),
        _ => {}
    }
}

/// Addresses and families, as far as they can be judged without the cluster's own.
fn check_addresses(spec: &Field<'_, '_>, causes: &mut Causes) {
    let (one, list) = (spec.key("clusterIP"), spec.key("clusterIPs"));
    let first = list.list().first().and_then(Value::as_str);
    match (one.text().is_empty(), first) {
        (false, None) => list.required("", causes),
        (false, Some(first)) if first != one.text() => list.invalid("first value must match `clusterIP`", causes),
        (true, Some(_)) => list.invalid("must be empty when `clusterIP` is not specified", causes),
        _ => {}
    }
    let families = spec.key("ipFamilies");
    let mut seen = BTreeSet::new();
    for family in families.items() {
        family.one_of_if_set(&["IPv4", "IPv6"], causes);
        if !seen.insert(family.text()) {
            family.duplicate(causes);
        }
    }
    spec.key("ipFamilyPolicy").one_of_if_set(FAMILY_POLICIES, causes);
    let before = causes.len();
    let mut addresses = Vec::new();
    for (index, address) in list.items().enumerate() {
        if index == 0 && address.text() == "None" {
            if list.list().len() > 1 {
                list.invalid("'None' must be the first and only value", causes);
            }
            continue;
        }
        addresses.extend(address::check(&address, causes));
    }
    if list.list().len() > 2 {
        list.invalid("may only hold up to 2 values", causes);
    }
    if causes.len() > before {
        return;
    }
    if !address::one_of_each_family(&addresses) {
        list.invalid("may specify no more than one IP for each IP family", causes);
    }
    for (index, (address, family)) in addresses.iter().zip(families.list()).enumerate() {
        let own = if matches!(address, IpAddr::V4(_)) { "IPv4" } else { "IPv6" };
        let wanted = family.as_str().unwrap_or_default();
        if ["IPv4", "IPv6"].contains(&wanted) && wanted != own {
            let detail = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            list.index(index).invalid(&detail, causes);
        }
    }
}

fn check_balancer(spec: &Field<'_, '_>, annotations: &Field<'_, '_>, causes: &mut Causes) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balancer = spec.key("type").text() == "LoadBalancer";
    let ranges = spec.key("loadBalancerSourceRanges");
    let (place, noted) = (spec.place("LoadBalancerSourceRanges", ranges.value), annotations.entry(RANGES));
    if !ranges.list().is_empty() {
        if !is_balancer {
            place.forbidden(ONLY, causes);
        }
        for range in place.items() {
            address::check_network(&range, causes);
        }
    } else if noted.is_set() {
        if !is_balancer {
            noted.forbidden(ONLY, causes);
        }
        for range in noted.text().split(',').filter(|_| !noted.text().trim().is_empty()) {
            if address::network(range.trim()).is_none() {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                noted.invalid_as(&range.into(), detail, causes);
            }
        }
    }
    let ports = spec.key("allocateLoadBalancerNodePorts");
    if ports.is_set() && !is_balancer {
        ports.forbidden(ONLY, causes);
    }
    let class = spec.key("loadBalancerClass");
    if class.is_set() {
        if is_balancer {
            class.must_be(name::qualified, causes);
        } else {
            class.forbidden(ONLY, causes);
        }
    }
}

fn check_traffic(spec: &Field<'_, '_>, causes: &mut Causes) {
    let policy = spec.key("externalTrafficPolicy");
    if is_external(spec) {
        policy.one_of(POLICIES, causes);
    } else if !policy.text().is_empty() {
        policy.invalid("may only be set for externally-accessible services", causes);
    }
    let check = spec.key("healthCheckNodePort");
    if check.int() != 0 {
        if needs_health_check(spec) {
            check.port_number(causes);
        } else {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            check.invalid(detail, causes);
        }
    }
    spec.key("internalTrafficPolicy").one_of_if_set(POLICIES, causes);
    spec.key("trafficDistribution").one_of_if_set(DISTRIBUTIONS, causes);
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    let (spec, before) = (Field::top(new, "spec"), Field::top(old, "spec"));
    let kind = |spec: &Field<'_, '_>, kind: &str| spec.key("type").text() == kind;
    if !kind(&spec, "ExternalName") && !kind(&before, "ExternalName") {
        check_kept(&spec, &before, causes);
    }
    let (class, then) = (spec.key("loadBalancerClass"), before.key("loadBalancerClass"));
    if kind(&spec, "LoadBalancer") && kind(&before, "LoadBalancer") && class.value != then.value {
        class.invalid("may not change once set", causes);
    }
    let (check, then) = (spec.key("healthCheckNodePort"), before.key("healthCheckNodePort"));
    if needs_health_check(&spec) && needs_health_check(&before) && check.int() != then.int() {
        check.forbidden("field is immutable", causes);
    }
}

/// The first address stays, and with it its family; a second one comes and goes with the policy.
fn check_kept(spec: &Field<'_, '_>, before: &Field<'_, '_>, causes: &mut Causes) {
    if is_headless(spec) && is_headless(before) {
        return;
    }
    let changed_headless = is_headless(spec) != is_headless(before);
    for (key, what) in [("clusterIPs", "clusterIP"), ("ipFamilies", "ipFamily")] {
        if key == "ipFamilies" && changed_headless {
            continue;
        }
        let (now, then) = (spec.key(key), before.key(key));
        let (list, old) = (now.list(), then.list());
        // Families that are left out follow from the addresses.
        if old.is_empty() || (key == "ipFamilies" && list.is_empty()) {
            continue;
        }
        let released = list.len() < old.len();
        if list.is_empty() {
            now.index(0).invalid_as(now.value, &format!("primary {what} can not be unset"), causes);
        }
        for (index, (now_one, old_one)) in list.iter().zip(old).enumerate() {
            if now_one != old_one {
                let index = if key == "ipFamilies" { 0 } else { index };
                now.index(index).invalid_as(now.value, "may not change once set", causes);
            }
        }
        let policy = spec.key("ipFamilyPolicy");
        if released && list.len() == 1 && policy.text() != "SingleStack" {
            policy.invalid(&format!("must be set to 'SingleStack' when releasing the secondary {what}"), causes);
        }
    }
}

/// What a load balancer says of itself.
pub(super) fn check_status(new: &Object, causes: &mut Causes) {
    let status = Field::top(new, "status");
    let balancer = status.key("loadBalancer");
    let ingress = balancer.key("ingress");
    let is_balancer = new.str_at(&["spec", "type"]) == Some("LoadBalancer");
    if !is_balancer && !ingress.list().is_empty() {
        ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'", causes);
        return;
    }
    for one in ingress.items() {
        let (ip, mode, host) = (one.key("ip"), one.key("ipMode"), one.key("hostname"));
        if !ip.text().is_empty() {
            address::check(&ip, causes);
            mode.one_of_if_set(&["Proxy", "VIP"], causes);
        } else if mode.is_set() {
            mode.forbidden("may not be specified when `ip` is not set", causes);
        }
        host.may_be(name::dns1123_subdomain, causes);
        if host.text().parse::<IpAddr>().is_ok() {
            host.invalid("must be a DNS name, not an IP address", causes);
        }
    }
}
