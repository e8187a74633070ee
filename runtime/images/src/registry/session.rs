//! One conversation about one repository: endpoints in order, authentication on demand, redirects, retries.
//!
//!     request -> 401 + challenge -> credentials or token -> request again -> answer
//!             -> plain HTTP answered where either will do -> request again without TLS
//!             -> 30x -> request there, without our credentials if the host is another
//!
//! Invariant: mirrors see no credentials of the registry; what an administrator wants them to see is in hosts.toml.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::Error;
use super::challenge::{self, Challenge};
use super::hosts::{self, Endpoint, Scheme, is_loopback};
use super::token::{self, TokenRequest};
use super::transport::{HttpClient, RequestBody, Transports, classify, no_body};
use crate::auth::Auth;
use crate::digest::Digest;
use crate::manifest::{ACCEPTED, MANIFEST_BYTES_MAX};
use crate::reference::Reference;
use crate::store::Config;

pub(super) const AGENT: &str = concat!("sampan/", env!("CARGO_PKG_VERSION"));
/// No byte for so long, and the connection is given up.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A manifest, a token, an error: small, so that a peer that trickles is not waited for longer than one that is silent.
const SMALL_BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// As much of what a registry asks for with `Retry-After` is granted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 8;
pub(super) const ATTEMPTS_MAX: u32 = 4;
const BACKOFF_START: Duration = Duration::from_millis(150);
const ERROR_BYTES_MAX: u64 = 64 << 10;
const DETAIL_CHARS_MAX: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

pub(crate) struct Session {
    pub(super) registry: String,
    pub(super) repository: String,
    auth: Option<Auth>,
    access: Access,
    pub(super) endpoints: Vec<Live>,
}

/// An endpoint and what was learned about it.
pub(super) struct Live {
    pub(super) endpoint: Endpoint,
    client: HttpClient,
    plain: AtomicBool,
    /// Value of the `Authorization` header that was accepted last.
    authorization: Mutex<Option<String>>,
}

/// One request, which may have to be sent more than once.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// Below the repository, `manifests/latest`; or a whole address that an earlier answer gave.
    pub(super) target: &'a str,
    pub(super) headers: &'a [(HeaderName, String)],
    pub(super) body: &'a (dyn Fn() -> RequestBody + Sync),
    /// For messages.
    pub(super) what: &'a str,
}

pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
}

