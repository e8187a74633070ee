//! CHECK: whether links, addresses and routes are as the result of ADD says. Changes nothing.

use std::net::IpAddr;

use cni_netlink::Rtnetlink;
use cni_spec::{AddResult, Code, PluginError};

use super::{ipam, knows_check, netlink, wiring};
use crate::Request;
use crate::config::BridgeConfig;

pub(super) fn check(request: &Request, config: &BridgeConfig) -> Result<(), PluginError> {
    if !knows_check(request.version) {
        let message = format!("CHECK needs a configuration of version 0.4.0 or newer, this is {}", request.version);
        return Err(PluginError::new(Code::IncompatibleVersion, message));
    }
    let Some(previous) = &request.previous else {
        return Err(PluginError::new(Code::InvalidConfig, "CHECK needs `prevResult`"));
    };
    ipam::Ipam::of(request, config)?.check()?;
    check_host(request, config)?;
    check_container(request, previous)
}

fn check_host(request: &Request, config: &BridgeConfig) -> Result<(), PluginError> {
    let mut host = Rtnetlink::open().map_err(|error| netlink(&error))?;
    let bridge = host.link(&config.bridge).map_err(|error| netlink(&error))?;
    let bridge = bridge.ok_or_else(|| wrong(format!("link {} is gone", config.bridge)))?;
    let port = wiring::host_end(request, &mut host).map_err(|error| netlink(&error))?;
    let port = port.ok_or_else(|| wrong("the host end of the container's link is gone".into()))?;
    if let Some(link) = [&bridge, &port].into_iter().find(|link| !link.is_up) {
        return Err(wrong(format!("link {} is down", link.name)));
    }
    if port.controller != Some(bridge.index) {
        return Err(wrong(format!("link {} is no port of bridge {}", port.name, bridge.name)));
    }
    if port.hairpin != Some(config.hairpin()) {
        return Err(wrong(format!("hairpin mode of {} is not {}", port.name, config.hairpin())));
    }
    Ok(())
}

fn check_container(request: &Request, previous: &AddResult) -> Result<(), PluginError> {
    let name = &request.environment.if_name;
    let Some(index) = previous.interface_in(name, &request.sandbox()) else {
        return Err(wrong(format!("`prevResult` does not name link {name} of {}", request.sandbox())));
    };
    let mut container = Rtnetlink::open_in(&request.namespace()?).map_err(|error| netlink(&error))?;
    let link = container.link(name).map_err(|error| netlink(&error))?;
    let link = link.ok_or_else(|| wrong(format!("the container's link {name} is gone")))?;
    if !link.is_up {
        return Err(wrong(format!("the container's link {name} is down")));
    }
    let mac = wiring::format_mac(&link.mac);
    if previous.interfaces.get(index).is_some_and(|interface| !interface.mac.is_empty() && interface.mac != mac) {
        return Err(wrong(format!("the container's link {name} has hardware address {mac} now")));
    }
    let addresses = container.addresses(link.index).map_err(|error| netlink(&error))?;
    for ip in previous.ips.iter().filter(|ip| ip.interface == Some(index)) {
        if !addresses.contains(&(ip.address.address(), ip.address.prefix())) {
            return Err(wrong(format!("the container has no address {} any more", ip.address)));
        }
    }
    let routes = container.routes().map_err(|error| netlink(&error))?;
    for route in &previous.routes {
        let target: Option<IpAddr> = (route.dst.prefix() > 0).then(|| route.dst.first());
        let present = routes.iter().any(|found| {
            found.destination == target
                && found.prefix == route.dst.prefix()
                && found.is_ipv6 != route.dst.is_ipv4()
                && (route.gw.is_none() || found.gateway == route.gw)
        });
        if !present {
            return Err(wrong(format!("the container has no route to {} any more", route.dst)));
        }
    }
    Ok(())
}

fn wrong(message: String) -> PluginError {
    PluginError::new(Code::Internal, message)
}
