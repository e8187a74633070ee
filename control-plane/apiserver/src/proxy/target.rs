//! Where a proxied request goes: address, scheme, and the path and query that the target understands. Reads the cache, connects nothing.

use std::{fmt::Write as _, net::IpAddr};

use control_plane_api::{Cause, Object, Status};
use serde_json::Value;

use crate::{status::Outcome, verb::Call};

/// The kubelet's port when its node names none.
const KUBELET_PORT: u16 = 10250;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    /// With any certificate: pods and Services prove nothing to the API server.
    Https,
    /// With the client certificate that kubelets know.
    Kubelet,
}

#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path_and_query: String,
}

fn unavailable(why: String) -> crate::status::Failure {
    Status::service_unavailable(why).into()
}

/// The address of a node's kubelet.
fn kubelet(call: &Call, node: &str) -> Outcome<(String, u16)> {
    let found = call.kernel.cache.of("", "nodes").and_then(|nodes| nodes.get("", node));
    let node = found.ok_or_else(|| Status::not_found("", "nodes", node))?.object();
    let addresses = node.list_at(&["status", "addresses"]);
    let of_type = |wanted: &str| {
        let found = addresses.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(wanted))?;
        Some(found.get("address")?.as_str()?.to_owned())
    };
    let host = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS"].iter().find_map(|kind| of_type(kind));
    let host = host
        .ok_or_else(|| unavailable(format!("no preferred addresses found; node {:?} reports none yet", node.name())))?;
    let port = node.i64_at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    Ok((host, port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(KUBELET_PORT)))
}

/// An address that pods and Services may lead to; upstream's rule, against CVE-2020-8558's kind: whoever writes a status or an
/// EndpointSlice would otherwise reach what listens on the server's own loopback, or a cloud's metadata.
fn proxyable(text: &str) -> Outcome<String> {
    let refused = || Status::bad_request(format!("address not allowed: {text:?} is no address that pods have"));
    let address: IpAddr = text.parse().map_err(|_| refused())?;
    let address = address.to_canonical();
    let is_allowed = match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    if !is_allowed || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(refused().into());
    }
    Ok(address.to_string())
}

/// logs, exec, attach and port-forward of a pod, in the kubelet's words.
pub(super) async fn pod_connection(call: &Call) -> Outcome<Target> {
    let pod = call_pod(call).await?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or("");
    let sub = call.path.subresource.as_str();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name())).into());
    }
    let mut path = String::new();
    let verb = match sub {
        "log" => "containerLogs",
        "exec" => "exec",
        "attach" => "attach",
        _ => "portForward",
    };
    let _ = write!(path, "/{verb}/{}/{}", pod.namespace(), pod.name());
    if sub != "portforward" {
        let _ = write!(path, "/{}", container(call, &pod)?);
    }
    let query = match sub {
        "log" => log_query(call)?,
        "portforward" => {
            let ports: Vec<String> = call
                .query
                .all("ports")
                .flat_map(|list| list.split(','))
                .map(|port| format!("port={}", encode(port)))
                .collect();
            ports.join("&")
        }
        _ => stream_query(call),
    };
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query);
    }
    let (host, port) = kubelet(call, node)?;
    Ok(Target { scheme: Scheme::Kubelet, host, port, path_and_query: path })
}

async fn call_pod(call: &Call) -> Outcome<Object> {
    call.kernel.cache.catch_up().await?;
    let pod = call.collection()?.get(&call.path.namespace, call.path.name.as_str());
    Ok(pod.ok_or_else(|| call.not_found())?.object())
}

/// The container asked for, or the pod's only one.
fn container(call: &Call, pod: &Object) -> Outcome<String> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| -> Vec<String> {
        let containers = pod.list_at(&["spec", list]).iter();
        containers.filter_map(|one| one.get("name")?.as_str().map(str::to_owned)).collect()
    };
    if let Some(wanted) = call.query.first("container") {
        if lists.iter().any(|list| names(list).iter().any(|name| name == wanted)) {
            return Ok(wanted.to_owned());
        }
        return Err(Status::bad_request(format!("container {wanted} is not valid for pod {}", pod.name())).into());
    }
    match &names("containers")[..] {
        [only] => Ok(only.clone()),
        all => {
            let init = names("initContainers");
            let init = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]{init}",
                pod.name(),
                all.join(" ")
            ))
            .into())
        }
    }
}

