//! Lines of services, endpoints, ingresses and network policies.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, Printer, age, labels, list, name, plain, selector, text, text_or, wide};
use crate::Object;

pub(super) fn printer(kind: &str) -> Option<Printer> {
    let printer = match kind {
        "Service" => Printer {
            columns: const {
                &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")]
            },
            cells: service,
        },
        "Endpoints" => Printer { columns: const { &[NAME, text("Endpoints"), AGE] }, cells: endpoints },
        "EndpointSlice" => Printer {
            columns: const { &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE] },
            cells: endpoint_slice,
        },
        "Ingress" => Printer {
            columns: const { &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE] },
            cells: ingress,
        },
        "IngressClass" => {
            Printer { columns: const { &[NAME, text("Controller"), text("Parameters"), AGE] }, cells: ingress_class }
        }
        "NetworkPolicy" => Printer {
            columns: const { &[NAME, text("Pod-Selector"), AGE] },
            cells: |object, now| vec![name(object), selector(object.at(&["spec", "podSelector"])), age(object, now)],
        },
        "IPAddress" => Printer { columns: const { &[NAME, text("ParentRef")] }, cells: ip_address },
        "ServiceCIDR" => Printer { columns: const { &[NAME, text("CIDRs"), AGE] }, cells: service_cidr },
        _ => return None,
    };
    Some(printer)
}

fn texts<'a>(object: &'a Object, path: &[&str]) -> impl Iterator<Item = &'a str> + use<'a> {
    object.list_at(path).iter().filter_map(Value::as_str)
}

/// The addresses of a load balancer, by IP or name.
fn ingress_points(object: &Object) -> Vec<&str> {
    let points = object.list_at(&["status", "loadBalancer", "ingress"]).iter();
    points.filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str())).collect()
}

fn external_ip(object: &Object, kind: &str) -> Value {
    let given: Vec<&str> = texts(object, &["spec", "externalIPs"]).collect();
    match kind {
        "ExternalName" => text_or(object, &["spec", "externalName"], "<none>"),
        "LoadBalancer" => {
            let mut all = ingress_points(object);
            all.extend(given);
            if all.is_empty() { "<pending>".into() } else { list(all) }
        }
        _ => list(given),
    }
}

fn service(object: &Object, now: Timestamp) -> Vec<Value> {
    let kind = object.str_at(&["spec", "type"]).unwrap_or("ClusterIP");
    let ports: Vec<String> = object.list_at(&["spec", "ports"]).iter().map(service_port).collect();
    vec![
        name(object),
        kind.into(),
        text_or(object, &["spec", "clusterIP"], "<none>"),
        external_ip(object, kind),
        list(ports.iter().map(String::as_str)),
        age(object, now),
        labels(object.at(&["spec", "selector"])),
    ]
}

fn service_port(port: &Value) -> String {
    let number = port["port"].as_i64().unwrap_or(0);
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    match port["nodePort"].as_i64() {
        Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
        _ => format!("{number}/{protocol}"),
    }
}

/// At most this many are named; the rest is counted.
const SHOWN_MAX: usize = 3;

fn shortened(items: &[String], more_of: usize) -> Value {
    if items.is_empty() {
        return "<none>".into();
    }
    let shown = items[..items.len().min(SHOWN_MAX)].join(",");
    if more_of > SHOWN_MAX { format!("{shown} + {} more...", more_of - SHOWN_MAX).into() } else { shown.into() }
}

fn endpoints(object: &Object, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.list_at(&["subsets"]) {
        let addresses = subset["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        let ports = subset["ports"].as_array().map_or(&[][..], Vec::as_slice);
        let ips = addresses.iter().filter_map(|address| address["ip"].as_str());
        if ports.is_empty() {
            all.extend(ips.map(str::to_owned));
            continue;
        }
        for port in ports {
            let number = port["port"].as_i64().unwrap_or(0);
            let join = |ip: &str| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") };
            all.extend(addresses.iter().filter_map(|address| address["ip"].as_str()).map(join));
        }
    }
    let total = all.len();
    vec![name(object), shortened(&all, total), age(object, now)]
}

fn endpoint_slice(object: &Object, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list_at(&["ports"])
        .iter()
        .map(|port| plain(port.get("port"), "*").as_str().unwrap_or("*").into())
        .collect();
    let ports_total = ports.len();
    let ports = if ports.is_empty() { Value::from("<unset>") } else { shortened(&ports, ports_total) };
    let addresses = object.list_at(&["endpoints"]).iter();
    let addresses: Vec<String> = addresses
        .flat_map(|one| one["addresses"].as_array().into_iter().flatten())
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let total = addresses.len();
    let shown = if addresses.is_empty() { Value::from("<unset>") } else { shortened(&addresses, total) };
    vec![name(object), text_or(object, &["addressType"], ""), ports, shown, age(object, now)]
}

fn ingress(object: &Object, now: Timestamp) -> Vec<Value> {
    let rules = object.list_at(&["spec", "rules"]);
    let hosts: Vec<String> = rules
        .iter()
        .filter_map(|rule| rule["host"].as_str())
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect();
    let total = hosts.len();
    let hosts = if hosts.is_empty() { Value::from("*") } else { shortened(&hosts, total) };
    let tls = !object.list_at(&["spec", "tls"]).is_empty();
    let class = text_or(object, &["spec", "ingressClassName"], "<none>");
    let address = ingress_points(object).join(",");
    vec![name(object), class, hosts, address.into(), if tls { "80, 443".into() } else { "80".into() }, age(object, now)]
}

fn ingress_class(object: &Object, now: Timestamp) -> Vec<Value> {
    let part = |key: &str| object.str_at(&["spec", "parameters", key]).unwrap_or_default();
    let parameters = if object.at(&["spec", "parameters"]).is_none() {
        "<none>".to_owned()
    } else {
        let group = if part("apiGroup").is_empty() { String::new() } else { format!(".{}", part("apiGroup")) };
        format!("{}{group}/{}", part("kind"), part("name"))
    };
    vec![name(object), text_or(object, &["spec", "controller"], ""), parameters.into(), age(object, now)]
}

fn ip_address(object: &Object, _: Timestamp) -> Vec<Value> {
    let part = |key: &str| object.str_at(&["spec", "parentRef", key]).filter(|text| !text.is_empty());
    let parts = ["group", "resource", "namespace", "name"].into_iter().filter_map(part);
    vec![name(object), parts.collect::<Vec<_>>().join("/").into()]
}

fn service_cidr(object: &Object, now: Timestamp) -> Vec<Value> {
    vec![name(object), list(texts(object, &["spec", "cidrs"])), age(object, now)]
}
