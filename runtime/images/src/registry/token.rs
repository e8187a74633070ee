//! Bearer tokens: credentials -> a token for one scope, from the service that the registry's challenge names.
//! (Distribution's token authentication: GET with basic credentials, or an OAuth2 POST with a refresh token.)

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

use super::Error;
use super::session::{AGENT, STALL_TIMEOUT, read_body};
use super::transport::{HttpClient, classify, full_body, no_body};
use crate::auth::Auth;

const TOKEN_BYTES_MAX: u64 = 1 << 20;
const CLIENT_ID: &str = "sampan";

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

pub(super) struct TokenRequest<'a> {
    /// Whose challenge it answers, for messages.
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    /// Whether the registry itself was reached without TLS; only then may its token service be.
    pub(super) plain_allowed: bool,
}

pub(super) async fn fetch(client: &HttpClient, ask: &TokenRequest<'_>, auth: Option<&Auth>) -> Result<String, Error> {
    let protocol =
        |reason: String| Error::Protocol { host: ask.host.to_owned(), what: "its token service".into(), reason };
    let uri: Uri = ask.realm.parse().map_err(|_| protocol(format!("realm {:?} is not an address", ask.realm)))?;
    let token_host = uri.authority().map(ToString::to_string);
    let token_host = token_host.ok_or_else(|| protocol(format!("realm {:?} names no host", ask.realm)))?;
    if uri.scheme_str() != Some("https") && !ask.plain_allowed {
        return Err(protocol(format!("realm {:?} would send credentials without TLS", ask.realm)));
    }
    let request = build(ask, auth).map_err(|error| protocol(error.to_string()))?;
    let answer = match tokio::time::timeout(STALL_TIMEOUT, client.request(request)).await {
        Ok(answer) => answer.map_err(|error| classify(&token_host, "a token", &error))?,
        Err(_) => {
            return Err(Error::Stalled { host: token_host, what: "a token".into(), seconds: STALL_TIMEOUT.as_secs() });
        }
    };
    let retry_after = super::session::retry_after(answer.headers());
    let status = answer.status();
    let body = read_body(&token_host, "a token", answer.into_body(), TOKEN_BYTES_MAX).await?;
    if !status.is_success() {
        let detail = super::session::error_detail(&body);
        let (host, repository) = (token_host, ask.repository.to_owned());
        return Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST if auth.is_some() => {
                Error::Denied { host, repository, status, detail }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized { host, repository, detail },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { host, retry_after },
            status => Error::Status { host, what: "a token".into(), status, detail },
        });
    }
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|error| protocol(error.to_string()))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    token.ok_or_else(|| protocol("the answer holds no token".to_owned()))
}

fn build(ask: &TokenRequest<'_>, auth: Option<&Auth>) -> http::Result<Request<super::transport::RequestBody>> {
    let mut query = Vec::new();
    if let Some(service) = ask.service {
        query.push(("service", service));
    }
    query.push(("scope", ask.scope));
    let request = Request::builder().header(USER_AGENT, AGENT);
    match auth {
        Some(Auth::IdentityToken(token)) => {
            query.extend([("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)]);
            request
                .method(Method::POST)
                .uri(ask.realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(full_body(Bytes::from(encode(&query))))
        }
        auth => {
            let separator = if ask.realm.contains('?') { '&' } else { '?' };
            let mut request = request.method(Method::GET);
            if let Some(Auth::Basic { username, password }) = auth {
                query.push(("account", username));
                request = request.header(AUTHORIZATION, Auth::basic_header(username, password));
            }
            request.uri(format!("{}{separator}{}", ask.realm, encode(&query))).body(no_body())
        }
    }
}

/// application/x-www-form-urlencoded
fn encode(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                byte => {
                    text.push('%');
                    text.push_str(&format!("{byte:02X}"));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding() {
        let pairs = [("service", "a b"), ("scope", "repository:x/y:pull,push")];
        assert_eq!(encode(&pairs), "service=a%20b&scope=repository%3Ax%2Fy%3Apull%2Cpush");
    }
}
