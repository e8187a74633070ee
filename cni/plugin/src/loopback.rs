//! The plugin `loopback`: brings `lo` up in the container. Nothing to undo; the namespace takes it along.

use cni_netlink::{Batch, Rtnetlink};
use cni_spec::{AddResult, Cidr, Code, Command, Interface, IpConfig, PluginError};
use serde_json::Value;

use crate::{Request, failed};

/// Handles a request.
///
/// # Errors
/// A CNI error object.
pub fn run(request: &Request) -> Result<Value, PluginError> {
    match request.environment.command {
        Command::Add => {
            let result = add(request)?;
            request.respond(request.previous.as_ref().unwrap_or(&result))
        }
        Command::Check => check(request),
        Command::Del | Command::Status | Command::Gc | Command::Version => Ok(Value::Null),
    }
}

fn add(request: &Request) -> Result<AddResult, PluginError> {
    let internal = |error| failed(Code::Internal, "", &error);
    let mut socket = Rtnetlink::open_in(&request.namespace()?).map_err(internal)?;
    socket.apply(Batch::default().set_up(1)).map_err(internal)?;
    let interface = Interface {
        name: "lo".into(),
        mac: "00:00:00:00:00:00".into(),
        sandbox: request.sandbox(),
        ..Interface::default()
    };
    let mut result = AddResult { interfaces: vec![interface], ..AddResult::default() };
    for (address, prefix) in socket.addresses(1).map_err(internal)? {
        let address = Cidr::new(address, prefix);
        result.ips.extend(address.map(|address| IpConfig { interface: Some(0), address, gateway: None }));
    }
    Ok(result)
}

fn check(request: &Request) -> Result<Value, PluginError> {
    let internal = |error| failed(Code::Internal, "", &error);
    let mut socket = Rtnetlink::open_in(&request.namespace()?).map_err(internal)?;
    let is_up = socket.link_by_index(1).map_err(internal)?.is_some_and(|link| link.is_up);
    if is_up { Ok(Value::Null) } else { Err(PluginError::new(Code::Internal, "lo is down")) }
}
