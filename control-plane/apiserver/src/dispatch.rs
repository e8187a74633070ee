//! One request from the line to the verb: understood, authenticated, authorized, handed on. Every failure leaves here as a Status.

use std::sync::Arc;

use control_plane_api::{Reason, Status, row, rows};
use http::{Request, Response, header};

use crate::{
    authn::{self, User, certificate},
    authz::{self, Attributes},
    body::Body,
    kernel::Kernel,
    negotiate, path,
    request::{Query, RequestInfo, ResourcePath},
    status::{self, Outcome},
    verb::{self, Call},
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
    request: Request<Body>,
) -> Outcome<Response<Body>> {
    let user = authenticate(kernel, peer, &request)?;
    let user = impersonate(kernel, user, &request)?;
    authorize(kernel, &user, info)?;
    match &info.resource {
        None => path::serve(kernel, &user, info, &query, request).await,
        Some(resource) => {
            let call = call(kernel, user, info, resource, query, &request)?;
            verb::serve(call, request).await
        }
    }
}

fn authenticate(kernel: &Kernel, peer: &Peer, request: &Request<Body>) -> Outcome<User> {
    let certificate = match peer {
        Peer::Local(user) => return Ok(user.clone()),
        Peer::Tls { certificate } => certificate,
    };
    if let Some(token) = authn::bearer_token(request.headers()) {
        let audiences = &kernel.tokens.audiences;
        return match kernel.tokens.verify(&token, audiences, &*kernel.cache, Kernel::now()) {
            Ok(verified) => Ok(verified.user),
            Err(reason) => {
                tracing::info!(%reason, "a bearer token was refused");
                Err(Status::unauthorized().into())
            }
        };
    }
    match certificate {
        Some(der) => certificate::user(der).map_err(|reason| {
            tracing::info!(reason = %status::chain(&reason), "a client certificate was refused");
            Status::unauthorized().into()
        }),
        None if request.headers().contains_key(header::AUTHORIZATION) => Err(Status::unauthorized().into()),
        None => Ok(User::anonymous()),
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

fn authorize(kernel: &Kernel, user: &User, info: &RequestInfo) -> Outcome<()> {
    let attributes = Attributes::of(info);
    let check = |attributes: &Attributes| {
        kernel.authorizer.require(user, attributes).map_err(|failure| {
            // An anonymous caller is asked for credentials instead of being told what exists.
            let anonymous = user.is_anonymous() && failure.0.reason == Reason::Forbidden;
            if anonymous { Status::unauthorized().into() } else { failure }
        })
    };
    check(&attributes)?;
    if let Some(attributes) = authz::upgrade_attributes(info) {
        check(&attributes)?;
    }
    Ok(())
}

/// Finds the row, and refuses what it does not offer.
fn call(
    kernel: &Arc<Kernel>,
    user: User,
    info: &RequestInfo,
    path: &ResourcePath,
    query: Query,
    request: &Request<Body>,
) -> Outcome<Call> {
    let row = row(&path.group, &path.version, &path.resource).ok_or_else(Status::no_such_path)?;
    // /api/v1/namespaces/d/nodes is nobody's path, and so is a named object of a namespaced kind without its namespace.
    let in_namespace = !path.namespace.is_empty();
    let misplaced = match row.namespaced {
        false => in_namespace && row.resource != "namespaces",
        true => !in_namespace && (!path.subresource.is_empty() || needs_namespace(info)),
    };
    if misplaced {
        return Err(Status::no_such_path().into());
    }
    if !path.subresource.is_empty() && row.subresource(&path.subresource).is_none() {
        return Err(Status::no_such_path().into());
    }
    let accept = negotiate::accept(request.headers(), &query)?;
    let mut path = path.clone();
    if !row.namespaced {
        path.namespace.clear();
    }
    debug_assert!(rows().iter().any(|one| std::ptr::eq(one, row)));
    Ok(Call {
        kernel: Arc::clone(kernel),
        user,
        row,
        path,
        query,
        verb: info.verb,
        accept,
        now: Kernel::now(),
        warnings: Vec::new(),
        agent: user_agent(request),
        applies: false,
    })
}

/// Verbs on one object cannot do without its namespace; a list by name can.
fn needs_namespace(info: &RequestInfo) -> bool {
    use crate::request::Verb;
    !matches!(info.verb, Verb::List | Verb::Watch | Verb::DeleteCollection | Verb::Create)
}

/// The part of the user agent that names a field manager when the request does not.
fn user_agent(request: &Request<Body>) -> String {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    agent.split('/').next().unwrap_or("unknown").chars().take(128).collect()
}
