//! LIST: from the snapshot, or from the store at an older revision when a continued or exact listing asks for it.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use control_plane_api::{Object, Status};
use control_plane_store::{Range, Revision};
use http::Response;
use serde::{Deserialize, Serialize};

use super::{
    respond::{self, ListMeta},
    version,
};
use crate::{
    behaviour,
    body::Body,
    cache::{Cached, Filter, Snapshot},
    status::Outcome,
    verb::Call,
};

/// Where a listing goes on: the revision it describes and the last key it gave.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Call {
    /// Namespace, name and selectors that were authorized.
    pub(crate) fn filter(&self) -> Outcome<Filter> {
        let collection = self.collection()?;
        let mut prefix = collection.prefix().to_owned();
        // A namespace is only a part of the key where keys have one: `namespaces/x` names an object, not a scope.
        let namespace = &self.permit.asked().path().namespace;
        if self.row.namespaced && !namespace.is_empty() {
            prefix.push_str(namespace);
            prefix.push('/');
        }
        let (labels, fields) = self.permit.asked().selectors();
        Ok(Filter::new(collection.row(), prefix, labels.clone(), fields.clone()))
    }
}

/// What is asked for, beside the selectors.
struct Options {
    limit: usize,
    token: Option<Token>,
    exact: Option<Revision>,
}

pub(crate) async fn serve(call: &Call) -> Outcome<Response<Body>> {
    let filter = call.filter()?;
    let options = options(call).await?;
    let collection = call.collection()?;
    // Taken before the snapshot: everything up to here is in it.
    let applied = call.kernel.cache.applied();
    let snapshot = collection.snapshot();
    let current = applied.max(snapshot.changed);
    let at = options.token.as_ref().map(|token| Revision(token.rv)).or(options.exact);
    match at {
        Some(at) if at < snapshot.changed => past(call, &filter, &options, at).await,
        at => present(call, &filter, &options, &snapshot, at.unwrap_or(current)),
    }
}

async fn options(call: &Call) -> Outcome<Options> {
    let number = |name: &str| -> Outcome<Option<usize>> {
        let text = call.query.first(name);
        let Some(text) = text else { return Ok(None) };
        let parsed = text.parse().map_err(|_| Status::bad_request(format!("{name} must be a number, not {text:?}")));
        Ok(Some(parsed?))
    };
    let limit = number("limit")?.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let wanted = call.query.first("resourceVersion").map(version::parse).transpose()?;
    let matching = call.query.first("resourceVersionMatch");
    if let Some(text) = call.query.first("continue") {
        if matching.is_some() {
            return Err(Status::bad_request("resourceVersionMatch is forbidden when continue is provided").into());
        }
        if wanted.is_some_and(|wanted| wanted != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue").into());
        }
        let token = parse_token(text)?;
        version::reach(call, token.rv).await?;
        return Ok(Options { limit, token: Some(token), exact: None });
    }
    let exact = match (wanted, matching) {
        (None, Some(_)) => {
            return Err(
                Status::bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided").into()
            );
        }
        (Some(0), Some("Exact")) => {
            return Err(Status::bad_request("resourceVersionMatch Exact is forbidden for resourceVersion 0").into());
        }
        (Some(_), Some(other)) if other != "Exact" && other != "NotOlderThan" => {
            return Err(Status::bad_request(format!(
                "resourceVersionMatch must be Exact or NotOlderThan, not {other:?}"
            ))
            .into());
        }
        (None, None) => {
            call.kernel.cache.catch_up().await?;
            None
        }
        (Some(0), _) => None,
        (Some(wanted), matching) => {
            version::reach(call, wanted).await?;
            (matching == Some("Exact")).then_some(Revision(wanted))
        }
    };
    Ok(Options { limit, token: None, exact })
}

fn parse_token(text: &str) -> Outcome<Token> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let token: Option<Token> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match token {
        Some(token) if token.v == TOKEN_VERSION => Ok(token),
        _ => {
            Err(Status::bad_request("continue key is not valid: send the token of the previous answer as it was")
                .into())
        }
    }
}

fn token(at: Revision, start: &str) -> String {
    let token = Token { v: TOKEN_VERSION.to_owned(), rv: at.0, start: start.to_owned() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token always encodes"))
}

fn present(
    call: &Call,
    filter: &Filter,
    options: &Options,
    snapshot: &Snapshot,
    at: Revision,
) -> Outcome<Response<Body>> {
    let after = options.token.as_ref().map_or("", |token| token.start.as_str());
    let mut matching = snapshot.range(filter.prefix(), after).filter(|cached| filter.matches(cached));
    let found: Vec<&Arc<Cached>> = matching.by_ref().take(options.limit).collect();
    let rest = if found.len() == options.limit { matching.count() } else { 0 };
    let mut meta = ListMeta { resource_version: at.to_string(), ..ListMeta::default() };
    if let Some(last) = found.last().filter(|_| rest > 0) {
        meta.continue_token = token(at, last.key());
        // With selectors the number would have to be counted by whoever wants it; upstream leaves it out too.
        meta.remaining = filter.is_prefix_only().then_some(rest);
    }
    if respond::is_plain(call) {
        return Ok(respond::spliced(call, &meta, found.iter().map(|cached| &cached.bytes)));
    }
    let objects: Vec<Object> = found.iter().map(|cached| call.in_version(cached)).collect();
    respond::list(call, &meta, &objects)
}

/// Reads as many keys at a time as are asked for, until enough match.
async fn past(call: &Call, filter: &Filter, options: &Options, at: Revision) -> Outcome<Response<Body>> {
    let collection = call.collection()?;
    let mut after = options.token.as_ref().map(|token| token.start.clone());
    let mut found: Vec<Arc<Cached>> = Vec::new();
    let mut more = true;
    while more && found.len() <= options.limit {
        let limit = (options.limit != usize::MAX).then(|| options.limit.saturating_add(1));
        let range = Range { prefix: filter.prefix().to_owned(), after: after.clone(), limit };
        let page = call.kernel.store.list(range, Some(at)).await?;
        more = page.more;
        after = page.entries.last().map(|entry| entry.key.to_string()).or(after);
        found.extend(page.entries.iter().filter_map(|entry| collection.parse(entry)).filter(|one| filter.matches(one)));
    }
    let mut meta = ListMeta { resource_version: at.to_string(), ..ListMeta::default() };
    if found.len() > options.limit {
        found.truncate(options.limit);
        if let Some(last) = found.last() {
            meta.continue_token = token(at, last.key());
        }
    }
    if respond::is_plain(call) {
        let items: Vec<&Bytes> = found.iter().map(|cached| &cached.bytes).collect();
        return Ok(respond::spliced(call, &meta, items.into_iter()));
    }
    let objects: Vec<Object> = found.iter().map(|cached| behaviour::from_storage(call.row, cached.object())).collect();
    respond::list(call, &meta, &objects)
}
