//! The server as a whole: opens the store, fills the cache, bootstraps, accepts connections, and ends in order.
//!
//!     start: store -> cache -> follow -> bootstrap -> listen;  stop: no new connections -> watches end -> requests finish (or the
//!     deadline passes) -> the store closes
//!
//! Invariant: nothing is answered from a cache that has not caught up with the store once.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use control_plane_store::{Revision, Sqlite, SqliteConfig, Store};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    allocate::Allocators,
    authn::{User, key, token::Tokens},
    authz::Authorizer,
    body::{self, Body, BoxError},
    bootstrap,
    cache::{self, Cache},
    config::Config,
    dispatch::{self, Peer},
    kernel::Kernel,
    metrics::Metrics,
    proxy::KubeletClient,
    status::chain,
    tls::{self, TlsError},
};

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Request headers that take longer are given up.
const HEADERS_MAX: Duration = Duration::from_secs(30);
/// Requests get this long to finish when the server ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How often the age of the history is looked at.
const COMPACT_EVERY: Duration = Duration::from_secs(60);
/// Concurrent requests on one HTTP/2 connection; as upstream.
const STREAMS_MAX: u32 = 250;

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the store")]
    Store(#[from] control_plane_store::Error),
    #[error("load the service-account key")]
    Key(#[from] key::Error),
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    #[error("fill the watch cache")]
    Cache(#[from] cache::Error),
    #[error("listen on {address}; is another server running there? Choose another address or stop that one")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("create what every cluster starts with")]
    Bootstrap(#[from] bootstrap::Error),
}

/// A running API server. Dropping it ends it without waiting; [`ApiServer::stop`] waits.
#[derive(Debug)]
pub struct ApiServer {
    kernel: Arc<Kernel>,
    address: SocketAddr,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl ApiServer {
    /// Starts everything; returns when requests are answered.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&SqliteConfig::new(&config.store))?);
        Self::start_on(config, store).await
    }

    /// As [`Self::start`], on any store.
    pub async fn start_on(mut config: Config, store: Arc<dyn Store>) -> Result<Self, Error> {
        let shutdown = CancellationToken::new();
        let acceptor = acceptor(&config)?;
        let tokens = Tokens {
            key: key::SigningKey::from_pem(&config.service_account_key)?,
            issuer: config.service_account_issuer.clone(),
            audiences: config.audiences.clone(),
            fixed: config.static_tokens.clone(),
        };
        let kubelets = config.kubelet.as_ref().map(KubeletClient::new).transpose()?;
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: listen, source })?;
        if config.advertise.port() == 0 {
            config.advertise.set_port(address.port());
        }
        let cache = Arc::new(Cache::load(Arc::clone(&store)).await?);
        let tasks = TaskTracker::new();
        let follower = Arc::clone(&cache);
        let token = shutdown.clone();
        tasks.spawn(async move {
            if let Err(error) = follower.run(token.clone()).await {
                // A server that cannot follow its store must not answer: its caller starts it again.
                tracing::error!(error = %chain(&error), "the watch cache lost the store; the server ends");
                token.cancel();
            }
        });
        cache.catch_up().await?;
        let allocators = Allocators::new(config.service_cidr, config.node_ports, config.node_ports_first);
        if let Some(services) = cache.of("", "services") {
            allocators.learn(services.snapshot().all().map(|cached| cached.object()));
        }
        let kernel = Arc::new(Kernel {
            authorizer: Authorizer::new(Arc::clone(&cache)),
            cache,
            store,
            tokens,
            allocators,
            kubelets,
            metrics: Metrics::default(),
            ready: AtomicBool::new(false),
            shutdown: shutdown.clone(),
            config,
        });
        bootstrap::run(&kernel).await?;
        kernel.ready.store(true, Ordering::Release);
        tasks.spawn(accept(Arc::clone(&kernel), listener, acceptor));
        tasks.spawn(compact(Arc::clone(&kernel)));
        tasks.spawn(bootstrap::keep(Arc::clone(&kernel)));
        tasks.close();
        tracing::info!(%address, "serving");
        Ok(Self { kernel, address, tasks, shutdown })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cancelled when the server ends, by itself or by [`Self::stop`].
    pub fn stopped(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Ends: no new connections, watches close, requests finish.
    pub async fn stop(self) {
        self.shutdown.cancel();
        if tokio::time::timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests were still running when the server ended");
        }
    }

    /// A client's door inside this process: no socket, but the same authorization, admission and watch, as this user.
    pub fn local_service(&self, user: User) -> LocalService {
        LocalService { kernel: Arc::clone(&self.kernel), user, agent: None }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Runs a server until `shutdown`; tells `ready` its address once it answers.
pub async fn run(
    config: Config,
    ready: Option<tokio::sync::oneshot::Sender<SocketAddr>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let server = ApiServer::start(config).await?;
    if let Some(ready) = ready {
        let _ = ready.send(server.address());
    }
    let own = server.stopped();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = own.cancelled() => {}
    }
    server.stop().await;
    Ok(())
}

/// See [`ApiServer::local_service`]. Made for `kube::Client::new`, and for any other client that is a tower service.
#[derive(Clone, Debug)]
pub struct LocalService {
    kernel: Arc<Kernel>,
    user: User,
    agent: Option<HeaderValue>,
}

impl LocalService {
    /// The user agent of requests that bring none: who is called the manager of the fields that they write.
    #[must_use]
    pub fn named(self, agent: &'static str) -> Self {
        Self { agent: Some(HeaderValue::from_static(agent)), ..self }
    }
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = Peer::Local(self.user.clone());
        let kernel = Arc::clone(&self.kernel);
        let mut request = request.map(body::boxed);
        if let Some(agent) = &self.agent {
            request.headers_mut().entry(header::USER_AGENT).or_insert_with(|| agent.clone());
        }
        Box::pin(async move { Ok(dispatch::serve(kernel, peer, request).await) })
    }
}

fn acceptor(config: &Config) -> Result<TlsAcceptor, TlsError> {
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

async fn accept(kernel: Arc<Kernel>, listener: TcpListener, acceptor: TlsAcceptor) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = kernel.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, say: wait for some to be closed rather than spin.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (kernel, acceptor, watcher) = (Arc::clone(&kernel), acceptor.clone(), graceful.watcher());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, handshake(tcp, acceptor)).await;
            let tls = match handshake {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "TLS handshake failed");
                    return;
                }
                Err(_) => return,
            };
            let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let peer = Peer::Tls { certificate: certificate.map(|der| Arc::from(der.as_ref())) };
            let service = service_fn(move |request: Request<Incoming>| {
                let (kernel, peer) = (Arc::clone(&kernel), peer.clone());
                let request = request.map(body::boxed);
                async move { Ok::<_, Infallible>(dispatch::serve(kernel, peer, request).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .keep_alive_interval(Some(HEADERS_MAX));
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%address, %error, "a connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn handshake(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    acceptor.accept(tcp).await
}

/// Forgets history that is older than configured: the revision seen that long ago.
async fn compact(kernel: Arc<Kernel>) {
    let keep = Duration::from_secs(kernel.config.history_seconds).max(COMPACT_EVERY);
    let slots = usize::try_from(keep.as_secs() / COMPACT_EVERY.as_secs()).unwrap_or(usize::MAX);
    let mut seen: std::collections::VecDeque<Revision> = std::collections::VecDeque::new();
    let mut ticker = tokio::time::interval(COMPACT_EVERY);
    loop {
        tokio::select! {
            () = kernel.shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let now = kernel.cache.applied();
        if seen.len() >= slots
            && let Some(old) = seen.pop_front()
            && old < now
            && let Err(error) = kernel.store.compact(old).await
        {
            tracing::warn!(error = %chain(&error), "could not compact the history; it will be tried again");
        }
        seen.push_back(now);
    }
}
