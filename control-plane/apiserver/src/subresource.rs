//! Paths below an object. Each has its own file; `status` is an ordinary change of the object.

mod binding;
mod eviction;
pub(crate) mod review;
mod scale;
mod token;

use control_plane_api::Object;
use http::{Request, Response, StatusCode};

use crate::{
    admission,
    body::Body,
    proxy,
    request::Verb,
    status::Outcome,
    verb::{Call, decode, respond, write},
};

pub(crate) async fn serve(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    let Some(sub) = call.row.subresource(&call.path.subresource) else { return Err(call.not_allowed()) };
    // A proxied application may be asked with any method; OPTIONS has no verb of its own.
    let any_method = sub.name == "proxy" && request.method() == http::Method::OPTIONS;
    if !any_method && !sub.verbs.contains(&call.verb.as_str()) {
        return Err(call.not_allowed());
    }
    match (call.row.resource, sub.name) {
        (_, "scale") => scale::serve(call, request).await,
        ("pods", "binding") => binding::serve(call, request).await,
        ("pods", "eviction") => eviction::serve(call, request).await,
        ("serviceaccounts", "token") => token::serve(call, request).await,
        ("pods", "log" | "exec" | "attach" | "portforward" | "proxy") | ("nodes" | "services", "proxy") => {
            proxy::serve(call, request).await
        }
        ("namespaces", "finalize") => {
            let body = decode::Sent::read(request).await?;
            let mut sent = decode::object(&mut call, &body)?;
            write::check_identity(&call, &mut sent)?;
            let produce = &mut |_: &mut Call, live: &Object| {
                let mut next = admission::namespace::finalize(live, &sent);
                next.metadata_mut().insert("resourceVersion".into(), sent.resource_version().into());
                Ok(next)
            };
            let changed = write::change(&mut call, produce).await?;
            respond::object(&call, StatusCode::OK, &changed)
        }
        _ => plain(call, request).await,
    }
}

/// A part of the object that is read and written as the whole object: status, ephemeralcontainers, resize, approval.
async fn plain(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    match call.verb {
        Verb::Get => {
            let cached = call.read().await?;
            respond::cached(&call, &cached)
        }
        Verb::Update => {
            let body = decode::Sent::read(request).await?;
            let object = decode::object(&mut call, &body)?;
            write::update(&mut call, object).await
        }
        Verb::Patch => {
            let body = decode::Sent::read(request).await?;
            write::patch(&mut call, &body).await
        }
        _ => Err(call.not_allowed()),
    }
}
