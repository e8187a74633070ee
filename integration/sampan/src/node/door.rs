//! The API server's door inside the daemon: clients keep it while the server behind it is started again.

use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use control_plane_apiserver::{ApiServer, Body, BoxError, Config, Error, User};
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, thiserror::Error)]
#[error("the API server is being started again")]
struct Closed;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("start the API server")]
    Start(#[source] Error),
    #[error("it ended by itself; the log says why")]
    Ended,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    server: Arc<RwLock<Option<Arc<ApiServer>>>>,
    is_open: watch::Sender<bool>,
}

impl Default for Door {
    fn default() -> Self {
        Self { server: Arc::default(), is_open: watch::Sender::new(false) }
    }
}

impl Door {
    /// One start of the server, until `shutdown` or until it ends by itself.
    pub(crate) async fn serve(self, config: Config, shutdown: CancellationToken) -> Result<(), ServerError> {
        let server = Arc::new(ApiServer::start(config).await.map_err(ServerError::Start)?);
        let ended = server.stopped();
        self.put(Some(Arc::clone(&server)));
        let _closed_with_it = Closing(&self);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = ended.cancelled() => {}
        }
        self.put(None);
        // Requests hold what is behind the server, never the server.
        if let Some(server) = Arc::into_inner(server) {
            server.stop().await;
        }
        if shutdown.is_cancelled() { Ok(()) } else { Err(ServerError::Ended) }
    }

    /// Returns when requests are answered.
    pub(crate) async fn opened(&self) {
        // The sender lives in this door.
        let mut is_open = self.is_open.subscribe();
        let _never_closed = is_open.wait_for(|is_open| *is_open).await;
    }

    /// `agent` is what managed fields show of the part.
    pub(crate) fn client(&self, agent: &'static str, user: &str, groups: &[&str]) -> kube::Client {
        kube::Client::new(Caller { door: self.clone(), user: User::new(user, groups), agent }, "default")
    }

    fn put(&self, server: Option<Arc<ApiServer>>) {
        let is_open = server.is_some();
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = server;
        self.is_open.send_replace(is_open);
    }

    fn get(&self) -> Option<Arc<ApiServer>> {
        self.server.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A panic must not leave a server in the door that nobody serves any more.
struct Closing<'a>(&'a Door);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.put(None);
    }
}

/// A part as a client.
#[derive(Clone, Debug)]
struct Caller {
    door: Door,
    user: User,
    agent: &'static str,
}

impl<B> tower::Service<Request<B>> for Caller
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
        match self.door.get() {
            Some(server) => server.local_service(self.user.clone()).named(self.agent).call(request),
            None => Box::pin(std::future::ready(Err(Closed.into()))),
        }
    }
}
