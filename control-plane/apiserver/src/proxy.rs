//! Requests that the server hands on: logs, exec, attach and port-forward to kubelets, and plain HTTP to nodes, pods and Services.
//! Finds the target; `proxy/tunnel.rs` moves the bytes. Of what flows it understands the links of HTML pages alone, see
//! `proxy/rewrite.rs`.

mod log_socket;
mod rewrite;
mod target;
mod tunnel;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use crate::{
    body::{self, Body},
    status::Outcome,
    verb::Call,
};

pub(crate) use tunnel::KubeletClient;

pub(crate) async fn serve(call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    if let Some(slash) = slash(&call, &request) {
        return Ok(slash);
    }
    let target = match (call.row.resource, call.path.subresource.as_str()) {
        ("pods", "log" | "exec" | "attach" | "portforward") => target::pod_connection(&call).await?,
        ("nodes", _) => target::node(&call).await?,
        ("pods", _) => target::pod(&call).await?,
        _ => target::service(&call).await?,
    };
    tunnel::forward(&call, target, request).await
}

/// An application's root is its path with a slash: without one, relative links would lead beside it.
fn slash(call: &Call, request: &Request<Body>) -> Option<Response<Body>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let path = request.uri().path();
    if call.path.subresource != "proxy" || !reads || upgrades || path.ends_with('/') || !call.path.rest.is_empty() {
        return None;
    }
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(format!("{path}/{query}")).ok()?);
    Some(response)
}
