//! The HTTP side: a path with a token, an upgrade to WebSocket or SPDY/3.1, and off to the work.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::channels::{Channels, Input, Output, Verdicts};
use super::process::{self, Wanted};
use super::spdy;
use super::websocket;
use super::{Listener, Pending, port_forward, remote_command};
use crate::node::Node;

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// Versions of the remote command protocol over SPDY, newest first; the first has no name on the wire.
const COMMAND_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

const PORT_FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// How long a client may take to open the streams it asked for.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);

/// How long a request's head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

type Answer = Response<Full<Bytes>>;

/// Connections that have not shown their token yet; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;

/// Serves until told to stop; sessions under way go on until their sockets close.
pub(crate) async fn serve(listener: Listener, node: Arc<Node>, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok(socket) = accepted else {
            // Out of descriptors, most likely: whoever waits is served when some are free again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            converse(socket, node).await;
            drop(place);
        });
    }
}

/// One connection until it is upgraded or ends.
async fn converse(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, node: Arc<Node>) {
    let service = service_fn(move |request| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(answer(&node, request)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        debug!(%error, "stream connection ended");
    }
}

/// How the client wants to speak.
enum Framing {
    WebSocket { protocol: String, accept: String },
    Spdy { protocol: &'static str },
}

fn answer(node: &Arc<Node>, mut request: Request<Incoming>) -> Answer {
    let path = request.uri().path().trim_matches('/').to_owned();
    let Some((kind @ ("exec" | "attach" | "portforward"), token)) = path.split_once('/') else {
        return refuse(StatusCode::NOT_FOUND, "no such stream");
    };
    let port_forward = kind == "portforward";
    // The framing is checked first, so that a mistaken request does not use the token up.
    let framing = match framing(request.headers(), port_forward) {
        Ok(framing) => framing,
        Err(answer) => return *answer,
    };
    let Some(pending) = node.streams.take(kind, token) else {
        return refuse(
            StatusCode::NOT_FOUND,
            "this stream was opened before, or waited for too long: ask for a new one",
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let response = switch(&framing);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => run(&node, pending, framing, upgraded).await,
            Err(error) => debug!(%error, "stream not upgraded"),
        }
    });
    response
}

fn framing(headers: &HeaderMap, port_forward: bool) -> Result<Framing, Box<Answer>> {
    let refuse = |status, words: &str| Err(Box::new(refuse(status, words)));
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("websocket") {
        let Some(accept) = websocket::accept_key(headers) else {
            return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
        };
        let offered = websocket::offered(headers);
        let protocol = if port_forward && offered.iter().any(|name| name == websocket::TUNNEL) {
            Some(websocket::TUNNEL)
        } else {
            websocket::choose(&offered)
        };
        return match protocol {
            Some(protocol) => Ok(Framing::WebSocket { protocol: protocol.to_owned(), accept }),
            None => refuse(StatusCode::BAD_REQUEST, "none of the offered WebSocket subprotocols is known"),
        };
    }
    if !upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return refuse(StatusCode::BAD_REQUEST, "this is a stream: upgrade to websocket or SPDY/3.1");
    }
    let values = headers.get_all(STREAM_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let known: &[&'static str] = if port_forward { &[PORT_FORWARD_PROTOCOL] } else { &COMMAND_PROTOCOLS };
    let chosen = known.iter().find(|known| offered.contains(*known));
    match (chosen, offered.is_empty()) {
        (Some(protocol), _) => Ok(Framing::Spdy { protocol }),
        // The first version of either protocol was not negotiated.
        (None, true) => Ok(Framing::Spdy { protocol: known[known.len() - 1] }),
        (None, false) => refuse(StatusCode::FORBIDDEN, "none of the offered stream protocol versions is known"),
    }
}

fn switch(framing: &Framing) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match framing {
        Framing::Spdy { protocol } => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
        Framing::WebSocket { protocol, accept } => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            let text = |text: &str| HeaderValue::from_str(text).ok();
            if let Some(accept) = text(accept) {
                headers.insert("sec-websocket-accept", accept);
            }
            if let Some(protocol) = text(protocol).filter(|protocol| !protocol.is_empty()) {
                headers.insert("sec-websocket-protocol", protocol);
            }
        }
    }
    response
}

