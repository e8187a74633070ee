//! The plugin `bridge`: a veth pair between the container and a bridge on the host, with addresses from IPAM.
//!
//! `validate -> address -> wire`: the address comes first because the container's hardware address is made from it, so
//! that a reused address needs no neighbour's memory to expire. Host ends have a name computed from network, container
//! and link, and a remark that says whose they are: DEL finds them without a previous result, what a killed ADD left is
//! recognised and replaced, and nobody's is taken for another's.

use cni_netlink::rtnetlink::RtnetlinkError;
use cni_netlink::{Batch, Namespace, Rtnetlink, sysctl};
use cni_spec::{AddResult, Attachment, Code, Command, Interface, PluginError, SpecVersion};
use serde_json::Value;

use crate::config::BridgeConfig;
use crate::{Request, failed};

mod check;
mod ipam;
mod masquerade;
mod wiring;

pub(crate) use masquerade::TABLE_SUFFIX;

/// Without it, answers between two containers of this node do not pass the rules that made them find each other.
const BRIDGE_FILTER: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

/// Handles a request.
///
/// # Errors
/// A CNI error object.
pub fn run(request: &Request) -> Result<Value, PluginError> {
    let config = request.config_as::<BridgeConfig>()?.validate()?;
    match request.environment.command {
        Command::Add => request.respond(&add(request, &config)?),
        Command::Del => del(request, &config).map(|()| Value::Null),
        Command::Check => check::check(request, &config).map(|()| Value::Null),
        Command::Status => status(request, &config).map(|()| Value::Null),
        Command::Gc => gc(request, &config).map(|()| Value::Null),
        Command::Version => Ok(Value::Null),
    }
}

pub(crate) fn plan_any(request: &Request) -> Result<(), PluginError> {
    let config = request.config_as::<BridgeConfig>()?.validate()?;
    wiring::requested_mac(request, &config)?;
    wiring::complete(&config, &mut request.previous.clone().unwrap_or_default())
}

fn add(request: &Request, config: &BridgeConfig) -> Result<AddResult, PluginError> {
    request.check_args()?;
    let namespace = request.namespace()?;
    let mac = wiring::requested_mac(request, config)?;
    let ipam = ipam::Ipam::of(request, config)?;
    let mut host = Rtnetlink::open().map_err(|error| netlink(&error))?;
    refuse_existing(&namespace, request)?;
    let mut result = ipam.add()?;
    let wired = wire(request, config, &namespace, &mut host, mac, &mut result);
    if let Err(error) = wired {
        // The error that matters is the first one; what cannot be undone now, DEL or GC will undo.
        if let Ok(Some(link)) = wiring::host_end(request, &mut host) {
            let _ = host.apply(Batch::default().delete_link(&link.name));
        }
        let _ = ipam.del();
        return Err(error);
    }
    Ok(result)
}

fn wire(
    request: &Request,
    config: &BridgeConfig,
    namespace: &Namespace,
    host: &mut Rtnetlink,
    mac: Option<[u8; 6]>,
    result: &mut AddResult,
) -> Result<(), PluginError> {
    wiring::complete(config, result)?;
    let bridge = wiring::ensure_bridge(host, config, result)?;
    ensure_settings(config, result)?;
    let pair = wiring::connect(request, config, namespace, host, &bridge, mac, result)?;
    if config.ip_masq {
        masquerade::ensure(request, config, result)?;
    }
    let interface = |name: &str, mac: &[u8], mtu: u32, sandbox: String| Interface {
        name: name.to_owned(),
        mac: wiring::format_mac(mac),
        mtu,
        sandbox,
        ..Interface::default()
    };
    result.interfaces = vec![
        interface(&bridge.name, &bridge.mac, bridge.mtu, String::new()),
        interface(&pair.host.name, &pair.host.mac, pair.host.mtu, String::new()),
        interface(&pair.container.name, &pair.container.mac, pair.container.mtu, request.sandbox()),
    ];
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    Ok(())
}

/// CNI 1.1, section 2: ADD for a link that exists is an error, and must not disturb it.
fn refuse_existing(namespace: &Namespace, request: &Request) -> Result<(), PluginError> {
    let name = &request.environment.if_name;
    let mut container = Rtnetlink::open_in(namespace).map_err(|error| netlink(&error))?;
    match container.link(name).map_err(|error| netlink(&error))? {
        None => Ok(()),
        Some(_) => {
            let message = format!("the container has a link {name} already; DEL it first or choose another CNI_IFNAME");
            Err(PluginError::new(Code::InvalidEnvironment, message))
        }
    }
}

