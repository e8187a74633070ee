//! The plugin `portmap`: ports of the node that lead to a container, as elements of maps.
//!
//! Comes behind `bridge` in a list and acts on `runtimeConfig.portMappings`. Elements carry their owner as a comment, so
//! DEL and GC need no memory. A port that another container has, or that a process of the node listens on, is refused,
//! never taken; `reserved` names such places (`"0.0.0.0:6443"`) where nobody may listen yet. IPv4 only; a mapping with an
//! IPv6 `hostIP` is refused by name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cni_netlink::listening::{Transport, is_shadowed, listening};
use cni_netlink::nft::{Element, Family, FoundElement, NftError, Nftables, Transaction, Value as NftValue};
use cni_netlink::sysctl;
use cni_spec::{AddResult, Attachment, Code, Command, PluginError};
use serde::Deserialize;
use serde_json::Value;

use crate::bridge::TABLE_SUFFIX;
use crate::{Request, failed};

mod layout;
mod stale;

use layout::{AT, HAIRPIN, PORTS};

const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
/// Another ADD or DEL may change the maps between reading and writing them.
const ATTEMPTS_MAX: usize = 5;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default = "default_table")]
    table: String,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(default)]
    reserved: Vec<SocketAddr>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<PortMapping>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

fn default_table() -> String {
    "sampan".into()
}

/// Handles a request.
///
/// # Errors
/// A CNI error object.
pub fn run(request: &Request) -> Result<Value, PluginError> {
    let config: Config = request.config_as()?;
    let table = format!("{}{TABLE_SUFFIX}", config.table);
    let owner = owner_of(&Attachment {
        container_id: request.environment.container_id.clone(),
        if_name: request.environment.if_name.clone(),
    });
    match request.environment.command {
        Command::Add => {
            let previous = request.previous.as_ref();
            let previous = previous.ok_or_else(|| {
                PluginError::new(Code::InvalidConfig, "portmap needs `prevResult`; put it behind the main plugin")
            })?;
            add(&table, &config, &owner, previous)?;
            request.respond(previous)
        }
        Command::Del => {
            let ports = remove(&table, |comment| comment == owner)?;
            stale::forget(&ports, None).map(|()| Value::Null)
        }
        Command::Check => check(&table, &config, &owner).map(|()| Value::Null),
        Command::Gc => {
            let kept: Vec<String> = request.valid_attachments()?.iter().map(owner_of).collect();
            let ports = remove(&table, |comment| !kept.iter().any(|owner| owner == comment))?;
            stale::forget(&ports, None).map(|()| Value::Null)
        }
        Command::Status | Command::Version => Ok(Value::Null),
    }
}

/// Short enough for a comment; container ids are 64 characters.
fn owner_of(attachment: &Attachment) -> String {
    let id: String = attachment.container_id.chars().take(100).collect();
    format!("{id} {}", attachment.if_name)
}

pub(crate) fn plan_any(request: &Request) -> Result<(), PluginError> {
    let config: Config = request.config_as()?;
    let mappings = &config.runtime_config.port_mappings;
    mappings.iter().try_for_each(|mapping| element(mapping, Ipv4Addr::LOCALHOST, "fuzz").map(drop))
}

