//! What can go wrong between us and a registry, told so that a person knows what to change.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::session::ATTEMPTS_MAX;
use crate::error::Kind;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("registry {host} is not known: the name does not resolve; check the spelling and the resolver")]
    UnknownHost {
        host: String,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot connect to registry {host}; check that it runs and that no firewall or proxy is in the way")]
    Connect {
        host: String,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "registry {host} cannot be trusted: put its CA certificate into the registries directory as {host}/hosts.toml with ca = \"ca.crt\", or list the registry as insecure"
    )]
    Tls {
        host: String,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "registry {host} speaks plain HTTP where HTTPS was expected; list it as insecure, or give an http:// server in {host}/hosts.toml"
    )]
    PlainHttp { host: String },
    #[error("registry {host} broke off while sending {what}")]
    Interrupted {
        host: String,
        what: String,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("registry {host} sent nothing for {seconds} s while asked for {what}")]
    Stalled { host: String, what: String, seconds: u64 },
    #[error(
        "registry {host} wants credentials for {repository} (401){}; give a pull secret, or check that the name is right",
        detail_suffix(detail)
    )]
    Unauthorized { host: String, repository: String, detail: String },
    #[error(
        "registry {host} refuses these credentials for {repository} ({status}){}; check user name, password and rights",
        detail_suffix(detail)
    )]
    Denied { host: String, repository: String, status: StatusCode, detail: String },
    #[error(
        "registry {host} has no {repository}{}{target} (404); check repository and {}",
        if is_digest(target) { '@' } else { ':' },
        if is_digest(target) { "digest" } else { "tag" }
    )]
    ManifestUnknown { host: String, repository: String, target: String },
    #[error("registry {host} has no blob {digest} of {repository} (404) although the manifest names it")]
    BlobUnknown { host: String, repository: String, digest: String },
    #[error("registry {host} allows no more requests for now (429); try again later or log in")]
    TooManyRequests { host: String, retry_after: Option<Duration> },
    #[error("registry {host} answered {status} when asked for {what}{}", detail_suffix(detail))]
    Status { host: String, what: String, status: StatusCode, detail: String },
    #[error("registry {host} sent something unusable for {what}: {reason}")]
    Protocol { host: String, what: String, reason: String },
    #[error("configuration of registry {registry} in {path} is not valid: {reason}")]
    Configuration { registry: String, path: String, reason: String },
    #[error("no endpoint of {registry} could serve the request: {}", list(attempts))]
    EveryEndpoint { registry: String, attempts: Vec<(String, Error)> },
}

/// A tag has no colon.
fn is_digest(target: &str) -> bool {
    target.contains(':')
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn list(attempts: &[(String, Error)]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    };
    attempts.iter().map(|(endpoint, error)| format!("[{endpoint}] {}", chain(error))).collect::<Vec<_>>().join("; ")
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Self::UnknownHost { .. }
            | Self::Connect { .. }
            | Self::Interrupted { .. }
            | Self::Stalled { .. }
            | Self::TooManyRequests { .. }
            | Self::Status { .. }
            | Self::Protocol { .. } => Kind::Unavailable,
            Self::Tls { .. } | Self::PlainHttp { .. } => Kind::Tls,
            Self::Unauthorized { .. } | Self::Denied { .. } => Kind::Unauthorized,
            Self::ManifestUnknown { .. } | Self::BlobUnknown { .. } => Kind::NotFound,
            Self::Configuration { .. } => Kind::Invalid,
            // The registry itself is asked last and knows best.
            Self::EveryEndpoint { attempts, .. } => attempts.last().map_or(Kind::Unavailable, |(_, e)| e.kind()),
        }
    }

    /// How often the same endpoint is asked. One that is silent was waited for already: only once more.
    pub(crate) fn attempts_max(&self) -> u32 {
        if matches!(self, Self::Stalled { .. }) { ATTEMPTS_MAX.min(2) } else { ATTEMPTS_MAX }
    }

    /// The pause that the registry asked for before the next attempt.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Worth another attempt at the same endpoint after a pause.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Interrupted { .. } | Self::Stalled { .. } | Self::TooManyRequests { .. } => {
                true
            }
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT,
            _ => false,
        }
    }
}
