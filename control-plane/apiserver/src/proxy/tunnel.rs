//! Moves a request to its target and the answer back; after an upgrade, bytes both ways until either side ends.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use control_plane_api::{Reason, Status};
use futures::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    log_socket,
    rewrite::Rewrite,
    target::{Scheme, Target},
};
use crate::{
    body::{self, Body},
    config::KubeletConfig,
    status::Outcome,
    tls::{TlsError, certificates, private_key, provider, roots},
    verb::Call,
};

/// A target that does not take the connection within this is unavailable.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// What a kubelet says beyond this when it has no log is not told.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;
/// A page of HTML beyond this is handed on with the links that it has.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Headers that belong to one hop, RFC 9110 section 7.6.1. Credentials were taken out where they were understood; see `authn.rs`.
const NOT_FORWARDED: [header::HeaderName; 7] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Connects to kubelets with the server's client certificate.
pub(crate) struct KubeletClient {
    connector: TlsConnector,
}

impl std::fmt::Debug for KubeletClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletClient").finish_non_exhaustive()
    }
}

/// Accepts any certificate, but checks that its owner holds the key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn client_builder(what: &'static str) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Tls { what, source })
}

impl KubeletClient {
    pub(crate) fn new(config: &KubeletConfig) -> Result<Self, TlsError> {
        let what = "the kubelet client";
        let builder = client_builder(what)?;
        let builder = if config.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        } else {
            builder.with_root_certificates(roots(&config.ca, "the kubelets' CA")?)
        };
        let chain = certificates(&config.certificate, "the kubelet client certificate")?;
        let key = private_key(&config.key, "the kubelet client key")?;
        let mut client = builder.with_client_auth_cert(chain, key).map_err(|source| TlsError::Tls { what, source })?;
        // Upgrades need HTTP/1.1.
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(client)) })
    }
}

fn any_certificate() -> Result<TlsConnector, TlsError> {
    let builder = client_builder("the proxy")?;
    let verifier = Arc::new(AnyCertificate(provider()));
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(call: &Call, target: &Target) -> Outcome<Box<dyn Stream>> {
    let failed = |why: String| {
        Status::service_unavailable(format!("error dialing backend {}:{}: {why}", target.host, target.port))
    };
    let connecting = async {
        match target.host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect((address, target.port)).await,
            Err(_) => TcpStream::connect((target.host.as_str(), target.port)).await,
        }
    };
    let tcp = tokio::time::timeout(CONNECT_MAX, connecting).await;
    let tcp = tcp.map_err(|_| failed("timed out".to_owned()))?.map_err(|error| failed(error.to_string()))?;
    // Terminals feel Nagle's algorithm.
    tcp.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
    let connector = match target.scheme {
        Scheme::Http => return Ok(Box::new(tcp)),
        Scheme::Https => any_certificate().map_err(|error| failed(error.to_string()))?,
        Scheme::Kubelet => match &call.kernel.kubelets {
            Some(client) => client.connector.clone(),
            None => {
                return Err(
                    failed("this server was started without a client certificate for kubelets".to_owned()).into()
                );
            }
        },
    };
    let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(error.to_string()))?;
    let handshake = tokio::time::timeout(CONNECT_MAX, connector.connect(name, tcp)).await;
    let tls = handshake.map_err(|_| failed("TLS handshake timed out".to_owned()))?;
    Ok(Box::new(tls.map_err(|error| failed(error.to_string()))?))
}

/// Hands the request to the target, and its answer to the caller.
pub(super) async fn forward(call: &Call, target: Target, mut request: Request<Body>) -> Outcome<Response<Body>> {
    let stream = connect(call, &target).await?;
    let failed =
        |error: hyper::Error| Status::service_unavailable(format!("error proxying to {}: {error}", target.host));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let is_log = call.path.subresource == "log";
    let log_socket = if is_log { log_socket::asked(request.headers())? } else { None };
    // A log is plain for the kubelet, however it reaches the caller.
    let upgrade = request.headers().get(header::UPGRADE).filter(|_| !is_log).cloned();
    let log_caller = log_socket.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let caller = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let uri: Uri = target
        .path_and_query
        .parse()
        .map_err(|_| Status::bad_request(format!("{:?} is no path to proxy to", target.path_and_query)))?;
    let mut outgoing = Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = uri;
    *outgoing.headers_mut() = forwarded(&parts.headers, upgrade.is_some());
    let host = match target.host.contains(':') {
        true => format!("[{}]:{}", target.host, target.port),
        false => format!("{}:{}", target.host, target.port),
    };
    let rewrite = rewrite(call, &parts.uri, &parts.headers, &host);
    if let Ok(host) = host.parse() {
        outgoing.headers_mut().insert(header::HOST, host);
    }
    if rewrite.is_some() {
        // A page in a form that can be read.
        outgoing.headers_mut().remove(header::ACCEPT_ENCODING);
        if let Ok(uri) = parts.uri.path().parse() {
            outgoing.headers_mut().insert("x-forwarded-uri", uri);
        }
    }
    if let Some(protocol) = upgrade {
        outgoing.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        outgoing.headers_mut().insert(header::UPGRADE, protocol);
    }
    let mut answer = sender.send_request(outgoing).await.map_err(failed)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(caller) = caller
    {
        let backend = hyper::upgrade::on(&mut answer);
        tokio::spawn(splice(caller, backend));
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        return Ok(response);
    }
    if is_log && !answer.status().is_success() {
        return Err(refusal(answer).await.into());
    }
    let (mut parts, body) = answer.into_parts();
    if let (Some(asked), Some(caller)) = (log_socket, log_caller) {
        return Ok(log_socket::serve(asked, caller, body, sender));
    }
    parts.headers.remove(header::CONNECTION);
    parts.headers.remove(header::TRANSFER_ENCODING);
    // The sender lives as long as the body: dropping it would end the connection under a followed log.
    let held = http_body_util::BodyExt::map_frame(body, move |frame| {
        let _ = &sender;
        frame
    });
    match rewrite {
        Some(rewrite) => Ok(rewritten(&rewrite, parts, body::boxed(held)).await),
        None => Ok(Response::from_parts(parts, body::boxed(held))),
    }
}

