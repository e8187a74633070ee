//! PodSandboxStatus.

use std::collections::HashMap;

use runtime_cri_api::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use serde_json::json;

use crate::facts;
use crate::node::{Node, now_ns};
use crate::shim::ASK_WITHIN;
use crate::status::Error;

/// From memory; what is verbose asks the shim, and may wait for it.
pub(crate) fn run(node: &Node, request: &PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse, Error> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let containers_statuses =
        node.containers_of(&sandbox.id).iter().map(|container| container.read(facts::container_status)).collect();
    Ok(PodSandboxStatusResponse {
        status: Some(sandbox.read(facts::sandbox_status)),
        info: if request.verbose { info(&sandbox) } else { HashMap::new() },
        containers_statuses,
        timestamp: now_ns(),
    })
}

/// What people debug with; its shape is no promise.
fn info(sandbox: &crate::node::Sandbox) -> HashMap<String, String> {
    let (record, shim) = sandbox.facts();
    let shim_info = sandbox.shim_within(ASK_WITHIN).ok().and_then(|mut client| client.info().ok());
    let info = json!({
        "pid": shim_info.as_ref().map_or(0, |info| info.shim_pid),
        "shim": format!("{shim:?}"),
        "namespaces": shim_info.map(|info| info.namespaces),
        "directory": sandbox.dir,
        "config": record.config,
        "network": record.network,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
