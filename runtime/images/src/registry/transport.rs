//! HTTP connections: one pooled client per set of TLS settings, and errors told apart by what a person must change.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiAddrs, GaiResolver, Name};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tower::Service;

use super::Error;
use super::hosts::Tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type RequestBody = BoxBody<Bytes, io::Error>;
pub(super) type HttpClient = Client<HttpsConnector<HttpConnector<Resolver>>, RequestBody>;

/// Clients by TLS settings and the content of the files they name, so that a changed file makes a new client.
#[derive(Default)]
pub(crate) struct Transports {
    clients: Mutex<HashMap<Vec<Vec<u8>>, HttpClient>>,
}

impl Transports {
    pub(super) fn client(&self, registry: &str, tls: &Tls) -> Result<HttpClient, Error> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| Error::Configuration {
                registry: registry.to_owned(),
                path: path.display().to_string(),
                reason: error.to_string(),
            })
        };
        let mut key = vec![vec![u8::from(tls.skip_verify)]];
        for path in &tls.ca {
            key.push(read(path)?);
        }
        key.push(Vec::new());
        for (certificate, private_key) in &tls.client {
            key.extend([read(certificate)?, read(private_key)?]);
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = connect_with(tls_config(registry, tls, &key)?);
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn connect_with(config: ClientConfig) -> HttpClient {
    let mut http = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // HTTP/1 only: layers come side by side on connections of their own, without sharing one flow-control window.
    let https =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(http);
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT).build(https)
}

/// `files` holds the content of `tls`'s files in order: CAs, an empty separator, certificate and key in turn.
fn tls_config(registry: &str, tls: &Tls, files: &[Vec<u8>]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring offers the default protocol versions");
    let unusable = |path: &Path, reason: String| Error::Configuration {
        registry: registry.to_owned(),
        path: path.display().to_string(),
        reason,
    };
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(provider)))
    } else {
        let mut roots = system_roots().clone();
        for (path, pem) in tls.ca.iter().zip(&files[1..]) {
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| unusable(path, format!("not a PEM certificate: {error}")))?;
            if certificates.is_empty() {
                return Err(unusable(path, "holds no PEM certificate".to_owned()));
            }
            for certificate in certificates {
                roots.add(certificate).map_err(|error| unusable(path, error.to_string()))?;
            }
        }
        builder.with_root_certificates(roots)
    };
    // TLS sends one client certificate; the first pair is it.
    let Some((certificate_path, key_path)) = tls.client.first() else { return Ok(builder.with_no_client_auth()) };
    let pair = &files[2 + tls.ca.len()..];
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pair[0])
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(certificate_path, format!("not a PEM certificate: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(&pair[1]);
    let key = key.map_err(|error| unusable(key_path, format!("not a PEM private key: {error}")))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| unusable(certificate_path, error.to_string()))
}

/// Read once: it takes milliseconds, and changes when the operating system is updated.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::debug!(%error, "a system certificate could not be read");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

/// For registries that the administrator listed as insecure.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The system's resolver, whose failures can be told from those of connecting.
#[derive(Clone, Debug)]
pub(super) struct Resolver(GaiResolver);

#[derive(Debug, thiserror::Error)]
#[error("look up {name}")]
struct LookupFailed {
    name: String,
    #[source]
    source: io::Error,
}

impl Service<Name> for Resolver {
    type Response = GaiAddrs;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<GaiAddrs, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let text = name.as_str().to_owned();
        let lookup = self.0.call(name);
        Box::pin(async move {
            lookup
                .await
                .map_err(|source| Box::new(LookupFailed { name: text, source }) as Box<dyn StdError + Send + Sync>)
        })
    }
}

/// Which of our errors a failed exchange is.
pub(super) fn classify(host: &str, what: &str, error: &ClientError) -> Error {
    let host = host.to_owned();
    let is_connect = error.is_connect();
    let tls = find_tls(error).cloned();
    let lookup = chain(error).any(|cause| cause.downcast_ref::<LookupFailed>().is_some());
    // The client's own layers ("client error (Connect)") help nobody; the innermost cause does.
    let source: Arc<dyn StdError + Send + Sync> = match &tls {
        Some(tls) => Arc::new(tls.clone()),
        None => Arc::new(io::Error::other(innermost(error))),
    };
    match tls {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Error::PlainHttp { host },
        Some(_) => Error::Tls { host, source },
        None if lookup => Error::UnknownHost { host, source },
        None if is_connect => Error::Connect { host, source },
        None => Error::Interrupted { host, what: what.to_owned(), source },
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn find_tls<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    chain(error).find_map(|cause| {
        // An io::Error hides what it wraps from `source`.
        let inside = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inside = inside.and_then(|inner| {
            let nested = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            inner.downcast_ref::<rustls::Error>().or_else(|| nested.and_then(|n| n.downcast_ref::<rustls::Error>()))
        });
        cause.downcast_ref::<rustls::Error>().or(inside)
    })
}

pub(super) fn no_body() -> RequestBody {
    full_body(Bytes::new())
}

pub(super) fn full_body(bytes: Bytes) -> RequestBody {
    use http_body_util::BodyExt as _;
    http_body_util::Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}
