//! The server: state opened, world adopted, two gRPC services and the stream listener.
//!
//! RPCs that touch disk or processes run in the pool; one that has begun is finished even if its caller goes away, and what it was to
//! make for that caller is undone, so no half-made thing is left because somebody lost patience. Looking is answered from memory.

mod authority;
mod image_service;
mod runtime_service;

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use runtime_cri_api::v1::image_service_server::ImageServiceServer;
use runtime_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use runtime_images::Images;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::{debug, info};

use crate::adopt;
use crate::config::Config;
use crate::node::Node;
use crate::private;
use crate::record::{Records, SandboxRecord};
use crate::sandbox::host_ports;
use crate::server::authority::AnyAuthority;
use crate::status::{Error, chain};
use crate::streaming::{self, Streams};

/// A request may carry a large environment; kubelets send up to this.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Items in one message of a streamed list.
const PIECE_ITEMS: usize = 100;

/// Usable over a socket ([`run`]), over any channel ([`Server::routes`]), or directly through the service traits.
#[derive(Clone, Debug)]
pub struct Server {
    node: Arc<Node>,
    /// Streams are served as long as any clone lives.
    _streams: Arc<DropGuard>,
}

impl Server {
    /// Opens the stores, takes over every pod there is, and listens for streams.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let images = open_images(&config).await?;
        Self::with_images(config, images).await
    }

    /// Like [`Server::new`] over a store that is open already: one process has it, and only once.
    pub async fn with_images(config: Config, images: Images) -> Result<Self, Error> {
        let pods = config.run_dir.join("pods");
        for dir in [&config.run_dir, &pods] {
            private::directory(dir).map_err(Error::io("make", dir))?;
        }
        let records = Records::open(&config.data_dir)?;
        let known = records.load::<SandboxRecord>()?;
        let taken: HashSet<u16> = known.records.iter().flat_map(host_ports).collect();
        let listener = streaming::listener::open(&config.streams, &taken).await?;
        let streams = Streams::new(listener.place());
        let node = Arc::new(Node::new(config, images, records, streams)?);
        adopt::adopt(&node, known).await?;
        let stop = CancellationToken::new();
        tokio::spawn(streaming::serve(listener, Arc::clone(&node), stop.clone()));
        Ok(Self { node, _streams: Arc::new(stop.drop_guard()) })
    }

    /// The image store that the server uses.
    pub fn images(&self) -> &Images {
        &self.node.images
    }

    /// Both services, to be served over whatever carries HTTP/2.
    pub fn routes(&self) -> Routes {
        let runtime = RuntimeServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let image = ImageServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Routes::new(runtime).add_service(image)
    }

    pub(crate) fn node(&self) -> Arc<Node> {
        Arc::clone(&self.node)
    }

    /// An answer from memory.
    fn answer<Q, A>(
        &self,
        request: Request<Q>,
        answer: impl FnOnce(&Node, Q) -> Result<A, Error>,
    ) -> Result<Response<A>, Status> {
        self.told(std::any::type_name::<Q>(), answer(&self.node, request.into_inner()))
    }

    /// An answer that takes disk, processes or locks.
    async fn work<Q: Send + 'static, A: Send + 'static>(
        &self,
        request: Request<Q>,
        work: impl FnOnce(&Arc<Node>, Q) -> Result<A, Error> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        let node = self.node();
        let request = request.into_inner();
        let outcome = self.node.pool.run(move || work(&node, request)).await;
        self.told(std::any::type_name::<Q>(), outcome)
    }

    #[expect(clippy::unused_self, reason = "reads as the last step of an answer")]
    fn told<A>(&self, request: &'static str, outcome: Result<A, Error>) -> Result<Response<A>, Status> {
        outcome.map(Response::new).map_err(|error| {
            debug!(request, error = %chain(&error), "refused");
            Status::from(error)
        })
    }
}

async fn open_images(config: &Config) -> Result<Images, Error> {
    let config = config.images.clone();
    Ok(tokio::task::spawn_blocking(move || Images::open(config)).await.map_err(|_| Error::Panicked)??)
}

/// A list in messages of a bearable size; an empty one is no message.
fn pieces<T: Send + 'static, M: Send + 'static>(
    all: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>> {
    let mut rest = all.into_iter();
    let messages = std::iter::from_fn(move || {
        let piece: Vec<T> = rest.by_ref().take(PIECE_ITEMS).collect();
        (!piece.is_empty()).then(|| Ok(message(piece)))
    });
    Box::pin(futures::stream::iter(messages))
}

/// Serves on the configured socket until told to stop. Containers go on; a later run takes them over.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let images = open_images(&config).await?;
    run_with_images(config, images, shutdown).await
}

/// Like [`run`] over a store that is open already, for a process that has other uses for it.
pub async fn run_with_images(config: Config, images: Images, shutdown: CancellationToken) -> Result<(), Error> {
    let (socket, ready) = (config.socket.clone(), config.ready.clone());
    // Bound before the pods are taken over, so that a second server fails before it touches anything.
    let listener = listen(&socket)?;
    let server = Server::with_images(config, images).await?;
    if let Some(ready) = ready {
        let _ = ready.send(true);
    }
    info!(socket = %socket.display(), "serving CRI v1");
    let serving = tonic::transport::Server::builder()
        .add_routes(server.routes())
        .serve_with_incoming_shutdown(connections(listener), shutdown.cancelled_owned());
    let outcome = serving.await;
    let _ = fs::remove_file(&socket);
    outcome.map_err(|source| Error::Serve { path: socket, source })
}

/// Clients as they come; out of descriptors, those that wait are served when some are free again.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<AnyAuthority<UnixStream>>> {
    futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(AnyAuthority::new(stream)), listener)),
                Err(error) => {
                    tracing::warn!(%error, "client not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Replaces a socket that nobody serves; one that answers is another server's.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |action| Error::io(action, path);
    let dir = path.parent().unwrap_or(Path::new("/"));
    private::directory(dir).map_err(Error::io("make", dir))?;
    // sun_path holds 107 bytes; below /proc/self/fd any directory is short.
    let dir_fd = fs::File::open(dir).map_err(Error::io("open", dir))?;
    let name = path.file_name().unwrap_or_default();
    let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir_fd.as_fd()))).join(name);
    if std::os::unix::net::UnixStream::connect(&short).is_ok() {
        return Err(Error::Busy { path: path.to_owned() });
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&short).map_err(failed("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    Ok(listener)
}
