//! Import and export of images, for which CRI has no call: one JSON line asks, one JSON line answers, on a unix socket.
//!
//! The image store belongs to the process that runs the container runtime; everybody else asks it here. Paths are absolute
//! and are opened by the daemon, which is root as the caller must be: the socket is root's alone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use runtime_images::{ExportFormat, Images, Reference};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A request is a path and some names; longer ones are refused.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb")]
pub(crate) enum Request {
    /// An OCI layout or docker-archive; `name` names the image if the archive holds exactly one.
    Import { path: PathBuf, name: Option<String> },
    /// One tar file that is both an OCI layout and a docker-archive.
    Export { path: PathBuf, names: Vec<String> },
}

/// Names of the images, or what went wrong.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done { images: Vec<String> },
    Failed { why: String },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Serves until `shutdown`.
pub(crate) async fn serve(path: PathBuf, images: Images, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = listen(&path).map_err(|source| Error::Listen { path: path.clone(), source })?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let images = images.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &images).await {
                        warn!(%error, "a client of the image door went away");
                    }
                });
            }
            Err(error) => warn!(%error, "could not accept a client of the image door"),
        }
    }
    let _gone_already = std::fs::remove_file(&path);
    Ok(())
}

/// The container runtime's own socket tells whether another daemon runs; what lies here then is stale.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let descriptor = runtime_linux::local_socket::listen_at(path, nix::sys::socket::SockType::Stream)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let listener = std::os::unix::net::UnixListener::from(descriptor);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn answer(stream: UnixStream, images: &Images) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => perform(request, images).await,
        Err(error) => Answer::Failed { why: format!("not a request of the image door: {error}") },
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    writer.write_all(&line).await
}

async fn perform(request: Request, images: &Images) -> Answer {
    let result = match request {
        Request::Import { path, name } => import(&path, name.as_deref(), images).await,
        Request::Export { path, names } => export(&path, &names, images).await,
    };
    match result {
        Ok(images) => Answer::Done { images },
        Err(error) => Answer::Failed { why: format!("{error:#}") },
    }
}

async fn import(path: &Path, name: Option<&str>, images: &Images) -> anyhow::Result<Vec<String>> {
    let reference = name.map(Reference::parse).transpose()?;
    let imported = images.import(path, reference.as_ref()).await?;
    let name_of = |image: runtime_images::Image| image.tags.first().cloned().unwrap_or_else(|| image.id.to_string());
    Ok(imported.into_iter().map(name_of).collect())
}

async fn export(path: &Path, names: &[String], images: &Images) -> anyhow::Result<Vec<String>> {
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    images.export(&wanted, path, ExportFormat::Archive).await?;
    Ok(names.to_vec())
}

/// Asks the daemon behind `socket`.
pub(crate) async fn ask(socket: &Path, request: &Request) -> anyhow::Result<Vec<String>> {
    use anyhow::Context;
    let mut stream = crate::endpoint::open(socket.to_owned()).await.context("connect to the daemon's image door")?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await.context("ask the daemon")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.context("wait for the daemon's answer")?;
    match serde_json::from_str(&answer).context("the daemon ended before it answered")? {
        Answer::Done { images } => Ok(images),
        Answer::Failed { why } => anyhow::bail!(why),
    }
}
