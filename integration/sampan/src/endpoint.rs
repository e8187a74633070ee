//! The way to a CRI server's unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use nix::sys::socket::SockType;
use runtime_linux::local_socket;
use tonic::transport::{Channel, Endpoint};

/// Connects at once, so that a missing server is this call's error. Paths beyond 107 bytes go through the directory's
/// descriptor, as unix(7) leaves no room for them.
pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let shown = socket.display().to_string();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { open(socket).await.map(TokioIo::new) }
    });
    // The address is never resolved; gRPC wants one.
    let channel = Endpoint::from_static("http://cri").connect_with_connector(connector).await;
    channel.with_context(|| format!("connect to the container runtime at {shown}"))
}

pub(crate) async fn open(socket: PathBuf) -> std::io::Result<tokio::net::UnixStream> {
    let connected = tokio::task::spawn_blocking(move || local_socket::connect_to(&socket, SockType::Stream)).await?;
    let stream = std::os::unix::net::UnixStream::from(connected?);
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}
