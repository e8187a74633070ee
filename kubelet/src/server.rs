//! The kubelet's own HTTPS server, asked by the API server on behalf of users: logs, exec, attach, port-forward, statistics.
//! Every request is authenticated and authorized by the API server's word (auth.rs) before it is looked at further; connections are
//! limited in number and time (connections.rs).

mod auth;
mod connections;
pub mod logs;
mod metrics;
mod proxy;
mod route;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::ServingTls;
use crate::counters::Place;
use crate::kit::Kit;
use crate::pods::Registry;
use crate::survival;
use crate::worker::{Handle, Snapshot};
use auth::{Auth, Peer};
use connections::{Gate, KNOWN_IDLE, STRANGER_IDLE, Seat};
use route::Route;

type Body = UnsyncBoxBody<Bytes, Infallible>;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {address}; is another kubelet running?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("read the serving certificate, its key or the client CA")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("use the serving certificate")]
    Tls(#[source] rustls::Error),
    #[error("use the client CA")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
    #[error("a server without certificates may listen on loopback only, not on {address}")]
    Plain { address: SocketAddr },
}

/// A server that listens already.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    gate: Gate,
    state: Arc<State>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

struct State {
    kit: Arc<Kit>,
    registry: Registry,
    /// `None` on a plain loopback server, for tests.
    auth: Option<Auth>,
}

/// # Errors
/// If the address is taken or the certificates are not usable.
pub async fn bind(
    address: SocketAddr,
    tls: Option<&ServingTls>,
    kit: Arc<Kit>,
    registry: Registry,
) -> Result<Server, Error> {
    let acceptor = tls.map(acceptor).transpose()?;
    if acceptor.is_none() && !address.ip().is_loopback() {
        return Err(Error::Plain { address });
    }
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let auth = acceptor.as_ref().map(|_| Auth::new(kit.client.clone(), kit.node_name.clone()));
    let gate = Gate::new(kit.counters.clone());
    Ok(Server { listener, tls: acceptor, gate, state: Arc::new(State { kit, registry, auth }) })
}

