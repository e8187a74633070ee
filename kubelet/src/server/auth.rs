//! Who asks, and may they? Client certificates and bearer tokens; the API server judges (TokenReview, SubjectAccessReview) and
//! its word is kept for a while. Invariant: without the API server's yes nobody gets in.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;

/// Upstream's times for webhook decisions.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
const TOKEN_FOR: Duration = Duration::from_secs(120);
/// Beyond this many remembered decisions all are forgotten.
const REMEMBERED_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("Unauthorized")]
    Unknown,
    #[error("Forbidden (user={user}, verb={verb}, resource=nodes, subresource={subresource})")]
    Forbidden { user: String, verb: &'static str, subresource: &'static str },
    #[error("the API server could not be asked: {0}")]
    Unreachable(Box<kube::Error>),
}

impl Refused {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Refused::Unknown => StatusCode::UNAUTHORIZED,
            Refused::Forbidden { .. } => StatusCode::FORBIDDEN,
            Refused::Unreachable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    name: String,
    groups: Vec<String>,
    uid: String,
}

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    user: Option<User>,
}

impl Peer {
    pub(super) fn none() -> Peer {
        Peer { user: None }
    }

    pub(super) fn is_known(&self) -> bool {
        self.user.is_some()
    }

    /// The user that the client certificate names: CN, and each O as a group.
    pub(super) fn of(connection: &rustls::ServerConnection) -> Peer {
        let certificate = connection.peer_certificates().and_then(|c| c.first());
        Peer { user: certificate.and_then(|der| user_of(der)) }
    }
}

fn user_of(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let name = subject.iter_common_name().next().and_then(text)?;
    let mut groups: Vec<String> = subject.iter_organization().filter_map(text).collect();
    groups.push("system:authenticated".into());
    Some(User { name, groups, uid: String::new() })
}

struct Until<T> {
    value: T,
    until: Instant,
}

/// Who, verb, subresource.
type Question = (User, &'static str, &'static str);

pub(super) struct Auth {
    client: Client,
    node_name: String,
    /// By the token's digest.
    tokens: Mutex<HashMap<[u8; 32], Until<Option<User>>>>,
    decisions: Mutex<HashMap<Question, Until<bool>>>,
}

impl Auth {
    pub(super) fn new(client: Client, node_name: String) -> Auth {
        Auth { client, node_name, tokens: Mutex::default(), decisions: Mutex::default() }
    }

    pub(super) async fn check<B>(
        &self,
        request: &Request<B>,
        peer: &Peer,
        subresource: &'static str,
    ) -> Result<(), Refused> {
        let user = match (&peer.user, bearer(request)) {
            (Some(user), _) => user.clone(),
            (None, Some(token)) => self.token(token).await?.ok_or(Refused::Unknown)?,
            (None, None) => return Err(Refused::Unknown),
        };
        let verb = match *request.method() {
            http::Method::POST => "create",
            http::Method::PUT => "update",
            http::Method::PATCH => "patch",
            http::Method::DELETE => "delete",
            _ => "get",
        };
        if self.allowed(&user, verb, subresource).await? {
            return Ok(());
        }
        Err(Refused::Forbidden { user: user.name, verb, subresource })
    }

    async fn token(&self, token: &str) -> Result<Option<User>, Refused> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = Instant::now();
        if let Some(kept) =
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).filter(|k| k.until > now)
        {
            return Ok(kept.value.clone());
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer =
            api.create(&PostParams::default(), &review).await.map_err(|e| Refused::Unreachable(Box::new(e)))?;
        let status = answer.status.filter(|s| s.authenticated == Some(true));
        let user = status.and_then(|s| s.user).map(|u| User {
            name: u.username.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
        });
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= REMEMBERED_MAX {
            tokens.clear();
        }
        tokens.insert(digest, Until { value: user.clone(), until: now.checked_add(TOKEN_FOR).unwrap_or(now) });
        Ok(user)
    }

    async fn allowed(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refused> {
        let key = (user.clone(), verb, subresource);
        let now = Instant::now();
        if let Some(kept) =
            self.decisions.lock().unwrap_or_else(PoisonError::into_inner).get(&key).filter(|k| k.until > now)
        {
            return Ok(kept.value);
        }
        // Fine-grained subresources first, then what upstream called `proxy` for everything.
        let mut allowed = self.ask(user, verb, subresource).await?;
        if !allowed && matches!(subresource, "healthz" | "pods") {
            allowed = self.ask(user, verb, "proxy").await?;
        }
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        if decisions.len() >= REMEMBERED_MAX {
            decisions.clear();
        }
        let until = now.checked_add(if allowed { ALLOWED_FOR } else { DENIED_FOR }).unwrap_or(now);
        decisions.insert(key, Until { value: allowed, until });
        Ok(allowed)
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, Refused> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                extra: None::<BTreeMap<String, Vec<String>>>,
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer =
            api.create(&PostParams::default(), &review).await.map_err(|e| Refused::Unreachable(Box::new(e)))?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

fn bearer<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get("authorization")?.to_str().ok()?;
    let (kind, token) = value.split_once(' ')?;
    kind.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