/// How the links of a proxied application lead back through the proxy; `None` for what is no application.
fn rewrite(call: &Call, uri: &Uri, headers: &HeaderMap, host: &str) -> Option<Rewrite> {
    if call.path.subresource != "proxy" || call.row.resource == "nodes" {
        return None;
    }
    let prefix = uri.path().strip_suffix(call.path.rest.as_str())?.trim_end_matches('/').to_owned();
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let asked = asked.or_else(|| uri.authority().map(ToString::to_string));
    Some(Rewrite { prefix, hosts: std::iter::once(host.to_owned()).chain(asked).collect() })
}

/// The answer with its links led through the proxy. A page that is too large to hold is passed on as it is.
async fn rewritten(rewrite: &Rewrite, mut parts: http::response::Parts, mut page: Body) -> Response<Body> {
    let location = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    if let Some(led) = location.and_then(|url| rewrite.url(url))
        && let Ok(led) = led.parse()
    {
        parts.headers.insert(header::LOCATION, led);
    }
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let is_page = text(header::CONTENT_TYPE).split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("text/html");
    let is_packed = !matches!(text(header::CONTENT_ENCODING), "" | "identity");
    if !is_page || is_packed {
        return Response::from_parts(parts, page);
    }
    let mut read = BytesMut::new();
    while read.len() <= PAGE_BYTES_MAX {
        match page.frame().await.map(|frame| frame.map(http_body::Frame::into_data)) {
            Some(Ok(Ok(data))) => read.extend_from_slice(&data),
            // Trailers end a body.
            Some(Ok(Err(_))) | None => {
                let whole = rewrite.html(&read);
                parts.headers.remove(header::CONTENT_LENGTH);
                return Response::from_parts(parts, body::full(whole));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a proxied page broke off");
                parts.status = StatusCode::BAD_GATEWAY;
                parts.headers.remove(header::CONTENT_LENGTH);
                return Response::from_parts(parts, body::empty());
            }
        }
    }
    let first = futures::stream::iter([Ok(http_body::Frame::data(read.freeze()))]);
    let rest = futures::stream::unfold(page, |mut page| async move {
        let frame = page.frame().await?;
        Some((frame, page))
    });
    Response::from_parts(parts, http_body_util::StreamBody::new(first.chain(rest)).boxed_unsync())
}

/// A kubelet says in plain text why there is no log; clients understand a `Status`.
async fn refusal(answer: Response<hyper::body::Incoming>) -> Status {
    let code = answer.status();
    let limited = http_body_util::Limited::new(answer.into_body(), REFUSAL_BYTES_MAX);
    let said = http_body_util::BodyExt::collect(limited).await.map(|all| all.to_bytes()).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let reason = match code {
        StatusCode::BAD_REQUEST => Reason::BadRequest,
        StatusCode::NOT_FOUND => Reason::NotFound,
        _ => Reason::InternalError,
    };
    Status::new(reason, if said.is_empty() { format!("the kubelet answered {code}") } else { said })
}

fn forwarded(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let protocol = name == header::SEC_WEBSOCKET_PROTOCOL && !upgrades;
        if NOT_FORWARDED.contains(name) || protocol || named.iter().any(|one| one == name.as_str()) {
            continue;
        }
        out.append(name.clone(), value.clone());
    }
    out
}

/// Bytes both ways until one side ends.
async fn splice(caller: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    let (caller, backend) = match futures::future::try_join(caller, backend).await {
        Ok(both) => both,
        Err(error) => {
            tracing::warn!(%error, "an upgraded connection was not handed over");
            return;
        }
    };
    let (mut caller, mut backend) = (TokioIo::new(caller), TokioIo::new(backend));
    if let Err(error) = tokio::io::copy_bidirectional(&mut caller, &mut backend).await {
        tracing::debug!(%error, "a tunnel ended");
    }
}