fn acceptor(tls: &ServingTls) -> Result<TlsAcceptor, Error> {
    let certificates = |pem: &[u8]| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain = certificates(&tls.certificate_chain).map_err(Error::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(&tls.private_key).map_err(Error::Pem)?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&tls.client_ca).map_err(Error::Pem)? {
        roots.add(certificate).map_err(Error::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(Error::ClientCa)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Server {
    /// Serves until shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        loop {
            let (stream, address) = tokio::select! {
                accepted = connections::accept(&self.listener) => accepted,
                () = shutdown.cancelled() => return,
            };
            let seat = Arc::new(self.gate.enter(address));
            let evicted = seat.evicted.clone();
            let serving = converse(stream, self.tls.clone(), self.state.clone(), seat);
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = serving => {}
                    () = evicted.cancelled() => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }
}

async fn converse(stream: tokio::net::TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>, seat: Arc<Seat>) {
    let answer = |peer: Peer, seat: Arc<Seat>| {
        let peer = Arc::new(peer);
        move |request| {
            let (state, peer, seat) = (state.clone(), peer.clone(), seat.clone());
            async move { state.answer_caught(request, &peer, &seat).await }
        }
    };
    let Some(tls) = tls else {
        return connections::serve(stream, KNOWN_IDLE, answer(Peer::none(), seat)).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let peer = Peer::of(stream.get_ref().1);
            let idle = if peer.is_known() { KNOWN_IDLE } else { STRANGER_IDLE };
            if peer.is_known() {
                seat.known();
            }
            connections::serve(stream, idle, answer(peer, seat)).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

/// An answer of plain text.
fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(message.into()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(full(bytes));
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl State {
    /// A panic is this request's alone.
    async fn answer_caught(&self, request: Request<Incoming>, peer: &Peer, seat: &Seat) -> Response<Body> {
        let path = request.uri().path().to_owned();
        survival::caught(self.answer(request, peer, seat)).await.unwrap_or_else(|why| {
            self.kit.counters.panicked(Place::Request);
            tracing::error!(path, why, "a request panicked");
            text(StatusCode::INTERNAL_SERVER_ERROR, "internal error; see the kubelet's log\n")
        })
    }

    async fn answer(&self, request: Request<Incoming>, peer: &Peer, seat: &Seat) -> Response<Body> {
        let Some(route) = Route::parse(request.uri().path(), request.uri().query()) else {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        if let Some(auth) = &self.auth
            && let Err(refused) = auth.check(&request, peer, route.subresource()).await
        {
            return text(refused.status(), format!("{refused}\n"));
        }
        seat.known();
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are served here\n");
        }
        match route {
            Route::Healthz => text(StatusCode::OK, "ok"),
            Route::Pods => self.pods(),
            Route::Logs { namespace, pod, container, previous, options } => {
                self.logs(&namespace, &pod, &container, previous, options)
            }
            Route::Exec { namespace, pod, container, exec } => match self.running(&namespace, &pod, &container) {
                Ok(id) => proxy::exec(&self.kit.runtime, request, id, exec).await,
                Err(response) => *response,
            },
            Route::Attach { namespace, pod, container, attach } => match self.running(&namespace, &pod, &container) {
                Ok(id) => proxy::attach(&self.kit.runtime, request, id, attach).await,
                Err(response) => *response,
            },
            Route::PortForward { namespace, pod, ports } => match self.find(&namespace, &pod) {
                Ok(handle) => {
                    let sandbox = handle.snapshot.borrow().sandbox.clone();
                    match sandbox.filter(|s| s.ready) {
                        Some(sandbox) => proxy::port_forward(&self.kit.runtime, request, sandbox.id, ports).await,
                        None => text(StatusCode::NOT_FOUND, format!("pod {namespace}/{pod} has no running sandbox\n")),
                    }
                }
                Err(response) => *response,
            },
            Route::Summary => json(&metrics::summary(&self.kit, &self.registry).await),
            Route::ResourceMetrics => text(StatusCode::OK, metrics::resource(&self.kit, &self.registry).await),
            Route::CadvisorMetrics => text(StatusCode::OK, metrics::cadvisor(&self.kit, &self.registry).await),
            Route::ProbeMetrics => text(StatusCode::OK, self.kit.counters.probes_text()),
            Route::Metrics => text(StatusCode::OK, metrics::own(&self.registry) + &self.kit.counters.text()),
        }
    }

    fn find(&self, namespace: &str, pod: &str) -> Result<Handle, Box<Response<Body>>> {
        let missing = || {
            Box::new(text(
                StatusCode::NOT_FOUND,
                format!("pod \"{pod}\" not found in namespace \"{namespace}\" on this node\n"),
            ))
        };
        self.registry.find(namespace, pod).ok_or_else(missing)
    }

    /// The id of the running container of a name.
    fn running(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Box<Response<Body>>> {
        let handle = self.find(namespace, pod)?;
        let snapshot = handle.snapshot.borrow();
        let found = snapshot.containers.iter().find(|c| c.name == container && c.is_running());
        let missing = || Box::new(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")\n")));
        found.map(|c| c.id.clone()).ok_or_else(missing)
    }

    fn pods(&self) -> Response<Body> {
        let items: Vec<_> = self
            .registry
            .all()
            .iter()
            .map(|h| {
                let snapshot = h.snapshot.borrow();
                let mut pod = snapshot.pod.object.clone();
                pod.status = Some(snapshot.status.clone());
                pod
            })
            .collect();
        json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
        options: logs::Options,
    ) -> Response<Body> {
        let handle = match self.find(namespace, pod) {
            Ok(handle) => handle,
            Err(response) => return *response,
        };
        let snapshot: Arc<Snapshot> = handle.snapshot.borrow().clone();
        if snapshot.pod.member(container).is_none() {
            return text(StatusCode::NOT_FOUND, format!("container {container} is not valid for pod {pod}\n"));
        }
        let mine: Vec<_> = snapshot.containers.iter().filter(|c| c.name == container).collect();
        let wanted = if previous {
            mine.iter().filter(|c| c.exit().is_some()).find(|c| Some(&c.id) != mine.first().map(|m| &m.id))
        } else {
            mine.first()
        };
        let Some(found) = wanted else {
            let message = if previous {
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found\n")
            } else {
                format!(
                    "container \"{container}\" in pod \"{pod}\" is waiting to start: {}\n",
                    waiting(&snapshot, container)
                )
            };
            return text(StatusCode::BAD_REQUEST, message);
        };
        let path =
            self.kit.host.log_dir(&snapshot.pod).join(crate::container_config::log_path(container, found.attempt));
        let (alive, running) = watch::channel(found.is_alive());
        tokio::spawn(follow_state(handle, found.id.clone(), alive));
        stream(path, options, running)
    }
}

fn waiting(snapshot: &Snapshot, container: &str) -> String {
    let status = &snapshot.status;
    let mut all = [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
    let found = all.find(|s| s.name == container).and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let reason = found.unwrap_or_else(|| "ContainerCreating".into());
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image".into(),
        _ => reason,
    }
}

/// Keeps `alive` true for as long as the container lives.
async fn follow_state(mut handle: Handle, id: String, alive: watch::Sender<bool>) {
    loop {
        let living = handle.snapshot.borrow_and_update().containers.iter().any(|c| c.id == id && c.is_alive());
        alive.send_replace(living);
        if !living {
            return alive.closed().await;
        }
        tokio::select! {
            changed = handle.snapshot.changed() => if changed.is_err() {
                alive.send_replace(false);
                return alive.closed().await;
            },
            () = alive.closed() => return,
        }
    }
}

fn stream(path: std::path::PathBuf, options: logs::Options, running: watch::Receiver<bool>) -> Response<Body> {
    use futures::StreamExt;
    let (sender, receiver) = mpsc::channel::<Bytes>(logs::CHUNKS_MAX);
    tokio::spawn(async move {
        let failed = sender.clone();
        if let Err(error) = logs::send(&path, &options, running, sender).await {
            // Told where the reader sees it; one that has gone away does not mind.
            let _ = failed.send(Bytes::from(format!("failed to read the log: {error}\n"))).await;
        }
    });
    let frames =
        tokio_stream::wrappers::ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    response
}