fn add(table: &str, config: &Config, owner: &str, previous: &AddResult) -> Result<(), PluginError> {
    let mappings: Vec<&PortMapping> =
        config.runtime_config.port_mappings.iter().filter(|mapping| mapping.host_port != 0).collect();
    if mappings.is_empty() {
        return Ok(());
    }
    let address = previous.ips.iter().find_map(|ip| match ip.address.address() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let Some(address) = address else {
        return Err(PluginError::new(Code::InvalidConfig, "port mappings need an IPv4 address in `prevResult`"));
    };
    let elements: Vec<(&str, Element)> =
        mappings.iter().map(|mapping| element(mapping, address, owner)).collect::<Result<_, _>>()?;
    refuse_listening(&elements, &config.reserved)?;
    // Connections of the node to 127.0.0.1 leave by the bridge; layout.rs keeps everybody else from using this.
    if let Some(bridge) = previous.interfaces.iter().find(|interface| interface.sandbox.is_empty()) {
        sysctl::ensure(&format!("net/ipv4/conf/{}/route_localnet", bridge.name), "1")
            .map_err(|error| failed(Code::Internal, "allow 127.0.0.1 for port mappings", &error))?;
    }
    // What an ADD that was killed left under this owner.
    remove(table, |comment| comment == owner)?;
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    refuse_taken(&mut nft, &elements)?;
    let mut transaction = Transaction::new(Family::Inet);
    layout::ensure(&mut nft, &mut transaction, table).map_err(|error| broken(&error))?;
    let hairpin = [address.octets(), address.octets()].concat();
    let comment = Some(owner.to_owned());
    transaction.add_elements(table, HAIRPIN, [Element { comment, ..Element::new(hairpin, NftValue::Nothing) }]);
    let datagrams = elements.iter().filter_map(|(_, element)| stale::udp_port(&element.key)).collect();
    for (set, element) in elements {
        transaction.add_elements(table, set, [element]);
    }
    nft.apply(transaction).map_err(|error| match error.errno() {
        Some(EEXIST) => PluginError::new(Code::TryAgainLater, "a host port was taken by another container meanwhile"),
        _ => broken(&error),
    })?;
    stale::forget(&datagrams, Some(address))
}

/// A mapping takes what comes for the port before any process of the node sees it: the API server, the kubelet, ssh.
fn refuse_listening(elements: &[(&str, Element)], reserved: &[SocketAddr]) -> Result<(), PluginError> {
    let mut known: Vec<(Transport, Vec<SocketAddr>)> = Vec::new();
    for (set, element) in elements {
        let from_end = |back: usize| element.key.len().checked_sub(back);
        let protocol = from_end(8).and_then(|at| element.key.get(at)).copied().unwrap_or_default();
        let Some(transport) = Transport::of(protocol) else { continue };
        let address = (*set == AT).then(|| element.key.get(..4)).flatten();
        let address = address.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        if !known.iter().any(|(of, _)| *of == transport) {
            let found = listening(transport).map_err(|error| failed(Code::Internal, "port mappings", &error))?;
            known.push((transport, found));
        }
        let port = port_of(&element.key);
        let found = known.iter().filter(|(of, _)| *of == transport).flat_map(|(_, sockets)| sockets);
        if let Some(socket) = reserved.iter().chain(found).find(|socket| is_shadowed(socket, address, port)) {
            let message =
                format!("host port {port} is one that this node itself listens on ({socket}); choose another");
            return Err(PluginError::new(Code::TryAgainLater, message));
        }
    }
    Ok(())
}

/// A port belongs to one container of the node, whichever network (and so table) that is attached to; a port of one
/// address also clashes with the same port of all addresses.
fn refuse_taken(nft: &mut Nftables, elements: &[(&str, Element)]) -> Result<(), PluginError> {
    let tables = nft.tables(Family::Inet).map_err(|error| broken(&error))?;
    for table in tables.iter().filter(|table| table.ends_with(TABLE_SUFFIX)) {
        for set in [PORTS, AT] {
            let found = nft.elements(Family::Inet, table, set).map_err(|error| broken(&error))?;
            for (own_set, element) in elements {
                if let Some(other) = found.iter().find(|found| clashes(own_set, &element.key, set, &found.key)) {
                    let holder = other.comment.clone().unwrap_or_else(|| "another program".into());
                    let port = port_of(&element.key);
                    let message = format!("host port {port} belongs to container {holder} (table {table})");
                    return Err(PluginError::new(Code::TryAgainLater, message));
                }
            }
        }
    }
    Ok(())
}

/// Keys end with protocol and port; those of `AT` begin with an address.
fn clashes(set: &str, key: &[u8], other_set: &str, other_key: &[u8]) -> bool {
    let port = |key: &[u8]| key.len().checked_sub(8).and_then(|at| key.get(at..)).map(<[u8]>::to_vec);
    port(key) == port(other_key) && (set != AT || other_set != AT || key == other_key)
}

fn port_of(key: &[u8]) -> u16 {
    let bytes = key.len().checked_sub(4).and_then(|at| key.get(at..at + 2));
    bytes.map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])).unwrap_or_default()
}

fn element(mapping: &PortMapping, address: Ipv4Addr, owner: &str) -> Result<(&'static str, Element), PluginError> {
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        other => {
            let message = format!("port mapping: protocol `{other}` is none of tcp, udp, sctp");
            return Err(PluginError::new(Code::InvalidConfig, message));
        }
    };
    let [high, low] = mapping.host_port.to_be_bytes();
    let mut key = vec![protocol, 0, 0, 0, high, low, 0, 0];
    let mut set = PORTS;
    match mapping.host_ip.as_str() {
        "" | "0.0.0.0" | "::" => {}
        text => {
            let host: Ipv4Addr = text.parse().map_err(|_| {
                PluginError::new(Code::UnsupportedField, format!("`hostIP` {text} is not an IPv4 address"))
            })?;
            key.splice(0..0, host.octets());
            set = AT;
        }
    }
    let [high, low] = mapping.container_port.to_be_bytes();
    let value = [&address.octets()[..], &[high, low, 0, 0]].concat();
    let comment = Some(owner.to_owned());
    Ok((set, Element { comment, ..Element::new(key, NftValue::Bytes(value)) }))
}

/// Removes the elements of the owners `is_gone` chooses; no table is fine. The UDP ports among them.
fn remove(table: &str, is_gone: impl Fn(&str) -> bool) -> Result<BTreeSet<u16>, PluginError> {
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut transaction = Transaction::new(Family::Inet);
        let mut datagrams = BTreeSet::new();
        for set in [PORTS, AT, HAIRPIN] {
            let found = nft.elements(Family::Inet, table, set).map_err(|error| broken(&error))?;
            let gone = found.into_iter().filter(|element| element.comment.as_deref().is_some_and(&is_gone));
            let gone: Vec<Vec<u8>> = gone.map(|element| element.key).collect();
            if set != HAIRPIN {
                datagrams.extend(gone.iter().filter_map(|key| stale::udp_port(key)));
            }
            transaction.delete_elements(table, set, gone.into_iter().map(|key| Element::new(key, NftValue::Nothing)));
        }
        match nft.apply(transaction) {
            // Another DEL of the same container was quicker: look again.
            Err(error) if error.errno() == Some(ENOENT) && attempt < ATTEMPTS_MAX => {}
            other => return other.map(|()| datagrams).map_err(|error| broken(&error)),
        }
    }
}

fn check(table: &str, config: &Config, owner: &str) -> Result<(), PluginError> {
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    let mut found: Vec<FoundElement> = Vec::new();
    for set in [PORTS, AT] {
        found.extend(nft.elements(Family::Inet, table, set).map_err(|error| broken(&error))?);
    }
    let held = found.iter().filter(|element| element.comment.as_deref() == Some(owner)).count();
    let wanted = config.runtime_config.port_mappings.iter().filter(|mapping| mapping.host_port != 0).count();
    if held == wanted {
        return Ok(());
    }
    Err(PluginError::new(Code::Internal, format!("{held} of {wanted} port mappings are in table {table}")))
}

fn broken(error: &NftError) -> PluginError {
    failed(Code::Internal, "port mappings", error)
}
