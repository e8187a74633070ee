//! Where a registry's content is fetched from: `<registries dir>/<registry>/hosts.toml`, else `_default/hosts.toml`, else the
//! registry itself. The format is containerd's. Reading it touches the disk; nothing here touches the network.
//! Invariant: the registry itself is asked last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use http::Uri;
use http::uri::Authority;
use serde::Deserialize;

use super::Error;

const DEFAULT_DIR: &str = "_default";
const DOCKER_REGISTRY: &str = "docker.io";
const DOCKER_HOST: &str = "registry-1.docker.io";

/// One place to ask, before anything was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) scheme: Scheme,
    pub(super) authority: String,
    /// `/v2`, or what the configuration says instead.
    pub(super) path: String,
    pub(super) mirror: bool,
    pub(super) pull: bool,
    pub(super) resolve: bool,
    pub(super) push: bool,
    pub(super) tls: Tls,
    pub(super) headers: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    Http,
    /// HTTPS, or plain HTTP if that is what answers: for insecure registries and this machine itself.
    Either,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) skip_verify: bool,
    pub(super) ca: Vec<PathBuf>,
    /// Certificate and key; one file may hold both.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
}

#[derive(Debug, Default, Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Debug, Default, Deserialize)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    /// Ours is one limit for all registries; the key is known so that it is not warned about.
    #[serde(rename = "dial_timeout")]
    _dial_timeout: Option<toml::Value>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Everyone to ask about `registry`, first choice first.
pub(super) fn endpoints(registry: &str, dir: Option<&Path>, insecure: &[String]) -> Result<Vec<Endpoint>, Error> {
    let own = own_endpoint(registry, insecure);
    let Some((text, at)) = dir.map(|dir| find(registry, dir)).transpose()?.flatten() else { return Ok(vec![own]) };
    parse(registry, &text, &at, own)
}

fn find(registry: &str, dir: &Path) -> Result<Option<(String, PathBuf)>, Error> {
    // The second form is for file systems that do not like colons.
    let spelled = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), spelled, Some(DEFAULT_DIR.to_owned())];
    for name in names.into_iter().flatten() {
        let at = dir.join(&name);
        match fs::read_to_string(at.join("hosts.toml")) {
            Ok(text) => return Ok(Some((text, at))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A directory with nothing but a certificate is the oldest form.
                let ca = at.join("ca.crt");
                if name != DEFAULT_DIR && ca.exists() {
                    return Ok(Some(("ca = \"ca.crt\"".to_owned(), at)));
                }
            }
            Err(error) => return Err(invalid(registry, &at, &error)),
        }
    }
    Ok(None)
}

fn invalid(registry: &str, at: &Path, reason: &dyn std::fmt::Display) -> Error {
    let path = at.join("hosts.toml").display().to_string();
    Error::Configuration { registry: registry.to_owned(), path, reason: reason.to_string() }
}

fn own_endpoint(registry: &str, insecure: &[String]) -> Endpoint {
    let authority = if registry == DOCKER_REGISTRY { DOCKER_HOST } else { registry };
    let insecure = insecure.iter().any(|entry| entry == registry || Some(entry.as_str()) == host_of(registry));
    Endpoint {
        scheme: if insecure || is_loopback(authority) { Scheme::Either } else { Scheme::Https },
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        mirror: false,
        pull: true,
        resolve: true,
        push: true,
        tls: Tls { skip_verify: insecure, ..Tls::default() },
        headers: Vec::new(),
    }
}

