//! The client side of attach and exec: WebSocket, subprotocol `v5.channel.k8s.io`.
//!
//! Each message begins with a channel: 0 standard input, 1 output, 2 error, 3 the Status that ends it, 4 sizes of the terminal;
//! 255 closes the channel named behind it.

use std::io::Write;

use anyhow::{Context, Result, bail};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use runtime_cri_api::stream::StreamUrl;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_util::either::Either;

use super::terminal;
use crate::endpoint;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const CHUNK_BYTES: usize = 16 * 1024;

/// Which of our own streams take part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standard {
    pub stdin: bool,
    pub tty: bool,
}

#[derive(Debug)]
pub(super) struct Streams {
    socket: WebSocketStream<Connection>,
    standard: Standard,
}

type Connection = Either<TcpStream, UnixStream>;

type Sink = SplitSink<WebSocketStream<Connection>, Message>;

/// Connects to a URL that the container runtime has given out.
pub(super) async fn connect(url: &str, standard: Standard) -> Result<Streams> {
    let url = StreamUrl::parse(url).with_context(|| format!("the stream's address {url:?} names no place"))?;
    let mut request =
        format!("ws://{}{}", url.host(), url.target()).into_client_request().context("the stream's address")?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let stream = open(&url).await.with_context(|| format!("connect to the stream at {url}"))?;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.context("open the stream")?;
    Ok(Streams { socket, standard })
}

async fn open(url: &StreamUrl) -> std::io::Result<Connection> {
    match url {
        StreamUrl::Unix { socket, .. } => endpoint::open(socket.clone()).await.map(Either::Right),
        StreamUrl::Http { authority, .. } => {
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            Ok(Either::Left(stream))
        }
    }
}

impl Streams {
    /// Carries bytes both ways until the other side ends; the command's exit code where the other side tells it.
    pub(super) async fn pump(self) -> Result<Option<i32>> {
        let _raw = self.standard.tty.then(terminal::raw);
        let (sink, source) = self.socket.split();
        // Standard input is read until the other side ends, whatever it says: it may never end itself.
        tokio::select! {
            ended = receive(source) => ended,
            failed = send(sink, self.standard) => Err(failed),
        }
    }
}

/// Returns only with an error: the other side decides about the end.
async fn send(mut sink: Sink, standard: Standard) -> anyhow::Error {
    match send_all(&mut sink, standard).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn send_all(sink: &mut Sink, standard: Standard) -> Result<()> {
    let mut resized = signal(SignalKind::window_change()).context("wait for the terminal's size")?;
    let mut stdin = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut is_open = standard.stdin;
    if standard.tty {
        send_size(sink).await?;
    }
    loop {
        tokio::select! {
            read = stdin.read(&mut chunk), if is_open => {
                let length = read.context("read standard input")?;
                if length == 0 {
                    is_open = false;
                    send_message(sink, CLOSE, &[STDIN]).await?;
                } else {
                    send_message(sink, STDIN, &chunk[..length]).await?;
                }
            }
            Some(()) = resized.recv(), if standard.tty => send_size(sink).await?,
            else => return Ok(()),
        }
    }
}

async fn send_size(sink: &mut Sink) -> Result<()> {
    let Some((columns, rows)) = terminal::size() else { return Ok(()) };
    let size = serde_json::json!({"Width": columns, "Height": rows}).to_string();
    send_message(sink, RESIZE, size.as_bytes()).await
}

async fn send_message(sink: &mut Sink, channel: u8, payload: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(payload.len() + 1);
    message.push(channel);
    message.extend_from_slice(payload);
    sink.send(Message::Binary(message.into())).await.context("send to the container")
}

async fn receive(mut source: SplitStream<WebSocketStream<Connection>>) -> Result<Option<i32>> {
    let mut code = None;
    while let Some(message) = source.next().await {
        let message = message.context("the stream from the container broke")?;
        let Message::Binary(bytes) = message else {
            if message.is_close() {
                break;
            }
            continue;
        };
        match bytes.split_first() {
            Some((&STDOUT, payload)) => write(std::io::stdout().lock(), payload)?,
            Some((&STDERR, payload)) => write(std::io::stderr().lock(), payload)?,
            Some((&ERROR, payload)) => code = Some(exit_code(payload)?),
            _ => {}
        }
    }
    Ok(code)
}

fn write(mut to: impl Write, payload: &[u8]) -> Result<()> {
    to.write_all(payload).and_then(|()| to.flush()).context("write the container's output")
}

/// The exit code inside a `Status`: none of its causes is success.
fn exit_code(status: &[u8]) -> Result<i32> {
    let status: Value = serde_json::from_slice(status).context("read how the command ended")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code =
        causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str()?.parse().ok());
    match code {
        Some(code) => Ok(code),
        None => bail!("{}", status["message"].as_str().unwrap_or("the command could not be run")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let check = |status: &str, expect: Result<i32, &str>| {
            assert_eq!(
                exit_code(status.as_bytes()).map_err(|error| error.to_string()),
                expect.map_err(String::from),
                "{status}"
            );
        };
        check(r#"{"status":"Success"}"#, Ok(0));
        check(r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#, Ok(3));
        check(r#"{"status":"Failure","message":"no such program"}"#, Err("no such program"));
    }
}
