//! UpdateRuntimeConfig and RuntimeConfig: the node's pod range comes in, the cgroup driver goes out.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use cni_spec::Cidr;
use runtime_cri_api::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse, UpdateRuntimeConfigRequest,
    UpdateRuntimeConfigResponse,
};
use runtime_linux::durable;
use serde_json::{Value, json};

use crate::config::CniTemplate;
use crate::network::NetworkError;
use crate::node::Node;
use crate::status::Error;

/// Sorts before what an operator would call theirs, as all runtimes' own do.
const FILE_NAME: &str = "10-sampan.conflist";

/// cgroups are made by path, never through systemd.
pub(crate) fn get() -> RuntimeConfigResponse {
    let cgroup_driver = CgroupDriver::Cgroupfs.into();
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver }) }
}

pub(crate) fn update(node: &Node, request: UpdateRuntimeConfigRequest) -> Result<UpdateRuntimeConfigResponse, Error> {
    let range = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    // The kubelet says an empty one until it knows better.
    if range.is_empty() {
        return Ok(UpdateRuntimeConfigResponse {});
    }
    let Some(template) = &node.config.cni.template else { return Ok(UpdateRuntimeConfigResponse {}) };
    let mut known = node.network_range.0.lock().unwrap_or_else(PoisonError::into_inner);
    if known.as_ref() != Some(&range) {
        let list = conflist(template, &range)?;
        write(&node.config.cni.conf_dir, &list)?;
        *known = Some(range);
    }
    Ok(UpdateRuntimeConfigResponse {})
}

/// The list for one or, comma-separated, two ranges (IPv4 and IPv6).
fn conflist(template: &CniTemplate, ranges: &str) -> Result<Value, NetworkError> {
    let mut subnets = Vec::new();
    let mut routes = Vec::new();
    for range in ranges.split(',').map(str::trim) {
        let cidr: Cidr = range.parse().map_err(|_| NetworkError::Range(range.to_owned()))?;
        subnets.push(json!([{ "subnet": range }]));
        routes.push(json!({ "dst": if cidr.is_ipv4() { "0.0.0.0/0" } else { "::/0" } }));
    }
    let mut bridge = json!({
        "type": "bridge",
        "bridge": template.bridge,
        "isGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": subnets, "routes": routes, "dataDir": template.leases_dir },
    });
    if let Value::Object(bridge) = &mut bridge {
        bridge.extend(template.bridge_options.clone());
    }
    let plugins: Vec<Value> = std::iter::once(bridge).chain(template.chained.iter().cloned()).collect();
    Ok(json!({ "cniVersion": "1.1.0", "name": template.network, "plugins": plugins }))
}

/// Whole or not at all: a pod may be starting while the range changes.
fn write(dir: &Path, list: &Value) -> Result<(), NetworkError> {
    let path = dir.join(FILE_NAME);
    let text = format!("{list:#}\n");
    if fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let replace = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        durable::write_atomic(&path, 0o644, text.as_bytes()).map_err(durable::Error::into_io)
    };
    replace().map_err(|source| NetworkError::Write { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use cni_spec::ConfigList;

    use super::*;

    #[test]
    fn a_range_becomes_a_valid_list() {
        let template = CniTemplate {
            network: "sampan".into(),
            bridge: "sampan0".into(),
            leases_dir: "/run/sampan/leases".into(),
            bridge_options: json!({ "mtu": 1400 }).as_object().unwrap().clone(),
            chained: vec![json!({ "type": "portmap", "capabilities": { "portMappings": true } })],
        };
        let dir = tempfile::tempdir().unwrap();
        let list = conflist(&template, "10.42.0.0/24,fd00::/64").unwrap();
        write(dir.path(), &list).unwrap();
        let list = ConfigList::load_default(dir.path()).unwrap();
        assert_eq!(list.plugins.len(), 2);
        assert_eq!(list.plugins[0].object()["mtu"], 1400);
        assert_eq!(list.plugins[0].object()["ipam"]["ranges"][1][0]["subnet"], "fd00::/64");
        assert!(matches!(conflist(&template, "10.42.0.0"), Err(NetworkError::Range(_))));
    }
}