fn parse(registry: &str, text: &str, at: &Path, own: Endpoint) -> Result<Vec<Endpoint>, Error> {
    let invalid = |reason: &dyn std::fmt::Display| invalid(registry, at, reason);
    let file: HostsFile = toml::from_str(text).map_err(|error| invalid(&error.message()))?;
    let mut endpoints = Vec::new();
    for (address, table) in file.host {
        let table: HostTable = table.try_into().map_err(|error: toml::de::Error| invalid(&error.message()))?;
        let mut endpoint = Endpoint { mirror: true, push: false, ..own.clone() };
        endpoint.tls = Tls { skip_verify: own.tls.skip_verify && own.authority == address, ..Tls::default() };
        address_into(&address, &mut endpoint).map_err(|reason| invalid(&reason))?;
        endpoint.mirror = endpoint.authority != own.authority;
        settings_into(table, at, &mut endpoint).map_err(|reason| invalid(&reason))?;
        endpoints.push(endpoint);
    }
    let mut last = own;
    if let Some(server) = &file.server {
        let registry_authority = last.authority.clone();
        address_into(server, &mut last).map_err(|reason| invalid(&reason))?;
        // A server given for one registry is that registry; one given for all of them only stands in.
        last.mirror = at.ends_with(DEFAULT_DIR) && last.authority != registry_authority;
    }
    settings_into(file.own, at, &mut last).map_err(|reason| invalid(&reason))?;
    if !endpoints.iter().any(|endpoint| endpoint.authority == last.authority && endpoint.path == last.path) {
        endpoints.push(last);
    }
    Ok(endpoints)
}

fn address_into(address: &str, endpoint: &mut Endpoint) -> Result<(), String> {
    let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let uri: Uri = full.parse().map_err(|error| format!("{address:?} is not an address: {error}"))?;
    endpoint.scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") if address.contains("://") => Scheme::Https,
        Some("https") if uri.host().is_some_and(is_loopback) => Scheme::Either,
        Some("https") => Scheme::Https,
        other => return Err(format!("{address:?} has scheme {other:?}, only http and https are known")),
    };
    endpoint.authority =
        uri.authority().map(Authority::to_string).ok_or_else(|| format!("{address:?} names no host"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("{address:?} holds credentials; give them as a header"));
    }
    endpoint.path = uri.path().trim_end_matches('/').to_owned();
    Ok(())
}

fn settings_into(table: HostTable, at: &Path, endpoint: &mut Endpoint) -> Result<(), String> {
    for key in table.unknown.keys() {
        tracing::warn!(path = %at.display(), key, "unknown key in hosts.toml has no effect");
    }
    if table.override_path != Some(true) && !endpoint.path.ends_with("/v2") {
        endpoint.path.push_str("/v2");
    }
    if let Some(capabilities) = &table.capabilities {
        let has = |name: &str| capabilities.iter().any(|capability| capability == name);
        if let Some(odd) = capabilities.iter().find(|name| !matches!(name.as_str(), "pull" | "resolve" | "push")) {
            return Err(format!("capability {odd:?} is not one of pull, resolve, push"));
        }
        (endpoint.pull, endpoint.resolve, endpoint.push) = (has("pull"), has("resolve"), has("push"));
    }
    if let Some(skip) = table.skip_verify {
        endpoint.tls.skip_verify = skip;
    }
    endpoint.tls.ca.extend(table.ca.map(OneOrMany::list).unwrap_or_default().iter().map(|path| at.join(path)));
    endpoint.tls.client.extend(match table.client {
        None => Vec::new(),
        Some(Client::One(both)) => vec![(at.join(&both), at.join(&both))],
        Some(Client::Many(all)) => all.iter().map(|both| (at.join(both), at.join(both))).collect(),
        Some(Client::Pairs(pairs)) => {
            pairs.iter().map(|(cert, key)| (at.join(cert), at.join(if key.is_empty() { cert } else { key }))).collect()
        }
    });
    for (name, values) in table.header {
        endpoint.headers.extend(values.list().into_iter().map(|value| (name.clone(), value)));
    }
    Ok(())
}

fn host_of(registry: &str) -> Option<&str> {
    registry.parse::<Authority>().ok().map(|_| registry.rsplit_once(':').map_or(registry, |(host, _)| host))
}