impl Live {
    pub(super) fn scheme(&self) -> &'static str {
        match self.endpoint.scheme {
            Scheme::Http => "http",
            Scheme::Either if self.plain.load(Ordering::Relaxed) => "http",
            Scheme::Https | Scheme::Either => "https",
        }
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Session {
    /// Reads the configuration; sends nothing yet.
    pub(crate) fn open(
        transports: &Transports,
        config: &Config,
        reference: &Reference,
        auth: Option<Auth>,
        access: Access,
    ) -> Result<Self, Error> {
        let registry = reference.registry();
        let found = hosts::endpoints(registry, config.registries_dir.as_deref(), &config.insecure_registries)?;
        let mut endpoints = Vec::new();
        for endpoint in found {
            let client = transports.client(registry, &endpoint.tls)?;
            let token = match &auth {
                Some(Auth::RegistryToken(token)) if !endpoint.mirror => Some(format!("Bearer {token}")),
                _ => None,
            };
            endpoints.push(Live { endpoint, client, plain: AtomicBool::new(false), authorization: Mutex::new(token) });
        }
        let repository = reference.repository().to_owned();
        Ok(Self { registry: registry.to_owned(), repository, auth, access, endpoints })
    }

    /// The manifest or index called `target` (a tag or a digest). Bytes are verified when `expect` says what they should be.
    pub(crate) async fn manifest(&self, target: &str, expect: Option<&Digest>) -> Result<Fetched, crate::Error> {
        let mut attempts = Vec::new();
        for live in &self.endpoints {
            let able = if expect.is_some() { live.endpoint.pull } else { live.endpoint.resolve };
            if !able {
                continue;
            }
            let mut backoff = BACKOFF_START;
            for attempt in 1..=ATTEMPTS_MAX {
                match self.manifest_from(live, target, expect).await {
                    Ok(fetched) => return Ok(fetched),
                    Err(crate::Error::Registry(error)) => {
                        // A mirror that is down is passed over at once; the registry itself gets more chances.
                        let again = error.is_transient() && !live.endpoint.mirror && attempt < error.attempts_max();
                        if !again {
                            attempts.push((live.endpoint.authority.clone(), error));
                            break;
                        }
                        tokio::time::sleep(error.retry_after().unwrap_or(backoff)).await;
                        backoff = backoff.saturating_mul(2);
                    }
                    // A mirror that sends garbage is passed over like one that is down.
                    Err(error) if live.endpoint.mirror => {
                        tracing::warn!(mirror = live.endpoint.authority, %error, "a mirror sent a corrupt manifest");
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(self.failed(attempts).into())
    }

    pub(crate) fn has_mirrors(&self) -> bool {
        self.endpoints.iter().any(|live| live.endpoint.mirror)
    }

    /// One failure is told as it is, several as a list.
    pub(super) fn failed(&self, mut attempts: Vec<(String, Error)>) -> Error {
        if attempts.len() == 1
            && let Some((_, only)) = attempts.pop()
        {
            return only;
        }
        Error::EveryEndpoint { registry: self.registry.clone(), attempts }
    }

    async fn manifest_from(&self, live: &Live, target: &str, expect: Option<&Digest>) -> Result<Fetched, crate::Error> {
        let host = &live.endpoint.authority;
        let what = format!("manifest {}:{target}", self.repository);
        let path = format!("manifests/{target}");
        let accept: Vec<_> = ACCEPTED.iter().map(|media_type| (ACCEPT, (*media_type).to_owned())).collect();
        let ask = Ask { method: Method::GET, target: &path, headers: &accept, body: &no_body, what: &what };
        let answer = self.send(live, &ask).await?;
        if !answer.status().is_success() {
            let unknown = Error::ManifestUnknown {
                host: host.clone(),
                repository: self.repository.clone(),
                target: target.to_owned(),
            };
            return Err(self.refusal(live, &what, answer, unknown).await.into());
        }
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let bytes = read_body(host, &what, answer.into_body(), MANIFEST_BYTES_MAX).await?;
        let digest = match expect {
            None => Digest::of(&bytes),
            Some(expected) => {
                let mut hasher = crate::digest::Hasher::new(expected.algorithm());
                hasher.update(&bytes);
                let actual = hasher.finish();
                if actual != *expected {
                    let subject = format!("manifest {expected} of {}/{}", self.registry, self.repository);
                    return Err(crate::Error::DigestMismatch { subject, actual });
                }
                actual
            }
        };
        Ok(Fetched { bytes, digest, media_type })
    }

    /// Turns an answer that is no success into an error. `unknown` is what 404 means.
    pub(super) async fn refusal(&self, live: &Live, what: &str, answer: Response<Incoming>, unknown: Error) -> Error {
        let (host, status) = (live.endpoint.authority.clone(), answer.status());
        let repository = self.repository.clone();
        let retry_after = retry_after(answer.headers());
        let body = read_body(&host, what, answer.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
        let detail = error_detail(&body);
        let anonymous = self.auth.is_none() || live.endpoint.mirror;
        match status {
            StatusCode::UNAUTHORIZED if anonymous => Error::Unauthorized { host, repository, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied { host, repository, status, detail },
            StatusCode::NOT_FOUND => unknown,
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { host, retry_after },
            status => Error::Status { host, what: what.to_owned(), status, detail },
        }
    }

    /// Sends until there is an answer that is neither a redirect nor a challenge we have not tried to meet.
    pub(super) async fn send(&self, live: &Live, ask: &Ask<'_>) -> Result<Response<Incoming>, Error> {
        let host = &live.endpoint.authority;
        let mut authenticated = false;
        let mut elsewhere: Option<Uri> = None;
        let mut redirects = 0;
        loop {
            let uri = match &elsewhere {
                Some(uri) => uri.clone(),
                None => self.address(live, ask)?,
            };
            let ours = uri.authority().is_some_and(|authority| authority.as_str() == host);
            let request = self.request(live, ask, &uri, ours)?;
            let target_host = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
            let sent = tokio::time::timeout(STALL_TIMEOUT, live.client.request(request)).await;
            let answer = match sent {
                Err(_) => {
                    let (seconds, what) = (STALL_TIMEOUT.as_secs(), ask.what.to_owned());
                    return Err(Error::Stalled { host: target_host, what, seconds });
                }
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    let error = classify(&target_host, ask.what, &error);
                    let tls_only = matches!(error, Error::PlainHttp { .. } | Error::Connect { .. });
                    let may_fall_back = ours && live.endpoint.scheme == Scheme::Either && live.scheme() == "https";
                    if tls_only && may_fall_back {
                        live.plain.store(true, Ordering::Relaxed);
                        continue;
                    }
                    return Err(error);
                }
            };
            if answer.status() == StatusCode::UNAUTHORIZED && ours && !authenticated {
                authenticated = true;
                if let Some(authorization) = self.authenticate(live, answer.headers()).await? {
                    *live.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
                    continue;
                }
            }
            let follow = answer.status().is_redirection() && matches!(ask.method, Method::GET | Method::HEAD);
            let Some(location) = answer.headers().get(LOCATION).filter(|_| follow) else { return Ok(answer) };
            redirects += 1;
            let location = location.to_str().unwrap_or_default();
            let next = resolve_location(&uri, location).filter(|_| redirects <= REDIRECTS_MAX);
            // From TLS to none is how a download would be swapped; only our own machine is trusted that far.
            let next = next.filter(|next| next.scheme_str() == uri.scheme_str() || next.scheme_str() == Some("https"));
            elsewhere = Some(next.ok_or_else(|| Error::Protocol {
                host: host.clone(),
                what: ask.what.to_owned(),
                reason: format!("it redirects to {location:?}, which cannot be followed"),
            })?);
        }
    }

    fn address(&self, live: &Live, ask: &Ask<'_>) -> Result<Uri, Error> {
        let bad = |address: &str| Error::Protocol {
            host: live.endpoint.authority.clone(),
            what: ask.what.to_owned(),
            reason: format!("{address:?} is not an address"),
        };
        if ask.target.contains("://") {
            return ask.target.parse().map_err(|_| bad(ask.target));
        }
        let (scheme, authority, path) = (live.scheme(), &live.endpoint.authority, &live.endpoint.path);
        // A mirror of several registries must know which one is meant.
        let namespace = if live.endpoint.mirror { format!("?ns={}", self.registry) } else { String::new() };
        let address = format!("{scheme}://{authority}{path}/{}/{}{namespace}", self.repository, ask.target);
        address.parse().map_err(|_| bad(&address))
    }

    fn request(&self, live: &Live, ask: &Ask<'_>, uri: &Uri, ours: bool) -> Result<Request<RequestBody>, Error> {
        let mut request = Request::builder().method(ask.method.clone()).uri(uri).header(USER_AGENT, AGENT);
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if ours {
            for (name, value) in &live.endpoint.headers {
                request = request.header(name, value);
            }
            if let Some(authorization) = live.authorization() {
                request = request.header(AUTHORIZATION, authorization);
            }
        }
        request.body((ask.body)()).map_err(|error| Error::Protocol {
            host: live.endpoint.authority.clone(),
            what: ask.what.to_owned(),
            reason: error.to_string(),
        })
    }

    /// The `Authorization` header that meets the challenge, or `None` if we have nothing to meet it with.
    async fn authenticate(&self, live: &Live, headers: &HeaderMap) -> Result<Option<String>, Error> {
        let auth = self.auth.as_ref().filter(|_| !live.endpoint.mirror);
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        for challenge in &challenges {
            if let Challenge::Bearer { realm, service, scope } = challenge {
                if matches!(auth, Some(Auth::RegistryToken(_))) {
                    return Ok(None);
                }
                let actions = if self.access == Access::Push { "pull,push" } else { "pull" };
                let own_scope = format!("repository:{}:{actions}", self.repository);
                let ask = TokenRequest {
                    host: &live.endpoint.authority,
                    repository: &self.repository,
                    realm,
                    service: service.as_deref(),
                    scope: scope.as_deref().unwrap_or(&own_scope),
                    plain_allowed: live.scheme() == "http"
                        || live.endpoint.tls.skip_verify
                        || is_loopback(realm_host(realm)),
                };
                return token::fetch(&live.client, &ask, auth).await.map(|token| Some(format!("Bearer {token}")));
            }
        }
        match auth {
            Some(Auth::Basic { username, password }) if challenges.contains(&Challenge::Basic) => {
                Ok(Some(Auth::basic_header(username, password)))
            }
            _ => Ok(None),
        }
    }
}

fn realm_host(realm: &str) -> &str {
    let after = realm.split_once("://").map_or(realm, |(_, rest)| rest);
    after.split(['/', '?']).next().unwrap_or_default()
}

/// RFC 9110, section 10.2.2: a location may be relative.
pub(super) fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let mut parts = base.clone().into_parts();
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{location}")
    };
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// RFC 9110, section 10.2.3, the form that registries send: whole seconds.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Reads a small body whole; more than `limit` bytes is an error, and so is one that trickles.
pub(super) async fn read_body(host: &str, what: &str, body: Incoming, limit: u64) -> Result<Bytes, Error> {
    match tokio::time::timeout(SMALL_BODY_TIMEOUT, read_whole(host, what, body, limit)).await {
        Ok(read) => read,
        Err(_) => {
            let (host, what) = (host.to_owned(), what.to_owned());
            Err(Error::Stalled { host, what, seconds: SMALL_BODY_TIMEOUT.as_secs() })
        }
    }
}

async fn read_whole(host: &str, what: &str, mut body: Incoming, limit: u64) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    loop {
        let Some(frame) = next_frame(host, what, &mut body).await? else { return Ok(bytes.freeze()) };
        if (bytes.len() + frame.len()) as u64 > limit {
            let reason = format!("it is larger than {limit} bytes");
            return Err(Error::Protocol { host: host.to_owned(), what: what.to_owned(), reason });
        }
        bytes.extend_from_slice(&frame);
    }
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_frame(host: &str, what: &str, body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    let (host, what) = (host.to_owned(), what.to_owned());
    loop {
        match tokio::time::timeout(STALL_TIMEOUT, body.frame()).await {
            Err(_) => return Err(Error::Stalled { host, what, seconds: STALL_TIMEOUT.as_secs() }),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Error::Interrupted { host, what, source: std::sync::Arc::new(error) }),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What the registry says about its refusal (distribution-spec, "Error codes"), shortened and made printable.
pub(super) fn error_detail(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = match value["errors"][0]["message"].as_str().or(value["details"].as_str()).or(value["message"].as_str())
    {
        Some(message) => message.to_owned(),
        None if value.is_null() => String::from_utf8_lossy(body).into_owned(),
        None => String::new(),
    };
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS_MAX).collect();
    // A page made for browsers says nothing here.
    if text.trim_start().starts_with('<') { String::new() } else { text.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let check = |location: &str, expect: &str| {
            let base: Uri = "https://a:5/v2/x/blobs/y".parse().unwrap();
            assert_eq!(resolve_location(&base, location).unwrap().to_string(), expect);
        };
        check("https://b/z?q=1", "https://b/z?q=1");
        check("/z?q=1", "https://a:5/z?q=1");
        check("z", "https://a:5/v2/x/blobs/z");
        assert_eq!(realm_host("http://127.0.0.1:8/token?x"), "127.0.0.1:8");
    }

    #[test]
    fn a_registry_may_ask_for_a_pause_but_not_for_any() {
        let check = |value: &str, expect: Option<u64>| {
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            assert_eq!(retry_after(&headers), expect.map(Duration::from_secs), "{value}");
        };
        check("3", Some(3));
        check("99999999999", Some(RETRY_AFTER_MAX.as_secs()));
        check("-1", None);
        check("Wed, 21 Oct 2015 07:28:00 GMT", None);
    }

    #[test]
    fn details() {
        assert_eq!(error_detail(br#"{"errors":[{"code":"X","message":"no\nsuch"}]}"#), "no such");
        assert_eq!(error_detail(br#"{"details":"bad password"}"#), "bad password");
        assert_eq!(error_detail(b"<html>"), "");
        assert_eq!(error_detail(b"plain words"), "plain words");
        assert_eq!(error_detail(b"{}"), "");
    }
}
