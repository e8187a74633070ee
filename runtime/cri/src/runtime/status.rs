//! Version and Status: what we are, and whether pods can be run.

use std::collections::HashMap;
use std::sync::Mutex;

use runtime_cri_api::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse, VersionResponse,
};
use serde_json::json;

use crate::network;
use crate::node::Node;
use crate::status::chain;

/// The pod range the node was last given.
#[derive(Debug, Default)]
pub(crate) struct NetworkRange(pub(crate) Mutex<Option<String>>);

pub(crate) fn version() -> VersionResponse {
    VersionResponse {
        // The version of the kubelet's side of this message, which has never been another.
        version: "0.1.0".into(),
        runtime_name: "sampan".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

pub(crate) fn run(node: &Node, request: &StatusRequest) -> StatusResponse {
    let condition = |kind: &str, outcome: Result<(), (&str, String)>| {
        let (reason, message) = outcome.clone().err().unwrap_or_default();
        RuntimeCondition { r#type: kind.into(), status: outcome.is_ok(), reason: reason.into(), message }
    };
    let shim = &node.config.shim_binary;
    let runtime = if shim.is_file() {
        Ok(())
    } else {
        Err(("ShimMissing", format!("{} is not there: install it, or correct the configuration", shim.display())))
    };
    let network = network::check(&node.config.cni).map_err(|error| ("NetworkPluginNotReady", chain(&error)));
    let features = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
    let handler = |name: &str| RuntimeHandler { name: name.into(), features: Some(features) };
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)],
        }),
        info: if request.verbose { info(node) } else { HashMap::new() },
        runtime_handlers: vec![handler(""), handler("sampan")],
        features: Some(RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: false }),
    }
}

fn info(node: &Node) -> HashMap<String, String> {
    let config = json!({
        "dataDirectory": node.config.data_dir,
        "runDirectory": node.config.run_dir,
        "shim": node.config.shim_binary,
        "cniConfigurations": node.config.cni.conf_dir,
        "cniPlugins": node.config.cni.bin_dirs,
        "cgroupRoot": node.config.cgroup_root,
    });
    HashMap::from([("config".to_owned(), config.to_string())])
}
