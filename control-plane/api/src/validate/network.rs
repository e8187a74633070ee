//! Services, endpoints, ingresses and network policies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::affinity::check_selector;
use super::container::{port_number, port_or_name};
use super::{Causes, items, metadata, one_of, refuse, text};
use crate::{Cause, Object, name};

const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn address(text: &str, path: &str, causes: &mut Causes) {
    if text.parse::<IpAddr>().is_err() {
        causes.push(Cause::invalid_str(path, text, ADDRESS));
    }
}

pub(super) fn check_service(spec: &Value, causes: &mut Causes) {
    let kind = text(spec, "type");
    one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], causes);
    one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], causes);
    one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"], causes);
    one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"], causes);
    one_of(spec, "spec", "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"], causes);
    let headless = text(spec, "clusterIP") == "None";
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        check_service_port(port, &path, ports.len() > 1, kind, causes);
        let given = text(port, "name");
        if !given.is_empty() && !names.insert(given) {
            causes.push(Cause::duplicate(format!("{path}.name"), &given.into()));
        }
        let (number, protocol) = (port["port"].as_i64().unwrap_or(0), text(port, "protocol"));
        if !numbers.insert((number, protocol)) {
            causes.push(Cause::duplicate(&path, &json!({"port": number, "protocol": protocol})));
        }
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 && !node_ports.insert((node_port, protocol)) {
            causes.push(Cause::duplicate(
                format!("{path}.nodePort"),
                &json!({"nodePort": node_port, "protocol": protocol}),
            ));
        }
    }
    metadata::labels(spec.get("selector"), "spec.selector", causes);
    for (index, ip) in items(spec, "externalIPs").iter().enumerate() {
        address(ip.as_str().unwrap_or_default(), &format!("spec.externalIPs[{index}]"), causes);
    }
    let cluster_ip = text(spec, "clusterIP");
    if kind == "ExternalName" {
        let external = text(spec, "externalName").trim_end_matches('.');
        if external.is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        } else {
            refuse("spec.externalName", external, name::dns1123_subdomain(external), causes);
        }
        if !cluster_ip.is_empty() {
            let detail = "may not be set when `type` is 'ExternalName'";
            causes.push(Cause::forbidden("spec.clusterIP", detail));
        }
    } else if !cluster_ip.is_empty() && !headless {
        address(cluster_ip, "spec.clusterIPs[0]", causes);
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        causes.push(Cause::invalid_str("spec.clusterIPs[0]", "None", &detail));
    }
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|seconds| !(1..=86400).contains(&seconds)) {
        let detail = "must be greater than 0 and less than 86400";
        causes.push(Cause::invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", timeout, detail));
    }
}

fn check_service_port(port: &Value, path: &str, several: bool, kind: &str, causes: &mut Causes) {
    let given = text(port, "name");
    if !given.is_empty() {
        refuse(&format!("{path}.name"), given, name::dns1123_label(given), causes);
    } else if several {
        causes.push(Cause::required(format!("{path}.name"), ""));
    }
    port_number(port["port"].as_i64().unwrap_or(0), &format!("{path}.port"), causes);
    one_of(port, path, "protocol", PROTOCOLS, causes);
    port_or_name(&port["targetPort"], &format!("{path}.targetPort"), causes);
    let node_port = port["nodePort"].as_i64().unwrap_or(0);
    if node_port == 0 {
        return;
    }
    if matches!(kind, "NodePort" | "LoadBalancer") {
        port_number(node_port, &format!("{path}.nodePort"), causes);
    } else {
        let detail = format!("may not be used when `type` is '{kind}'");
        causes.push(Cause::forbidden(format!("{path}.nodePort"), &detail));
    }
}

pub(super) fn check_service_update(new: &Object, old: &Object, causes: &mut Causes) {
    let kind = |object: &Object| object.str_at(&["spec", "type"]).unwrap_or_default() == "ExternalName";
    let address = |object: &Object| object.str_at(&["spec", "clusterIP"]).unwrap_or_default().to_owned();
    let (now, before) = (address(new), address(old));
    // Becoming an alias, or ceasing to be one, gives up or takes an address.
    if kind(new) || kind(old) || before.is_empty() || now == before {
        return;
    }
    let (shown, detail) = if now.is_empty() {
        (Value::Null, "primary clusterIP can not be unset")
    } else {
        (json!([now]), "may not change once set")
    };
    causes.push(Cause::invalid("spec.clusterIPs[0]", &shown, detail));
}

pub(super) fn check_endpoints(object: &Object, causes: &mut Causes) {
    for (index, subset) in object.list_at(&["subsets"]).iter().enumerate() {
        let path = format!("subsets[{index}]");
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            causes.push(Cause::required(&path, detail));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (index, one) in items(subset, list).iter().enumerate() {
                address(text(one, "ip"), &format!("{path}.{list}[{index}].ip"), causes);
            }
        }
        for (index, port) in items(subset, "ports").iter().enumerate() {
            let path = format!("{path}.ports[{index}]");
            port_number(port["port"].as_i64().unwrap_or(0), &format!("{path}.port"), causes);
            one_of(port, &path, "protocol", PROTOCOLS, causes);
        }
    }
}