fn log_query(call: &Call) -> Outcome<String> {
    const NUMBERS: [(&str, i64); 3] = [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)];
    let mut parts = Vec::new();
    let mut causes = Vec::new();
    for (name, min) in NUMBERS {
        let Some(text) = call.query.first(name) else { continue };
        match text.parse::<i64>() {
            Ok(number) if number >= min => parts.push(format!("{name}={number}")),
            Ok(_) => causes.push(Cause::invalid_str(name, text, &format!("must be greater than or equal to {min}"))),
            Err(_) => return Err(Status::bad_request(format!("{name} must be a number, not {text:?}")).into()),
        }
    }
    if call.query.first("sinceSeconds").is_some() && call.query.first("sinceTime").is_some() {
        causes.push(Cause::invalid_str(
            "sinceSeconds",
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if !causes.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", &call.path.name, causes).into());
    }
    for name in ["follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"] {
        if call.query.flag(name) && name != "insecureSkipTLSVerifyBackend" {
            parts.push(format!("{name}=true"));
        }
    }
    for name in ["sinceTime", "stream"] {
        if let Some(value) = call.query.first(name) {
            parts.push(format!("{name}={}", encode(value)));
        }
    }
    Ok(parts.join("&"))
}

/// The kubelet calls standard streams input, output and error.
fn stream_query(call: &Call) -> String {
    let mut parts = Vec::new();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if call.query.flag(ours) {
            parts.push(format!("{theirs}=1"));
        }
    }
    parts.extend(call.query.all("command").map(|word| format!("command={}", encode(word))));
    parts.join("&")
}

/// Percent-encodes everything that is not plainly safe in a query.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// What follows `/proxy`, with the caller's query.
fn rest(call: &Call, query: &str) -> String {
    let question = if query.is_empty() { "" } else { "?" };
    format!("/{}{question}{query}", call.path.rest)
}

fn sent_query(call: &Call) -> String {
    call.query.to_text(encode)
}

pub(super) async fn node(call: &Call) -> Outcome<Target> {
    let (name, given) = match call.path.name.rsplit_once(':') {
        Some((name, port)) => (name, Some(parse_port(port)?)),
        None => (call.path.name.as_str(), None),
    };
    let (host, port) = kubelet(call, name)?;
    let (scheme, host, port) = match given {
        // Whatever else listens on the node: not on an address that the node only claims.
        Some(other) if other != port => (Scheme::Http, proxyable(&host)?, other),
        _ => (Scheme::Kubelet, host, port),
    };
    Ok(Target { scheme, host, port, path_and_query: rest(call, &sent_query(call)) })
}

/// `name`, `name:port`, `scheme:name:port`.
fn split(name: &str) -> Outcome<(Scheme, &str, &str)> {
    let parts: Vec<&str> = name.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => {
            return Err(
                Status::bad_request(format!("invalid proxy target {name:?}: write [scheme:]name[:port]")).into()
            );
        }
    };
    match scheme {
        "" | "http" => Ok((Scheme::Http, name, port)),
        "https" => Ok((Scheme::Https, name, port)),
        other => Err(Status::bad_request(format!("invalid scheme {other:?}: use http or https")).into()),
    }
}

fn parse_port(text: &str) -> Outcome<u16> {
    Ok(text.parse().map_err(|_| Status::bad_request(format!("invalid port {text:?}")))?)
}

pub(super) async fn pod(call: &Call) -> Outcome<Target> {
    let (scheme, name, port) = split(&call.path.name)?;
    call.kernel.cache.catch_up().await?;
    let found = call.collection()?.get(&call.path.namespace, name);
    let pod = found.ok_or_else(|| Status::not_found("", "pods", name))?.object();
    let port = if port.is_empty() { first_port(&pod)? } else { parse_port(port)? };
    let host = pod.str_at(&["status", "podIP"]).unwrap_or("").to_owned();
    if host.is_empty() {
        return Err(unavailable(format!("pod {name} has no address yet")));
    }
    let host = proxyable(&host)?;
    Ok(Target { scheme, host, port, path_and_query: rest(call, &sent_query(call)) })
}

