//! One request from the line to the verb: understood, authenticated, authorized, handed on. Every failure leaves here as a Status.

use std::sync::Arc;

use control_plane_api::Status;
use http::{Request, Response};

use crate::{
    authn::{self, Credential, User, certificate},
    authz::{self, Attributes, authorized::Admitted},
    body::Body,
    kernel::Kernel,
    path,
    request::{Query, RequestInfo},
    status::{self, Outcome},
    verb,
};

/// What the transport knows of the caller.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// A TLS connection, with the verified client certificate if one was sent.
    Tls { certificate: Option<Arc<[u8]>> },
    /// A caller in this process, who acts as this user.
    Local(User),
}

/// Answers one request. Never fails: what goes wrong is in the response.
pub(crate) async fn serve(kernel: Arc<Kernel>, peer: Peer, request: Request<Body>) -> Response<Body> {
    let started = std::time::Instant::now();
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let head = request.method() == http::Method::HEAD;
    let mut response = match answer(&kernel, &peer, &info, query, request).await {
        Ok(response) => response,
        Err(failure) => status::response(&failure.0),
    };
    kernel.metrics.observe(&info, response.status().as_u16(), started.elapsed());
    tracing::debug!(verb = info.verb.as_str(), path = %info.path, code = response.status().as_u16(), "answered");
    if head {
        *response.body_mut() = crate::body::empty();
    }
    response
}

async fn answer(
    kernel: &Arc<Kernel>,
    peer: &Peer,
    info: &RequestInfo,
    query: Query,
    mut request: Request<Body>,
) -> Outcome<Response<Body>> {
    let user = authenticate(kernel, peer, &request)?;
    let user = impersonate(kernel, user, &request)?;
    // Whoever the request is handed on to has no use for them but a bad one.
    authn::strip_credentials(request.headers_mut());
    match kernel.authorizer.admit(user, info, &query)? {
        Admitted::Path(permit) => path::serve(kernel, &permit, &query, request).await,
        Admitted::Objects(permit) => verb::serve(kernel, *permit, query, request).await,
    }
}

fn authenticate(kernel: &Kernel, peer: &Peer, request: &Request<Body>) -> Outcome<User> {
    let certificate = match peer {
        Peer::Local(user) => return Ok(user.clone()),
        Peer::Tls { certificate } => certificate,
    };
    match (authn::credential(request.headers()), certificate) {
        (Credential::Bearer(token), _) => {
            let audiences = &kernel.tokens.audiences;
            match kernel.tokens.verify(&token, audiences, &*kernel.cache, Kernel::now()) {
                Ok(verified) => Ok(verified.user),
                Err(reason) => {
                    tracing::info!(%reason, "a bearer token was refused");
                    Err(Status::unauthorized().into())
                }
            }
        }
        (Credential::None | Credential::OtherScheme, Some(der)) => {
            certificate::user(der, Kernel::now()).map_err(|reason| {
                tracing::info!(reason = %status::chain(&reason), "a client certificate was refused");
                Status::unauthorized().into()
            })
        }
        (Credential::OtherScheme | Credential::Unreadable, _) => Err(Status::unauthorized().into()),
        (Credential::None, None) => Ok(User::anonymous()),
    }
}

fn impersonate(kernel: &Kernel, user: User, request: &Request<Body>) -> Outcome<User> {
    let wanted = authn::impersonation(request.headers()).map_err(|error| Status::bad_request(error.to_string()))?;
    let Some(wanted) = wanted else { return Ok(user) };
    let may = |group: &str, resource: &str, sub: &str, namespace: &str, name: &str| {
        let mut attributes = Attributes::resource("impersonate", group, resource, namespace, name);
        if let authz::Target::Resource { subresource, .. } = &mut attributes.target {
            sub.clone_into(subresource);
        }
        kernel.authorizer.require(&user, &attributes)
    };
    match wanted.user.service_account() {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", &wanted.user.name)?,
    }
    for group in &wanted.user.groups {
        may("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.user.extra {
        for value in values {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.user.uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", &wanted.user.uid)?;
    }
    Ok(wanted.into_user())
}
