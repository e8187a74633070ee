//! Everything that is no resource: discovery, OpenAPI, version, health, metrics, the token issuer's keys.

pub(crate) mod discovery;
pub(crate) mod health;
pub(crate) mod openapi;

use std::sync::Arc;

use bytes::Bytes;
use control_plane_api::Status;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    authz::authorized::{self, Authorized},
    body::{self, Body},
    kernel::Kernel,
    negotiate,
    request::{Query, Verb},
    status::Outcome,
};

/// What clients are told this server is compatible with.
const VERSION: (&str, &str, &str) = ("1", "36", control_plane_api::KUBERNETES_VERSION);

/// One segment beneath the root, as `/` lists it.
const PATHS: [&str; 12] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

pub(crate) async fn serve(
    kernel: &Arc<Kernel>,
    permit: &Authorized<authorized::Path>,
    query: &Query,
    request: Request<Body>,
) -> Outcome<Response<Body>> {
    let asked = permit.asked();
    if !matches!(asked.verb(), Verb::Get | Verb::Head) {
        return Err(Status::no_such_path().into());
    }
    let headers = request.headers();
    let path = asked.path().trim_end_matches('/');
    match path {
        "" => json(&json!({"paths": PATHS})),
        "/version" => json(&version()),
        "/api" | "/apis" => discovery::root(kernel, path, headers),
        "/metrics" => {
            let mut response = text(StatusCode::OK, health::metrics(kernel));
            let value = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, value);
            Ok(response)
        }
        "/openapi/v2" => openapi::v2(headers),
        "/openapi/v3" => openapi::v3_index(),
        "/openid/v1/jwks" => {
            let mut response = json(&kernel.tokens.key.jwks())?;
            let value = HeaderValue::from_static("application/jwk-set+json");
            response.headers_mut().insert(header::CONTENT_TYPE, value);
            Ok(response)
        }
        "/.well-known/openid-configuration" => json(&openid(kernel)),
        _ => {
            if let Some(rest) = path.strip_prefix("/openapi/v3/") {
                return openapi::v3(rest, headers);
            }
            for name in ["healthz", "livez", "readyz"] {
                if let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(name))
                    && (rest.is_empty() || rest.starts_with('/'))
                {
                    return health::serve(kernel, name, rest.trim_start_matches('/'), query).await;
                }
            }
            if let Some(version) = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/apis/")) {
                return discovery::below(path, version, headers);
            }
            Err(Status::no_such_path().into())
        }
    }
}

fn version() -> Value {
    let (major, minor, git) = VERSION;
    json!({
        "major": major, "minor": minor, "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
        "gitVersion": git, "gitCommit": env!("CARGO_PKG_VERSION"), "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none (Rust)", "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// The machine in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn openid(kernel: &Kernel) -> Value {
    let issuer = &kernel.tokens.issuer;
    let keys = format!("{}/openid/v1/jwks", issuer.trim_end_matches('/'));
    let algorithm = kernel.tokens.key.jwks()["keys"][0]["alg"].clone();
    json!({"issuer": issuer, "jwks_uri": keys, "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": [algorithm]})
}

fn json(value: &Value) -> Outcome<Response<Body>> {
    let bytes = serde_json::to_vec(value).expect("JSON values always encode");
    Ok(typed(Bytes::from(bytes), negotiate::JSON))
}

fn typed(bytes: Bytes, media: &'static str) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = typed(Bytes::from(text), "text/plain; charset=utf-8");
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A document that changes only with the program: answered with an ETag, or with 304 when the caller has it.
fn fixed(headers: &HeaderMap, bytes: Bytes, media: &'static str, tag: &str) -> Outcome<Response<Body>> {
    let quoted = format!("\"{tag}\"");
    let has = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|list| list.contains(&quoted));
    let mut response = typed(if has { Bytes::new() } else { bytes }, media);
    if has {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(quoted) {
        headers.insert(header::ETAG, value);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    Ok(response)
}
