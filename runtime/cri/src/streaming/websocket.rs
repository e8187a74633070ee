//! WebSocket sessions: `v5.channel.k8s.io` and older (one byte of channel before each message), and SPDY inside WebSocket.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes, handshake::derive_accept_key};

use super::channels::{Channels, Input, Output, Verdicts};
use super::process::Wanted;
use super::queue::{self, Room};

/// Messages waiting for the socket, each of a chunk at most.
const QUEUE_MESSAGES_MAX: usize = 64;

/// The longest message taken; kubectl sends 32 KiB at once. A longer one ends the session.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// How long a client may take to answer our goodbye before the socket is closed.
const GOODBYE_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// How long the first output waits for the client's first sign of life. kubectl 1.30 to 1.33 reads before it knows its own streams
/// and drops what comes for them (kubernetes/kubernetes#131189); one that has answered a ping knows them.
const FIRST_SIGN_MAX: std::time::Duration = std::time::Duration::from_millis(500);

/// kubectl's name for SPDY frames as the payload of WebSocket messages.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5: the payload is the channel that ends.
const CLOSE: u8 = 255;

/// Subprotocols in the order we like them; the last two are one and the same.
const PROTOCOLS: [&str; 4] = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io", ""];

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What the client offers, first come first; a client that names nothing speaks the oldest.
pub(super) fn offered(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let names = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let names: Vec<String> = names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    if names.is_empty() { vec![String::new()] } else { names }
}

pub(super) fn choose(offered: &[String]) -> Option<&'static str> {
    PROTOCOLS.into_iter().find(|known| offered.iter().any(|name| name == known))
}

/// The answer to `Sec-WebSocket-Key` (RFC 6455, section 4.2.2).
pub(super) fn accept_key(headers: &HeaderMap) -> Option<String> {
    headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()))
}

pub(super) async fn open(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_write_buffer_size(MESSAGE_BYTES_MAX);
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

/// Both directions of a socket by channel; `inputs` are those that the client may send on.
pub(super) fn split(socket: Socket, inputs: &[u8]) -> (HashMap<u8, Input>, mpsc::Sender<Message>) {
    let (mut sink, mut stream) = socket.split();
    let (messages, mut outgoing) = mpsc::channel::<Message>(QUEUE_MESSAGES_MAX);
    let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
    let room = Room::new();
    for channel in inputs {
        let (sender, receiver) = room.channel();
        senders.insert(*channel, sender);
        receivers.insert(*channel, Input::WebSocket(receiver));
    }
    tokio::spawn(async move {
        let (shows_life, lives) = oneshot::channel();
        let reading = tokio::spawn(async move {
            let mut shows_life = Some(shows_life);
            while let Some(Ok(message)) = stream.next().await {
                if let Some(first) = shows_life.take() {
                    let _nobody_waits = first.send(());
                }
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Text(text) => Bytes::from(text),
                    Message::Close(_) => return,
                    _ => continue,
                };
                route(&mut senders, data).await;
            }
        });
        if sink.send(Message::Ping(Bytes::new())).await.is_ok() {
            let _anyway = tokio::time::timeout(FIRST_SIGN_MAX, lives).await;
        }
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                break;
            }
        }
        // RFC 6455, section 7.1.1: say goodbye, then let the client close.
        let _ = sink.send(goodbye()).await;
        let reader = reading.abort_handle();
        if tokio::time::timeout(GOODBYE_MAX, reading).await.is_err() {
            // Its half of the socket with it: clients that read only when the socket tells them to, as Python's does, get
            // what they have buffered once it closes.
            reader.abort();
        }
    });
    (receivers, messages)
}

/// kubectl takes a close without a code for a broken connection (gorilla/websocket calls it 1005).
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

async fn route(senders: &mut HashMap<u8, queue::Sender>, mut data: Bytes) {
    if data.is_empty() {
        return;
    }
    let channel = data.split_to(1)[0];
    if channel == CLOSE {
        if let Some(ended) = data.first() {
            senders.remove(ended);
        }
        return;
    }
    if let Some(sender) = senders.get(&channel)
        && !data.is_empty()
        && !sender.send(data).await
    {
        senders.remove(&channel);
    }
}

/// A remote command's channels over a socket.
pub(super) async fn remote_command(socket: Socket, protocol: &str, wanted: Wanted) -> Channels {
    let mut inputs = Vec::new();
    if wanted.stdin {
        inputs.push(STDIN);
    }
    if wanted.terminal {
        inputs.push(RESIZE);
    }
    let (mut receivers, messages) = split(socket, &inputs);
    let output = |channel: u8| Output::WebSocket { channel, messages: messages.clone() };
    let channels = Channels {
        stdin: receivers.remove(&STDIN),
        stdout: wanted.stdout.then(|| output(STDOUT)),
        stderr: wanted.stderr.then(|| output(STDERR)),
        resize: receivers.remove(&RESIZE),
        error: Some(output(ERROR)),
        verdicts: if protocol.starts_with('v') { Verdicts::Json } else { Verdicts::Text },
    };
    // Clients take the first message, an empty one, for "connected".
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = output(first).write(Bytes::new()).await;
    channels
}

/// The byte stream inside a tunnel, for the SPDY room. One task per direction: neither waits for the other.
pub(super) fn tunnel(socket: Socket) -> DuplexStream {
    let (mine, theirs) = tokio::io::duplex(64 * 1024);
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(theirs);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) if writer.write_all(&data).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut chunk = vec![0; 32 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut chunk).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&chunk[..count]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    });
    mine
}
