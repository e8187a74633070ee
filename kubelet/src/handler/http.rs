//! HTTP, TCP and gRPC questions over the network. Certificates are not checked, as upstream: a probe asks whether somebody
//! answers, not who.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

use super::{ANSWER_BYTES_MAX, Error};

/// A local redirect is followed this often.
const REDIRECTS_MAX: usize = 10;

pub(super) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, Error> {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Error::Failed(format!("dial tcp {address}: connect: {}", plain(&error)))),
        Err(_) => Err(Error::Failed(format!("dial tcp {address}: i/o timeout"))),
    }
}

/// `connection refused`, not `Connection refused (os error 111)`.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

pub(super) async fn get(action: &HTTPGetAction, host: &str, port: u16, timeout: Duration) -> Result<(), Error> {
    let https = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let scheme = if https { "https" } else { "http" };
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let mut path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let base = format!("{scheme}://{shown}:{port}");
    let late =
        format!("Get \"{base}{path}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    let ask = async {
        for _ in 0..=REDIRECTS_MAX {
            let (status, location, body) = once(action, host, port, https, &path).await?;
            let local =
                location.as_deref().filter(|_| status.is_redirection()).map(|l| l.strip_prefix(&base).unwrap_or(l));
            match local {
                Some(next) if next.starts_with('/') => next.clone_into(&mut path),
                _ if status.is_success() || status.is_redirection() => return Ok(()),
                _ => {
                    tracing::trace!(body, "probe answer");
                    return Err(Error::Failed(format!("HTTP probe failed with statuscode: {}", status.as_u16())));
                }
            }
        }
        Err(Error::Failed(format!("Get \"{base}{path}\": stopped after {REDIRECTS_MAX} redirects")))
    };
    let answer = tokio::time::timeout(timeout, ask).await;
    answer.unwrap_or(Err(Error::Failed(late)))
}

type Answer = (http::StatusCode, Option<String>, String);

async fn once(action: &HTTPGetAction, host: &str, port: u16, https: bool, path: &str) -> Result<Answer, Error> {
    let url = format!("{}://{host}:{port}{path}", if https { "https" } else { "http" });
    let failed = |what: &dyn std::fmt::Display| Error::Failed(format!("Get \"{url}\": {what}"));
    let stream = connect(host, port, Duration::from_secs(3600)).await.map_err(|e| failed(&e))?;
    let mut request = http::Request::builder().method("GET").uri(path);
    let mut named = std::collections::BTreeSet::new();
    for header in action.http_headers.iter().flatten() {
        named.insert(header.name.to_lowercase());
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [("user-agent", "kube-probe/1.36"), ("accept", "*/*"), ("connection", "close")] {
        if !named.contains(name) {
            request = request.header(name, value);
        }
    }
    if !named.contains("host") {
        request = request.header("host", format!("{host}:{port}"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    let response = if https {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(&e))?;
        let tls = tokio_rustls::TlsConnector::from(unchecked()?);
        let stream = tls.connect(name, stream).await.map_err(|e| failed(&e))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    };
    response.map_err(|e| failed(&e))
}

async fn exchange<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<Answer, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut response = sender.send_request(request).await?;
    let location = response.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        let Some(Ok(frame)) = response.frame().await else { break };
        body.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
    }
    drop(task);
    Ok((response.status(), location, String::from_utf8_lossy(&body).into_owned()))
}

fn unchecked() -> Result<Arc<rustls::ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Anyone(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Failed(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Accepts every certificate.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `grpc.health.v1.Health/Check`, the two messages of it by hand: a string in field 1, an enum in field 1.
pub(super) async fn grpc_health(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), Error> {
    let failed = |what: String| Error::Failed(format!("service unhealthy ({what})"));
    let ask = async {
        let stream = connect(host, port, timeout).await?;
        let executor = hyper_util::rt::TokioExecutor::new();
        let handshake = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| failed(e.to_string()))?;
        let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        let mut message = Vec::new();
        if !service.is_empty() {
            let length = u8::try_from(service.len()).ok().filter(|l| *l < 128);
            message.extend([0x0a, length.ok_or_else(|| failed("the service's name is too long".into()))?]);
            message.extend(service.as_bytes());
        }
        // gRPC over HTTP/2: one byte of flags, four of length.
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(u8::MAX)];
        frame.extend(message);
        let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(http_body_util::Full::new(Bytes::from(frame)))
            .map_err(|e| failed(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| failed(e.to_string()))?;
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|e| failed(e.to_string()))?;
        let status =
            body.trailers().and_then(|t| t.get("grpc-status")).and_then(|v| v.to_str().ok()).unwrap_or("0").to_owned();
        let bytes = body.to_bytes();
        drop(task);
        // SERVING is 1.
        match (status.as_str(), bytes.get(5..)) {
            ("0", Some([0x08, 1, ..])) => Ok(()),
            ("0", _) => Err(failed("responded with \"NOT_SERVING\"".into())),
            (code, _) => Err(failed(format!("rpc error: code = {code}"))),
        }
    };
    let answer = tokio::time::timeout(timeout, ask).await;
    answer.unwrap_or_else(|_| {
        Err(Error::Failed(format!("timeout: failed to connect service \"{host}:{port}\" within {timeout:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that answers each connection with the next text.
    async fn serve(answers: &'static [&'static str]) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let _ = stream.read(&mut buffer).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    async fn check(answers: &'static [&'static str], expect: Result<(), &str>) {
        let port = serve(answers).await;
        let action = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..HTTPGetAction::default() };
        let got = get(&action, "127.0.0.1", port, Duration::from_secs(5)).await;
        match (got, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (got, expect) => panic!("{got:?} instead of {expect:?}"),
        }
    }

    #[tokio::test]
    async fn answers_are_judged_by_status() {
        check(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], Ok(())).await;
        check(&["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"], Err("HTTP probe failed with statuscode: 500")).await;
        const MOVED: &[&str] = &[
            "HTTP/1.1 302 Found\r\nlocation: /next\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
        ];
        check(MOVED, Err("statuscode: 404")).await;
        check(&["HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/x\r\ncontent-length: 0\r\n\r\n"], Ok(())).await;
        check(&["garbage"], Err("Get \"http://127.0.0.1")).await;
    }

    #[tokio::test]
    async fn nobody_there_and_nobody_answering() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let action = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..HTTPGetAction::default() };
        let late = get(&action, "127.0.0.1", port, Duration::from_millis(50)).await.unwrap_err();
        assert!(late.to_string().contains("context deadline exceeded"), "{late}");
        drop(listener);
        let refused = connect("127.0.0.1", port, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
