//! ReopenContainerLog: the kubelet renamed the log away, and wants a new file under the old name.

use runtime_cri_api::v1::{ReopenContainerLogRequest, ReopenContainerLogResponse};

use crate::node::Node;
use crate::status::Error;

pub(crate) fn run(node: &Node, request: &ReopenContainerLogRequest) -> Result<ReopenContainerLogResponse, Error> {
    let container = node.container(&request.container_id)?;
    super::must_run(&container, "reopen the log of")?;
    container.sandbox.shim()?.reopen_log(&container.id)?;
    Ok(ReopenContainerLogResponse {})
}
