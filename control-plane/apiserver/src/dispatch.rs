//! One request from the line to the verb: understood, authenticated, authorized, handed on. Every failure leaves here as a Status.

use std::{sync::Arc, time::Duration};

use control_plane_api::Status;
use http::{Request, Response};

use crate::{
    authn::{self, Credential, User, certificate},
    authz::{self, Attributes, authorized::Admitted},
    body::Body,
    connections::Connection,
    inflight::Kind,
    kernel::Kernel,
    path, patient,
    request::{Query, RequestInfo, duration},
    status::{self, Outcome},
    verb,
};

/// A request that is not answered within this is told so; upstream's default, and its largest.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// When to come back after too many requests.
const RETRY_AFTER_SECONDS: u32 = 1;

/// What the transport knows of the caller.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// A TLS connection, with the verified client certificate if one was sent.
    Tls { certificate: Option<Arc<[u8]>>, connection: Arc<Connection> },
    /// A caller in this process, who acts as this user.
    Local(User),
}

/// Answers one request. Never fails: what goes wrong is in the response.
pub(crate) async fn serve(kernel: Arc<Kernel>, peer: Peer, request: Request<Body>) -> Response<Body> {
    let started = std::time::Instant::now();
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let info = Arc::new(RequestInfo::parse(request.method(), request.uri().path(), &query));
    let head = request.method() == http::Method::HEAD;
    let mut response = match bounded(&kernel, peer, &info, query, request).await {
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

/// Answers within the limits of a request: how many at once, how long, and its own panic.
async fn bounded(
    kernel: &Arc<Kernel>,
    peer: Peer,
    info: &Arc<RequestInfo>,
    query: Query,
    request: Request<Body>,
) -> Outcome<Response<Body>> {
    let kind = Kind::of(info);
    if kind == Kind::LongRunning {
        return walled(Arc::clone(kernel), peer, Arc::clone(info), query, request).await;
    }
    let limit = time_limit(&query)?;
    // The parts of this process are not turned away: the cluster would stand still.
    let counted = match peer {
        Peer::Local(_) => None,
        Peer::Tls { .. } => Some(kernel.inflight.enter(kind).ok_or_else(|| {
            Status::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_SECONDS)
        })?),
    };
    let late = |_| Status::timeout("request did not complete within the allotted timeout".to_owned(), 0);
    if kind == Kind::ReadOnly {
        let answer = walled(Arc::clone(kernel), peer, Arc::clone(info), query, request);
        return tokio::time::timeout(limit, answer).await.map_err(late)?;
    }
    // In a task of its own: a write that has begun ends, whether or not somebody still listens.
    let (kernel, info) = (Arc::clone(kernel), Arc::clone(info));
    let writing = tokio::spawn(async move {
        let _counted = counted;
        walled(kernel, peer, info, query, request.map(|body| patient::within(body, limit))).await
    });
    match tokio::time::timeout(limit, writing).await.map_err(late)? {
        Ok(outcome) => outcome,
        // The task is never aborted, and its panics are caught inside: the runtime is ending.
        Err(_) => Err(Status::service_unavailable("the server is ending").into()),
    }
}

/// How long the answer may take: what the caller wants, and no longer than the server does.
fn time_limit(query: &Query) -> Outcome<Duration> {
    let Some(text) = query.first("timeout") else { return Ok(ANSWER_MAX) };
    match duration::parse(text) {
        Some(Duration::ZERO) => Ok(ANSWER_MAX),
        Some(wanted) => Ok(wanted.min(ANSWER_MAX)),
        None => {
            Err(Status::bad_request(format!("invalid timeout {text:?} in the request URL: write one like 30s")).into())
        }
    }
}

/// A panic while the request is served is its answer, and nobody else's.
async fn walled(
    kernel: Arc<Kernel>,
    peer: Peer,
    info: Arc<RequestInfo>,
    query: Query,
    request: Request<Body>,
) -> Outcome<Response<Body>> {
    let subject = info.path.as_str();
    let answer = answer(&kernel, &peer, &info, query, request);
    let caught = kernel.walls.around("request", subject, answer).await;
    caught.unwrap_or_else(|panicked| Err(Status::internal(panicked).into()))
}

async fn answer(
    kernel: &Arc<Kernel>,
    peer: &Peer,
    info: &RequestInfo,
    query: Query,
    mut request: Request<Body>,
) -> Outcome<Response<Body>> {
    let user = authenticate(kernel, peer, &request);
    kernel.metrics.authenticated(user.as_ref().ok());
    let user = impersonate(kernel, user?, &request)?;
    // Whoever the request is handed on to has no use for them but a bad one.
    authn::strip_credentials(request.headers_mut());
    match kernel.authorizer.admit(user, info, &query)? {
        Admitted::Path(permit) => path::serve(kernel, &permit, &query, request).await,
        Admitted::Objects(permit) => verb::serve(kernel, *permit, query, request).await,
    }
}

fn authenticate(kernel: &Kernel, peer: &Peer, request: &Request<Body>) -> Outcome<User> {
    let (certificate, connection) = match peer {
        Peer::Local(user) => return Ok(user.clone()),
        Peer::Tls { certificate, connection } => (certificate, connection),
    };
    match (authn::credential(request.headers()), certificate) {
        (Credential::Bearer(token), _) => {
            let audiences = &kernel.tokens.audiences;
            match kernel.tokens.verify(&token, audiences, &*kernel.cache, Kernel::now()) {
                Ok(verified) => {
                    connection.set_known();
                    Ok(verified.user)
                }
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