fn ensure_settings(config: &BridgeConfig, result: &AddResult) -> Result<(), PluginError> {
    if !config.is_gateway {
        return Ok(());
    }
    let mut wanted = Vec::new();
    if result.ips.iter().any(|ip| ip.address.is_ipv4()) {
        wanted.push(FORWARD_V4);
    }
    if result.ips.iter().any(|ip| !ip.address.is_ipv4()) {
        wanted.push(FORWARD_V6);
    }
    for name in wanted {
        sysctl::ensure(name, "1").map_err(|error| failed(Code::Internal, "enable forwarding", &error))?;
    }
    for name in BRIDGE_FILTER {
        match sysctl::ensure(name, "1") {
            // Plain connections work without the module; STATUS says what does not.
            Ok(()) | Err(sysctl::SysctlError::Missing(_)) => {}
            Err(error) => return Err(failed(Code::Internal, "have bridged packets filtered", &error)),
        }
    }
    Ok(())
}

/// CNI 1.1, section 4: DEL succeeds when the container, its namespace or its link are gone.
fn del(request: &Request, config: &BridgeConfig) -> Result<(), PluginError> {
    let mut host = Rtnetlink::open().map_err(|error| netlink(&error))?;
    let found = wiring::host_end(request, &mut host).map_err(|error| netlink(&error))?;
    if let Some(link) = found {
        host.apply(Batch::default().delete_link(&link.name)).map_err(|error| netlink(&error))?;
    } else if let Ok(namespace) = request.namespace() {
        // Made by another bridge plugin before this one was installed.
        let mut container = Rtnetlink::open_in(&namespace).map_err(|error| netlink(&error))?;
        let name = &request.environment.if_name;
        let is_ours = container.link(name).map_err(|error| netlink(&error))?.is_some_and(|link| link.kind == "veth");
        if is_ours {
            container.apply(Batch::default().delete_link(name)).map_err(|error| netlink(&error))?;
        }
    }
    // Last: an address is free only when nothing answers to it any more.
    ipam::Ipam::of(request, config)?.del()
}

fn status(request: &Request, config: &BridgeConfig) -> Result<(), PluginError> {
    let not_ready = |message: String| Err(PluginError::new(Code::NotAvailable, message));
    if config.is_gateway {
        for name in BRIDGE_FILTER {
            // Written here too: after a reboot nothing else may have done so before the first ADD.
            match sysctl::ensure(name, "1") {
                Ok(()) => {}
                Err(sysctl::SysctlError::Missing(_)) => {
                    return not_ready(
                        "the kernel module br_netfilter is not loaded, so containers cannot reach Services; load it \
                         with `modprobe br_netfilter` and add it to /etc/modules-load.d/sampan.conf"
                            .into(),
                    );
                }
                Err(error) => return Err(failed(Code::NotAvailable, "have bridged packets filtered", &error)),
            }
        }
        sysctl::ensure(FORWARD_V4, "1")
            .map_err(|error| failed(Code::NotAvailable, "IPv4 forwarding is off and cannot be enabled", &error))?;
    }
    Rtnetlink::open()
        .and_then(|mut host| host.link(&config.bridge))
        .map_err(|error| failed(Code::NotAvailable, "", &error))
        .and_then(|link| match link {
            Some(link) if link.kind != "bridge" => {
                not_ready(format!("link {} exists and is no bridge; rename or remove it", config.bridge))
            }
            _ => Ok(()),
        })?;
    ipam::Ipam::of(request, config)?.status()
}

fn gc(request: &Request, config: &BridgeConfig) -> Result<(), PluginError> {
    let valid = request.valid_attachments()?;
    let mut host = Rtnetlink::open().map_err(|error| netlink(&error))?;
    let mut batch = Batch::default();
    if let Some(bridge) = host.link(&config.bridge).map_err(|error| netlink(&error))? {
        for link in host.links().map_err(|error| netlink(&error))? {
            let is_ours =
                link.controller == Some(bridge.index) && link.name.starts_with(wiring::prefix(&request.name).as_str());
            if is_ours && !valid.iter().any(|attachment| wiring::is_of(&link, &request.name, attachment)) {
                batch.delete_link(&link.name);
            }
        }
    }
    host.apply(&batch).map_err(|error| netlink(&error))?;
    ipam::Ipam::of(request, config)?.gc()
}

/// The attachment a request is about.
fn attachment(request: &Request) -> Attachment {
    Attachment { container_id: request.environment.container_id.clone(), if_name: request.environment.if_name.clone() }
}

fn netlink(error: &RtnetlinkError) -> PluginError {
    let code = match error.errno() {
        Some(libc_errno::EBUSY | libc_errno::EAGAIN | libc_errno::ENOBUFS) => Code::TryAgainLater,
        _ => Code::Internal,
    };
    failed(code, "", error)
}

/// The errno values that mean "later".
mod libc_errno {
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const ENOBUFS: i32 = 105;
}

/// Whether the version knows CHECK with a previous result.
fn knows_check(version: SpecVersion) -> bool {
    version >= SpecVersion::V0_4_0
}
