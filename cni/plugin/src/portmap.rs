//! The plugin `portmap`: ports of the node that lead to a container, as elements of maps.
//!
//! Comes behind `bridge` in a list and acts on `runtimeConfig.portMappings`. Elements carry their owner as a comment, so
//! DEL and GC need no memory. A port that another container has is refused, never overwritten. IPv4 only; a mapping
//! with an IPv6 `hostIP` is refused by name.

use std::net::{IpAddr, Ipv4Addr};

use cni_netlink::nft::{Element, Family, FoundElement, NftError, Nftables, Transaction, Value as NftValue};
use cni_netlink::sysctl;
use cni_spec::{AddResult, Attachment, Code, Command, PluginError};
use serde::Deserialize;
use serde_json::Value;

use crate::{Request, failed};

mod layout;

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
    let table = format!("{}-cni", config.table);
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
        Command::Del => remove(&table, |comment| comment == owner).map(|()| Value::Null),
        Command::Check => check(&table, &config, &owner).map(|()| Value::Null),
        Command::Gc => {
            let kept: Vec<String> = request.valid_attachments()?.iter().map(owner_of).collect();
            remove(&table, |comment| !kept.iter().any(|owner| owner == comment)).map(|()| Value::Null)
        }
        Command::Status | Command::Version => Ok(Value::Null),
    }
}

/// Short enough for a comment; container ids are 64 characters.
fn owner_of(attachment: &Attachment) -> String {
    let id: String = attachment.container_id.chars().take(100).collect();
    format!("{id} {}", attachment.if_name)
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
    // Connections of the node to 127.0.0.1 leave by the bridge; layout.rs keeps everybody else from using this.
    if let Some(bridge) = previous.interfaces.iter().find(|interface| interface.sandbox.is_empty()) {
        sysctl::ensure(&format!("net/ipv4/conf/{}/route_localnet", bridge.name), "1")
            .map_err(|error| failed(Code::Internal, "allow 127.0.0.1 for port mappings", &error))?;
    }
    // What an ADD that was killed left under this owner.
    remove(table, |comment| comment == owner)?;
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    for (set, element) in &elements {
        refuse_taken(&mut nft, table, set, element)?;
    }
    let mut transaction = Transaction::new(Family::Inet);
    layout::ensure(&mut nft, &mut transaction, table).map_err(|error| broken(&error))?;
    let hairpin = [address.octets(), address.octets()].concat();
    let comment = Some(owner.to_owned());
    transaction.add_elements(table, HAIRPIN, [Element { comment, ..Element::new(hairpin, NftValue::Nothing) }]);
    for (set, element) in elements {
        transaction.add_elements(table, set, [element]);
    }
    nft.apply(transaction).map_err(|error| match error.errno() {
        Some(EEXIST) => PluginError::new(Code::TryAgainLater, "a host port was taken by another container meanwhile"),
        _ => broken(&error),
    })
}

fn refuse_taken(nft: &mut Nftables, table: &str, set: &str, element: &Element) -> Result<(), PluginError> {
    let found = nft.elements(Family::Inet, table, set).map_err(|error| broken(&error))?;
    match found.into_iter().find(|found| found.key == element.key) {
        None => Ok(()),
        Some(other) => {
            let holder = other.comment.unwrap_or_else(|| "another program".into());
            let port = element.key.len().checked_sub(4).and_then(|at| element.key.get(at..at + 2));
            let port = port.map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])).unwrap_or_default();
            Err(PluginError::new(Code::TryAgainLater, format!("host port {port} belongs to container {holder}")))
        }
    }
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

/// Removes the elements of the owners `is_gone` chooses; no table is fine.
fn remove(table: &str, is_gone: impl Fn(&str) -> bool) -> Result<(), PluginError> {
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut transaction = Transaction::new(Family::Inet);
        for set in [PORTS, AT, HAIRPIN] {
            let found = nft.elements(Family::Inet, table, set).map_err(|error| broken(&error))?;
            let gone = found.into_iter().filter(|element| element.comment.as_deref().is_some_and(&is_gone));
            transaction.delete_elements(table, set, gone.map(|element| Element::new(element.key, NftValue::Nothing)));
        }
        match nft.apply(transaction) {
            // Another DEL of the same container was quicker: look again.
            Err(error) if error.errno() == Some(ENOENT) && attempt < ATTEMPTS_MAX => {}
            other => return other.map_err(|error| broken(&error)),
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
