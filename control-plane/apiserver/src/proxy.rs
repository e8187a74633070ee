//! Requests that the server hands on: logs, exec, attach and port-forward to kubelets, and plain HTTP to nodes, pods and Services.
//! Finds the target; `proxy/tunnel.rs` moves the bytes. Understands nothing of what flows.

mod target;
mod tunnel;

use http::{Request, Response};

use crate::{body::Body, status::Outcome, verb::Call};

pub(crate) use tunnel::KubeletClient;

pub(crate) async fn serve(call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    let target = match (call.row.resource, call.path.subresource.as_str()) {
        ("pods", "log" | "exec" | "attach" | "portforward") => target::pod_connection(&call).await?,
        ("nodes", _) => target::node(&call).await?,
        ("pods", _) => target::pod(&call).await?,
        _ => target::service(&call).await?,
    };
    tunnel::forward(&call, target, request).await
}
