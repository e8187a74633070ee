//! Port-forward: each pair of streams is one connection inside the pod's network namespace.
//!
//! The connection is made by a thread that joins the namespace and ends; only the socket comes back. A pod in the host's
//! network is reached without it. Half-close goes through in both directions.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as BlockingTcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use runtime_linux::namespace::{self, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::channels::{Input, Output};
use super::spdy;
use super::websocket::{self, Socket};
use crate::node::Sandbox;

/// A port on the pod's own loopback answers at once or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Bytes read from the pod at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// Half pairs waiting for their other half, on one connection.
const UNPAIRED_MAX: usize = 200;

/// Serves a SPDY connection, tunnelled or not: `error` and `data` streams in pairs, each naming its port.
pub(super) async fn serve_spdy<S>(socket: S, sandbox: Arc<Sandbox>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = spdy::Connection::serve(socket);
    let mut halves: HashMap<String, spdy::Stream> = HashMap::new();
    let mut pairs = tokio::task::JoinSet::new();
    while let Some(stream) = connection.accept().await {
        while pairs.try_join_next().is_some() {}
        let header = |name: &str| stream.headers.get(name).map(String::as_str).unwrap_or_default().to_owned();
        let (kind, request, port) = (header("streamtype"), header("requestid"), header("port"));
        let Ok(port) = port.parse::<u16>() else {
            let _ = stream.writer.reset().await;
            continue;
        };
        let key = format!("{port}/{request}");
        let (error, data) = match (kind.as_str(), halves.remove(&key)) {
            ("data" | "error", None) if halves.len() < UNPAIRED_MAX => {
                halves.insert(key, stream);
                continue;
            }
            ("data", Some(other)) if other.headers["streamtype"] == "error" => (other, stream),
            ("error", Some(other)) if other.headers["streamtype"] == "data" => (stream, other),
            _ => {
                let _ = stream.writer.reset().await;
                continue;
            }
        };
        let sandbox = Arc::clone(&sandbox);
        pairs.spawn(async move {
            let output = Output::Spdy(data.writer);
            forward(&sandbox, port, Input::Spdy(data.reader), output, Output::Spdy(error.writer)).await;
        });
    }
    while pairs.join_next().await.is_some() {}
}

/// Serves `v4.channel.k8s.io`: for port number n of the request, channel 2n is data and 2n+1 error, each begun with the port.
pub(super) async fn serve_channels(socket: Socket, sandbox: Arc<Sandbox>, ports: Vec<u16>) {
    let channel = |index: usize| u8::try_from(2 * index).ok().filter(|channel| *channel < 254);
    let data: Vec<u8> = (0..ports.len()).map_while(channel).collect();
    let (mut inputs, messages) = websocket::split(socket, &data);
    let mut pairs = tokio::task::JoinSet::new();
    for (port, channel) in ports.into_iter().zip(data) {
        let Some(input) = inputs.remove(&channel) else { continue };
        let output = Output::WebSocket { channel, messages: messages.clone() };
        let error = Output::WebSocket { channel: channel + 1, messages: messages.clone() };
        for begin in [&output, &error] {
            let _ = begin.write(Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        let sandbox = Arc::clone(&sandbox);
        pairs.spawn(async move { forward(&sandbox, port, input, output, error).await });
    }
    drop(messages);
    while pairs.join_next().await.is_some() {}
}

/// One connection, until both directions have ended.
async fn forward(sandbox: &Sandbox, port: u16, mut input: Input, output: Output, error: Output) {
    let host_network = sandbox.read(|record, _| record.network.is_none());
    let netns = (!host_network).then(|| sandbox.dir.join("ns/net"));
    match connect(netns, port).await {
        Ok(socket) => {
            let (mut from_pod, mut to_pod) = socket.into_split();
            let up = async {
                while let Some(data) = input.read().await {
                    if to_pod.write_all(&data).await.is_err() {
                        return;
                    }
                }
                let _ = to_pod.shutdown().await;
            };
            let down = async {
                loop {
                    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
                    match from_pod.read_buf(&mut chunk).await {
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    }
                    if output.write(chunk.freeze()).await.is_err() {
                        return;
                    }
                }
                output.finish().await;
            };
            tokio::join!(up, down);
        }
        Err(source) => {
            let words = format!("failed to connect to port {port} in pod sandbox {}: {source}", sandbox.id);
            let _ = error.write(Bytes::from(words)).await;
            output.finish().await;
        }
    }
    error.finish().await;
}

/// A connection to the pod's own loopback, IPv4 first.
async fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: it never comes back to the host's namespace, it ends.
    std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        let _ = sender.send(connect_inside(netns, port));
    })?;
    let socket = receiver.await.unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")))?;
    TcpStream::from_std(socket)
}

fn connect_inside(netns: Option<PathBuf>, port: u16) -> io::Result<BlockingTcpStream> {
    if let Some(path) = netns {
        let fd = namespace::open_path(&path)?;
        namespace::join(&fd, Kind::Network.flag())?;
    }
    let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    let mut first_error = None;
    for address in addresses {
        match BlockingTcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                return Ok(socket);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}