fn first_port(pod: &Object) -> Outcome<u16> {
    let containers = pod.list_at(&["spec", "containers"]).iter();
    let mut ports = containers.flat_map(|one| one.get("ports").and_then(Value::as_array).into_iter().flatten());
    let port = ports.find_map(|port| port.get("containerPort")?.as_u64());
    Ok(port.and_then(|port| u16::try_from(port).ok()).unwrap_or(80))
}

/// A ready endpoint of the Service.
pub(super) async fn service(call: &Call) -> Outcome<Target> {
    let (scheme, name, wanted) = split(&call.path.name)?;
    call.kernel.cache.catch_up().await?;
    let found = call.collection()?.get(&call.path.namespace, name);
    let service = found.ok_or_else(|| Status::not_found("", "services", name))?.object();
    let ports = service.list_at(&["spec", "ports"]);
    let entry = match wanted {
        "" if ports.len() == 1 => ports.first(),
        "" => None,
        wanted => ports.iter().find(|port| {
            port.get("name").and_then(Value::as_str) == Some(wanted)
                || port.get("port").and_then(Value::as_u64).is_some_and(|number| number.to_string() == wanted)
        }),
    };
    let Some(entry) = entry else {
        return Err(unavailable(format!("no service port {wanted:?} found for service {name:?}")));
    };
    let port_name = entry.get("name").and_then(Value::as_str).unwrap_or("");
    let slices = call.kernel.cache.of("discovery.k8s.io", "endpointslices");
    let endpoint = slices.and_then(|slices| {
        let prefix = format!("{}{}/", slices.prefix(), call.path.namespace);
        let snapshot = slices.snapshot();
        let own = snapshot.range(&prefix, "").filter(|slice| slice.label("kubernetes.io/service-name") == Some(name));
        own.map(|slice| slice.object()).find_map(|slice| endpoint(&slice, port_name))
    });
    let (host, port) = endpoint.ok_or_else(|| unavailable(format!("no endpoints available for service {name:?}")))?;
    let host = proxyable(&host)?;
    Ok(Target { scheme, host, port, path_and_query: rest(call, &sent_query(call)) })
}

fn endpoint(slice: &Object, port_name: &str) -> Option<(String, u16)> {
    let ports = slice.list_at(&["ports"]);
    let port = ports.iter().find(|port| port.get("name").and_then(Value::as_str).unwrap_or("") == port_name)?;
    let port = u16::try_from(port.get("port")?.as_u64()?).ok()?;
    let ready = slice.list_at(&["endpoints"]).iter().find(|endpoint| {
        endpoint.get("conditions").and_then(|conditions| conditions.get("ready")).and_then(Value::as_bool)
            != Some(false)
    })?;
    let address = ready.get("addresses")?.as_array()?.first()?.as_str()?;
    Some((address.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_targets() {
        assert_eq!(split("web").ok(), Some((Scheme::Http, "web", "")));
        assert_eq!(split("web:http").ok(), Some((Scheme::Http, "web", "http")));
        assert_eq!(split("https:web:443").ok(), Some((Scheme::Https, "web", "443")));
        for (address, expect) in [
            ("10.42.0.7", true),
            ("192.168.1.1", true),
            ("fd00::7", true),
            ("127.0.0.1", false),
            ("127.1.2.3", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("0.0.0.0", false),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("localhost", false),
            ("0x7f.1", false),
            ("", false),
        ] {
            assert_eq!(proxyable(address).is_ok(), expect, "{address}");
        }
        assert!(split("ftp:web:21").is_err() && split("a:b:c:d").is_err());
        assert_eq!(encode("a b&c=\u{e9}"), "a%20b%26c%3D%C3%A9");
    }
}
