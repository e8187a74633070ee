//! The server's door: accepts TLS connections and serves them, each in a task of its own.
//!
//!     accept --place--> handshake (deadline) --ALPN--> HTTP/1.1 or HTTP/2 --idle, shed, server ending--> closed
//!
//! Invariant: nothing is waited for without a deadline; what happens on one connection stays there.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::TaskTracker;

use crate::{
    body,
    config::Config,
    connections::{Connection, Place, Placed},
    dispatch::{self, Peer},
    kernel::Kernel,
    tls::{self, TlsError},
};

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Request headers that take longer are given up; on HTTP/1.1 the same holds for the time between two requests.
const HEADERS_MAX: Duration = Duration::from_secs(30);
/// An HTTP/2 peer is asked this often whether it is still there, and has as long to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A connection that idled for too long gets this long to take note.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// Concurrent requests on one HTTP/2 connection; as upstream.
const STREAMS_MAX: u32 = 100;
/// HTTP/2 streams that a peer reset before they were looked at; beyond that it is resetting for its own sake (CVE-2023-44487).
const RESETS_MAX: usize = 20;
/// Bytes of the headers of one request.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Bytes that are buffered for a peer that does not read: per stream on HTTP/2, per connection on HTTP/1.1.
const SEND_BYTES_MAX: usize = 128 << 10;
/// After an accept that failed, for want of descriptors say: others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A failing accept is told to the log this often.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn acceptor(config: &Config) -> Result<TlsAcceptor, TlsError> {
    let failed = |what: &'static str| move |source| TlsError::Tls { what, source };
    let roots = Arc::new(tls::roots(&config.client_ca, "the client CA")?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Tls { what: "the client CA", source: rustls::Error::General(error.to_string()) })?;
    let mut server = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(failed("the server"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            tls::certificates(&config.tls_certificate, "the serving certificate")?,
            tls::private_key(&config.tls_key, "the serving key")?,
        )
        .map_err(failed("the serving certificate"))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// Accepts until the server ends; then waits for the connections that are open.
pub(crate) async fn run(kernel: Arc<Kernel>, listener: Arc<TcpListener>, acceptor: TlsAcceptor) {
    let open = TaskTracker::new();
    let mut told: Option<Instant> = None;
    let mut untold: u64 = 0;
    loop {
        let accepted = tokio::select! {
            () = kernel.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                untold = untold.saturating_add(1);
                if told.is_none_or(|at| at.elapsed() >= ACCEPT_LOG_EVERY) {
                    tracing::warn!(%error, times = untold, "could not accept connections");
                    (told, untold) = (Some(Instant::now()), 0);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a place it is closed at once: a client tries again, and the descriptor is free for who is known.
        let Some(place) = kernel.connections.admit(Instant::now()) else { continue };
        open.spawn(connection(Arc::clone(&kernel), tcp, address, acceptor.clone(), place));
    }
    open.close();
    open.wait().await;
}

async fn connection(kernel: Arc<Kernel>, tcp: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, place: Place) {
    let state = Arc::clone(&place.connection);
    let shaking = tokio::time::timeout(HANDSHAKE_MAX, handshake(tcp, acceptor));
    let tls = tokio::select! {
        () = state.closing.cancelled() => return,
        () = kernel.shutdown.cancelled() => return,
        outcome = shaking => match outcome {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        },
    };
    let certificate: Option<Arc<[u8]>> =
        tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|der| Arc::from(der.as_ref()));
    if certificate.is_some() {
        // Verified by the handshake.
        state.set_known();
    }
    let speaks_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
    let peer = Peer::Tls { certificate, connection: Arc::clone(&state) };
    serve(kernel, Placed::new(tls, place), speaks_h2, peer, &state, address).await;
}

async fn serve(
    kernel: Arc<Kernel>,
    stream: Placed<TlsStream<TcpStream>>,
    speaks_h2: bool,
    peer: Peer,
    state: &Arc<Connection>,
    address: SocketAddr,
) {
    let shutdown = kernel.shutdown.clone();
    let service = service_fn(|request: Request<Incoming>| {
        let (kernel, peer) = (Arc::clone(&kernel), peer.clone());
        let busy = state.begin();
        async move {
            let response = dispatch::serve(kernel, peer, request.map(body::boxed)).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                // It is no longer a connection of requests: it lasts as long as its stream.
                std::mem::forget(busy);
                return Ok::<_, Infallible>(response);
            }
            // The request lasts until its answer is written.
            Ok(response.map(|body| {
                let held = body.map_frame(move |frame| {
                    let _ = &busy;
                    frame
                });
                held.boxed_unsync()
            }))
        }
    });
    let builder = builder(speaks_h2);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut idle = pin!(tokio::time::sleep_until(state.idle_until(Instant::now())));
    let mut leaving = false;
    loop {
        tokio::select! {
            outcome = connection.as_mut() => {
                if let Err(error) = outcome {
                    tracing::debug!(%address, %error, "a connection ended");
                }
                return;
            }
            () = state.closing.cancelled() => return,
            () = shutdown.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = idle.as_mut() => {
                let now = Instant::now();
                let until = state.idle_until(now);
                if until > now {
                    idle.as_mut().reset(until);
                } else if leaving {
                    return;
                } else {
                    // Says that it goes: who is about to ask can tell that nothing was begun.
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                    idle.as_mut().reset(now.checked_add(GOODBYE_MAX).unwrap_or(now));
                }
            }
        }
    }
}

/// One protocol, as the handshake agreed: nothing waits for a first byte that tells.
fn builder(speaks_h2: bool) -> auto::Builder<TokioExecutor> {
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if speaks_h2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX).max_buf_size(SEND_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .keep_alive_interval(Some(PING_EVERY))
        .keep_alive_timeout(PING_EVERY);
    builder
}

async fn handshake(tcp: TcpStream, acceptor: TlsAcceptor) -> std::io::Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    acceptor.accept(tcp).await
}
