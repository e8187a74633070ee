//! The server as a whole: opens the store, fills the cache, bootstraps, accepts connections, and ends in order.
//!
//!     start: store -> cache -> follow -> bootstrap -> listen;  stop: no new connections -> watches end -> requests finish (or the
//!     deadline passes) -> the store closes
//!
//! Invariant: nothing is answered from a cache that has not caught up with the store once.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use control_plane_store::{Revision, Sqlite, SqliteConfig, Store};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    allocate::Allocators,
    authn::{User, key, token::Tokens},
    authz::Authorizer,
    body::{self, Body, BoxError},
    bootstrap,
    cache::{self, Cache},
    config::Config,
    connections::Connections,
    dispatch::{self, Peer},
    inflight::Inflight,
    kernel::Kernel,
    listener,
    metrics::Metrics,
    proxy::KubeletClient,
    status::chain,
    tls::TlsError,
    walls::Walls,
};

/// Requests get this long to finish when the server ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How often the age of the history is looked at.
const COMPACT_EVERY: Duration = Duration::from_secs(60);

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
        let acceptor = listener::acceptor(&config)?;
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
            let following = Walls::default();
            let followed = following.around("task", "watch cache", follower.run(token.clone())).await;
            // A server that cannot follow its store must not answer: its caller starts it again.
            match followed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = %chain(&error), "the watch cache lost the store; the server ends");
                    token.cancel();
                }
                Err(error) => {
                    tracing::error!(%error, "the watch cache cannot go on; the server ends");
                    token.cancel();
                }
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
            connections: Connections::within(descriptors()),
            inflight: Arc::new(Inflight::default()),
            walls: Walls::default(),
            ready: AtomicBool::new(false),
            shutdown: shutdown.clone(),
            config,
        });
        bootstrap::run(&kernel).await?;
        kernel.ready.store(true, Ordering::Release);
        let listener = Arc::new(listener);
        keep(&tasks, &kernel, "listener", move |kernel| listener::run(kernel, Arc::clone(&listener), acceptor.clone()));
        keep(&tasks, &kernel, "compaction", compact);
        keep(&tasks, &kernel, "bootstrap", bootstrap::keep);
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

/// Runs a part of the server as long as it runs: a panic in it begins it anew.
fn keep<F>(
    tasks: &TaskTracker,
    kernel: &Arc<Kernel>,
    name: &'static str,
    part: impl Fn(Arc<Kernel>) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let kernel = Arc::clone(kernel);
    tasks.spawn(async move {
        let again = || part(Arc::clone(&kernel));
        kernel.walls.keep(name, &kernel.shutdown, again).await;
    });
}

/// How many files this process may open; few when it cannot be told.
fn descriptors() -> usize {
    const UNKNOWN: usize = 1024;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft {
        Some("unlimited") => usize::MAX,
        soft => soft.and_then(|number| number.parse().ok()).unwrap_or(UNKNOWN),
    }
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
