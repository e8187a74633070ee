//! The verbs, generic over the row: which one a request means, and what they share.

pub(crate) mod commit;
pub(crate) mod decode;
pub(crate) mod delete;
pub(crate) mod delete_options;
pub(crate) mod list;
pub(crate) mod respond;
pub(crate) mod version;
pub(crate) mod watch;
pub(crate) mod write;

use std::sync::Arc;

use control_plane_api::{Object, Row, Status};
use http::{Request, Response, header};
use jiff::Timestamp;

use crate::{
    authn::User,
    authz::authorized::{Authorized, Objects},
    behaviour,
    body::Body,
    cache::{Cached, Collection},
    kernel::Kernel,
    negotiate::{self, Accept},
    request::{Query, ResourcePath, Verb},
    status::Outcome,
    subresource,
};

/// An authorized request on a known row, being served.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) kernel: Arc<Kernel>,
    /// What was authorized: lists, watches and collections are selected by it alone.
    pub(crate) permit: Arc<Authorized<Objects>>,
    pub(crate) user: User,
    pub(crate) row: &'static Row,
    pub(crate) path: ResourcePath,
    pub(crate) query: Query,
    pub(crate) verb: Verb,
    pub(crate) accept: Accept,
    pub(crate) now: Timestamp,
    /// Told to the caller in Warning headers.
    pub(crate) warnings: Vec<String>,
    /// The caller's program, which names a field manager when the query does not.
    pub(crate) agent: String,
    /// This is a server-side apply: managed fields come with the object.
    pub(crate) applies: bool,
}

/// The longest name of a field manager.
const FIELD_MANAGER_MAX: usize = 128;

/// Serves what was authorized.
pub(crate) async fn serve(
    kernel: &Arc<Kernel>,
    permit: Authorized<Objects>,
    query: Query,
    request: Request<Body>,
) -> Outcome<Response<Body>> {
    let accept = negotiate::accept(request.headers(), &query)?;
    let mut call = Call::begin(kernel, permit, query, accept, user_agent(&request));
    if !call.path.subresource.is_empty() {
        return subresource::serve(call, request).await;
    }
    let has = |verb: Verb| call.row.has_verb(verb.as_str());
    let named = !call.path.name.is_empty();
    let on_one = matches!(call.verb, Verb::Get | Verb::Update | Verb::Patch | Verb::Delete);
    if !has(call.verb) || (on_one && !named) || (call.verb == Verb::Create && named && call.row.resource != "bindings")
    {
        return Err(call.not_allowed());
    }
    match call.verb {
        Verb::Get => {
            let cached = call.read().await?;
            respond::cached(&call, &cached)
        }
        Verb::List => list::serve(&call).await,
        Verb::Watch => watch::serve(&call).await,
        Verb::Create => {
            let body = decode::Sent::read(request).await?;
            let mut object = decode::object(&mut call, &body)?;
            if call.row.is_ephemeral() {
                return subresource::review::serve(call, object).await;
            }
            let created = write::create(&mut call, &mut object).await?;
            respond::object(&call, http::StatusCode::CREATED, &created)
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
        Verb::Delete => {
            let body = decode::Sent::read(request).await?;
            delete::one(&mut call, &body).await
        }
        Verb::DeleteCollection => {
            let body = decode::Sent::read(request).await?;
            delete::collection(&mut call, &body).await
        }
        _ => Err(call.not_allowed()),
    }
}

/// The part of the user agent that names a field manager when the request does not.
fn user_agent(request: &Request<Body>) -> String {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    agent.split('/').next().unwrap_or("unknown").chars().take(FIELD_MANAGER_MAX).collect()
}

impl Call {
    fn begin(kernel: &Arc<Kernel>, permit: Authorized<Objects>, query: Query, accept: Accept, agent: String) -> Self {
        let asked = permit.asked();
        Self {
            kernel: Arc::clone(kernel),
            user: permit.user().clone(),
            row: asked.row(),
            path: asked.path().clone(),
            query,
            verb: asked.verb(),
            accept,
            now: Kernel::now(),
            warnings: Vec::new(),
            agent,
            applies: false,
            permit: Arc::new(permit),
        }
    }

    pub(crate) fn not_allowed(&self) -> crate::status::Failure {
        let verb = match self.verb {
            Verb::Create => "create",
            Verb::Other => "this method",
            verb => verb.as_str(),
        };
        Status::method_not_allowed(self.row.group, self.row.resource, verb).into()
    }

    /// Where the row's objects are cached.
    pub(crate) fn collection(&self) -> Outcome<&Arc<Collection>> {
        self.kernel.cache.collection(self.row).ok_or_else(|| self.not_allowed())
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(self.row.group, self.row.resource, &self.path.name)
    }

    /// The object that the path names, as new as everything acknowledged before the request.
    pub(crate) async fn read(&self) -> Outcome<Arc<Cached>> {
        let collection = self.collection()?;
        match self.query.first("resourceVersion").map(version::parse).transpose()? {
            // Zero: whatever is at hand.
            Some(0) => {}
            Some(wanted) => version::reach(self, wanted).await?,
            None => self.kernel.cache.catch_up().await?,
        }
        Ok(collection.get(&self.path.namespace, &self.path.name).ok_or_else(|| self.not_found())?)
    }

    /// The object in this row's version.
    pub(crate) fn in_version(&self, cached: &Cached) -> Object {
        behaviour::from_storage(self.row, cached.object())
    }

    /// Who manages the fields that this request writes.
    pub(crate) fn field_manager(&self) -> Outcome<String> {
        match self.query.first("fieldManager") {
            Some(name) if name.len() > FIELD_MANAGER_MAX || name.chars().any(char::is_control) => Err(
                Status::bad_request(format!("fieldManager must be at most {FIELD_MANAGER_MAX} printable characters"))
                    .into(),
            ),
            Some(name) => Ok(name.to_owned()),
            None => Ok(self.agent.clone()),
        }
    }

    /// Whether nothing is to be stored.
    pub(crate) fn dry_run(&self) -> Outcome<bool> {
        let mut dry = false;
        for value in self.query.all("dryRun").filter(|value| !value.is_empty()) {
            if value != "All" {
                return Err(Status::bad_request(format!("dryRun must be All, not {value:?}")).into());
            }
            dry = true;
        }
        Ok(dry)
    }
}