pub(super) fn check_endpoint_slice(object: &Object, causes: &mut Causes) {
    let kind = object.str_at(&["addressType"]).unwrap_or_default();
    if !kind.is_empty() && !["FQDN", "IPv4", "IPv6"].contains(&kind) {
        causes.push(Cause::not_supported("addressType", &kind.into(), &["FQDN", "IPv4", "IPv6"]));
    }
    for (index, endpoint) in object.list_at(&["endpoints"]).iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(&path, "must contain at least 1 address"));
        }
        for (index, one) in addresses.iter().enumerate() {
            let given = one.as_str().unwrap_or_default();
            let sound = match kind {
                "IPv4" => given.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => given.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => name::dns1123_subdomain(given).is_empty(),
            };
            if !sound {
                causes.push(Cause::invalid_str(
                    format!("{path}[{index}]"),
                    given,
                    &format!("must be a valid {kind} address"),
                ));
            }
        }
    }
    let mut names = BTreeSet::new();
    for (index, port) in object.list_at(&["ports"]).iter().enumerate() {
        let path = format!("ports[{index}]");
        if !names.insert(text(port, "name")) {
            causes.push(Cause::duplicate(format!("{path}.name"), &port["name"]));
        }
        one_of(port, &path, "protocol", PROTOCOLS, causes);
    }
}

pub(super) fn check_ingress(spec: &Value, causes: &mut Causes) {
    if items(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
        causes.push(Cause::invalid("spec", spec, "either `defaultBackend` or `rules` must be specified"));
    }
    if spec["defaultBackend"].is_object() {
        check_backend(&spec["defaultBackend"], "spec.defaultBackend", causes);
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        let host = text(rule, "host");
        if host.parse::<IpAddr>().is_ok() {
            causes.push(Cause::invalid_str(format!("{path}.host"), host, "must be a DNS name, not an IP address"));
        } else if !host.is_empty() {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            refuse(&format!("{path}.host"), host, name::dns1123_subdomain(plain), causes);
        }
        for (index, one) in items(&rule["http"], "paths").iter().enumerate() {
            let path = format!("{path}.http.paths[{index}]");
            match text(one, "pathType") {
                "" => causes.push(Cause::required(format!("{path}.pathType"), "pathType must be specified")),
                "Exact" | "Prefix" if !text(one, "path").starts_with('/') => {
                    let detail = "must be an absolute path";
                    causes.push(Cause::invalid_str(format!("{path}.path"), text(one, "path"), detail));
                }
                _ => one_of(one, &path, "pathType", &["Exact", "ImplementationSpecific", "Prefix"], causes),
            }
            check_backend(&one["backend"], &format!("{path}.backend"), causes);
        }
    }
}

fn check_backend(backend: &Value, path: &str, causes: &mut Causes) {
    let service = &backend["service"];
    match (service.is_object(), backend["resource"].is_object()) {
        (true, true) => {
            causes.push(Cause::invalid(path, &"".into(), "cannot set both resource and service backends"));
        }
        (false, false) => causes.push(Cause::required(path, "resource or service backend is required")),
        (false, true) => {}
        (true, false) => {
            let port = &service["port"];
            let (number, name) = (port["number"].as_i64().unwrap_or(0), text(port, "name"));
            match (number, name) {
                (0, "") => causes.push(Cause::required(path, "port name or number is required")),
                (0, _) => refuse(&format!("{path}.service.port.name"), name, name::port_name(name), causes),
                (_, "") => port_number(number, &format!("{path}.service.port.number"), causes),
                _ => causes.push(Cause::invalid(path, &"".into(), "cannot set both port name & port number")),
            }
        }
    }
}

pub(super) fn check_policy(spec: &Value, causes: &mut Causes) {
    check_selector(&spec["podSelector"], "spec.podSelector", causes);
    for (index, kind) in items(spec, "policyTypes").iter().enumerate() {
        if !["Egress", "Ingress"].contains(&kind.as_str().unwrap_or_default()) {
            causes.push(Cause::not_supported(format!("spec.policyTypes[{index}]"), kind, &["Egress", "Ingress"]));
        }
    }
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(spec, direction).iter().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            for (index, port) in items(rule, "ports").iter().enumerate() {
                let path = format!("{path}.ports[{index}]");
                one_of(port, &path, "protocol", PROTOCOLS, causes);
                port_or_name(&port["port"], &format!("{path}.port"), causes);
                if port["endPort"].is_number() && !port["port"].is_number() {
                    let detail = "may not be specified when `port` is not a number";
                    causes.push(Cause::required(format!("{path}.port"), detail));
                }
            }
            for (index, peer) in items(rule, side).iter().enumerate() {
                check_peer(peer, &format!("{path}.{side}[{index}]"), causes);
            }
        }
    }
}

fn check_peer(peer: &Value, path: &str, causes: &mut Causes) {
    let selects = peer["podSelector"].is_object() || peer["namespaceSelector"].is_object();
    match (selects, peer["ipBlock"].is_object()) {
        (false, false) => causes.push(Cause::required(path, "must specify a peer")),
        (true, true) => {
            let detail = "may not specify both ipBlock and another peer";
            causes.push(Cause::forbidden(path, detail));
        }
        _ => {}
    }
    for key in ["podSelector", "namespaceSelector"] {
        check_selector(&peer[key], &format!("{path}.{key}"), causes);
    }
    let cidr = text(&peer["ipBlock"], "cidr");
    let sound = cidr.split_once('/').is_some_and(|(address, bits)| {
        let most = address.parse::<IpAddr>().map(|address| if address.is_ipv4() { 32 } else { 128 });
        most.is_ok_and(|most| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
    });
    if !cidr.is_empty() && !sound {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        causes.push(Cause::invalid_str(format!("{path}.ipBlock.cidr"), cidr, detail));
    }
}
