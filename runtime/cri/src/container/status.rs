//! ContainerStatus.

use std::collections::HashMap;

use runtime_cri_api::v1::{ContainerStatusRequest, ContainerStatusResponse};
use serde_json::json;

use crate::facts;
use crate::node::{Container, Node};
use crate::shim::ASK_WITHIN;
use crate::status::Error;

pub(crate) fn run(node: &Node, request: &ContainerStatusRequest) -> Result<ContainerStatusResponse, Error> {
    let container = node.container(&request.container_id)?;
    Ok(ContainerStatusResponse {
        status: Some(container.read(facts::container_status)),
        info: if request.verbose { info(&container) } else { HashMap::new() },
    })
}

/// Our own file, as long as its request at most.
const CONFIG_BYTES_MAX: usize = 64 << 20;

/// What people debug with; its shape is no promise, but for `pid`, which `crictl inspect` users take from it.
fn info(container: &Container) -> HashMap<String, String> {
    let record = container.facts();
    let known = container.sandbox.shim_within(ASK_WITHIN).ok().and_then(|mut client| client.info().ok());
    let known = known.and_then(|info| info.containers.into_iter().find(|known| known.id == container.id));
    let spec = crate::private::read(&super::bundle(container).join("config.json"), CONFIG_BYTES_MAX).ok();
    let info = json!({
        "sandboxID": record.sandbox_id,
        "pid": known.as_ref().map_or(0, |known| known.pid),
        "cgroup": record.cgroup,
        "config": record.config,
        "runtimeSpec": spec.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok()),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