/// Traffic that never leaves this machine needs no TLS to be private.
pub(super) fn is_loopback(authority: &str) -> bool {
    let Ok(parsed) = authority.parse::<Authority>() else { return false };
    let host = parsed.host().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, files: &[(&str, &str)], expect: &[&str]) -> Vec<Endpoint> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found =
            endpoints(registry, Some(dir.path()), &["plain.example:5000".into(), "bare.example".into()]).unwrap();
        let text: Vec<String> = found
            .iter()
            .map(|e| {
                let scheme = match e.scheme {
                    Scheme::Https => "https",
                    Scheme::Http => "http",
                    Scheme::Either => "either",
                };
                let flags: String =
                    [(e.pull, 'p'), (e.resolve, 'r'), (e.push, 'u'), (e.mirror, 'm'), (e.tls.skip_verify, 'k')]
                        .iter()
                        .filter_map(|(on, letter)| on.then_some(*letter))
                        .collect();
                format!("{scheme}://{}{} {flags}", e.authority, e.path)
            })
            .collect();
        assert_eq!(text, expect, "{registry} {files:?}");
        found
    }

    #[test]
    fn without_files() {
        check("docker.io", &[], &["https://registry-1.docker.io/v2 pru"]);
        check("ghcr.io", &[], &["https://ghcr.io/v2 pru"]);
        check("localhost:5000", &[], &["either://localhost:5000/v2 pru"]);
        check("127.0.0.1:5000", &[], &["either://127.0.0.1:5000/v2 pru"]);
        check("plain.example:5000", &[], &["either://plain.example:5000/v2 pruk"]);
        check("bare.example:81", &[], &["either://bare.example:81/v2 pruk"]);
    }

    #[test]
    fn mirrors_keep_their_order_and_the_registry_is_last() {
        let text = "server = \"https://docker.io\"\n[host.\"http://z:1\"]\ncapabilities=[\"pull\",\"resolve\"]\n\
                    [host.\"https://a/proxy\"]\ncapabilities=[\"pull\"]\nskip_verify=true\n[host.\"b/v2\"]\noverride_path=true\n";
        check(
            "docker.io",
            &[("docker.io/hosts.toml", text)],
            &["http://z:1/v2 prm", "https://a/proxy/v2 pmk", "https://b/v2 prm", "https://docker.io/v2 pru"],
        );
        check("q.io", &[("_default/hosts.toml", "[host.\"http://m\"]")], &["http://m/v2 prm", "https://q.io/v2 pru"]);
        let both = [("_default/hosts.toml", "[host.\"http://m\"]"), ("q.io/hosts.toml", "skip_verify = true")];
        check("q.io", &both, &["https://q.io/v2 pruk"]);
        check("q.io", &[("_default/hosts.toml", "server = \"https://all.io\"")], &["https://all.io/v2 prum"]);
        check("q.io:5000", &[("q.io_5000_/hosts.toml", "server = \"http://q.io:5000\"")], &["http://q.io:5000/v2 pru"]);
    }

    #[test]
    fn certificates_and_headers() {
        let text = "ca = \"ca.crt\"\nclient = [[\"c.pem\", \"k.pem\"]]\n[header]\nx-a = \"1\"\nx-b = [\"2\", \"3\"]\n";
        let found = check("q.io", &[("q.io/hosts.toml", text)], &["https://q.io/v2 pru"]);
        assert!(found[0].tls.ca[0].ends_with("q.io/ca.crt"));
        assert!(found[0].tls.client[0].1.ends_with("q.io/k.pem"));
        assert_eq!(found[0].headers.len(), 3);
        let found = check("q.io", &[("q.io/ca.crt", "")], &["https://q.io/v2 pru"]);
        assert!(found[0].tls.ca[0].ends_with("q.io/ca.crt"));
    }

    #[test]
    fn refuses() {
        for bad in ["server = 5", "[host.\"ftp://x\"]", "capabilities = [\"fly\"]", "[", "[host.\"https://u:p@x\"]"] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("q.io")).unwrap();
            fs::write(dir.path().join("q.io/hosts.toml"), bad).unwrap();
            let error = endpoints("q.io", Some(dir.path()), &[]).unwrap_err();
            assert!(matches!(error, Error::Configuration { .. }), "{bad}");
        }
    }
}