fn refuse(status: StatusCode, words: &str) -> Answer {
    let mut response = Response::new(Full::from(format!("{words}\n")));
    *response.status_mut() = status;
    response
}

async fn run(node: &Arc<Node>, pending: Pending, framing: Framing, upgraded: Upgraded) {
    match (pending, framing) {
        (Pending::PortForward { sandbox, ports }, Framing::WebSocket { protocol, .. }) => {
            let socket = websocket::open(upgraded).await;
            if protocol == websocket::TUNNEL {
                port_forward::serve_spdy(websocket::tunnel(socket), sandbox).await;
            } else {
                port_forward::serve_channels(socket, sandbox, ports).await;
            }
        }
        (Pending::PortForward { sandbox, .. }, Framing::Spdy { .. }) => {
            port_forward::serve_spdy(TokioIo::new(upgraded), sandbox).await;
        }
        (pending, Framing::WebSocket { protocol, .. }) => {
            let socket = websocket::open(upgraded).await;
            let wanted = wanted(&pending);
            let channels = websocket::remote_command(socket, &protocol, wanted).await;
            run_command(node, pending, channels).await;
        }
        (pending, Framing::Spdy { protocol }) => {
            let mut connection = spdy::Connection::serve(TokioIo::new(upgraded));
            let wanted = wanted(&pending);
            let collected = tokio::time::timeout(STREAMS_WITHIN, collect(&mut connection, protocol, wanted)).await;
            match collected {
                Ok(Some(channels)) => run_command(node, pending, channels).await,
                Ok(None) | Err(_) => debug!("the client did not open the streams it asked for"),
            }
        }
    }
}

fn wanted(pending: &Pending) -> Wanted {
    match pending {
        Pending::Exec { command, .. } => command.wanted,
        Pending::Attach { wanted, .. } => *wanted,
        Pending::PortForward { .. } => Wanted { stdin: false, stdout: false, stderr: false, terminal: false },
    }
}

async fn run_command(node: &Arc<Node>, pending: Pending, channels: Channels) {
    let running = match pending {
        Pending::Exec { container, command } => process::start(node, &container, command).await,
        Pending::Attach { container, wanted } => process::attach(node, &container, wanted).await,
        Pending::PortForward { .. } => return,
    };
    remote_command::run(channels, running).await;
}

/// The streams of a remote command over SPDY, in whatever order the client opens them.
async fn collect(connection: &mut spdy::Connection, protocol: &str, wanted: Wanted) -> Option<Channels> {
    let resizes = wanted.terminal && matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
    let verdicts = if protocol == "v4.channel.k8s.io" { Verdicts::Json } else { Verdicts::Text };
    let mut channels = Channels { stdin: None, stdout: None, stderr: None, resize: None, error: None, verdicts };
    let expected = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, resizes].into_iter().filter(|on| *on).count();
    let mut opened = 0;
    while opened < expected {
        let stream = connection.accept().await?;
        let spdy::Stream { headers, reader, writer } = stream;
        match headers.get("streamtype").map(String::as_str) {
            Some("error") => channels.error = Some(Output::Spdy(writer)),
            Some("stdin") => channels.stdin = Some(Input::Spdy(reader)),
            Some("stdout") => channels.stdout = Some(Output::Spdy(writer)),
            Some("stderr") => channels.stderr = Some(Output::Spdy(writer)),
            Some("resize") => channels.resize = Some(Input::Spdy(reader)),
            _ => {
                let _ = writer.reset().await;
                continue;
            }
        }
        opened += 1;
    }
    Some(channels)
}
