//! UpdatePodSandboxResources: told to runtimes that keep a pod-level cgroup of their own.

use std::sync::Arc;

use runtime_cri_api::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use crate::node::Node;
use crate::status::Error;

/// The pod's cgroup is the kubelet's, which has changed it already; here only the facts are kept.
pub(crate) fn run(
    node: &Arc<Node>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let _work = sandbox.work();
    node.change_sandbox(&sandbox, |record| {
        let linux = record.config.linux.get_or_insert_default();
        linux.resources = request.resources.or(linux.resources.take());
        linux.overhead = request.overhead.or(linux.overhead.take());
    });
    Ok(UpdatePodSandboxResourcesResponse {})
}
