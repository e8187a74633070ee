//! Logs over a WebSocket, for browsers: the kubelet's plain answer, a message per piece. What the caller sends is not looked at.

use std::pin::pin;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use control_plane_api::Status;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Message, Role, WebSocketConfig},
    },
};

use crate::{
    body::{self, Body},
    status::Outcome,
};

/// Bytes of a message that a caller may send: nothing it says is of use here.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Bytes that wait for a slow caller; the kubelet waits with the rest.
const SEND_BYTES_MAX: usize = 256 << 10;

/// How a piece of the log is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrapping {
    Binary,
    /// Text: the bytes in base64.
    Base64,
}

/// A WebSocket that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    wrapping: Wrapping,
    protocol: Option<&'static str>,
    accept: HeaderValue,
}

/// Whether a request for a log wants it over a WebSocket.
pub(super) fn asked(headers: &HeaderMap) -> Outcome<Option<Asked>> {
    let is = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(wanted))
    };
    if !is(header::UPGRADE, "websocket") || !is(header::CONNECTION, "upgrade") {
        return Ok(None);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is(header::SEC_WEBSOCKET_VERSION, "13"));
    let key = key.ok_or_else(|| Status::bad_request("a WebSocket needs Sec-WebSocket-Key and version 13"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| Status::bad_request("Sec-WebSocket-Key cannot be answered"))?;
    let (wrapping, protocol) = match () {
        () if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) => (Wrapping::Binary, None),
        () if is(header::SEC_WEBSOCKET_PROTOCOL, "binary.k8s.io") => (Wrapping::Binary, Some("binary.k8s.io")),
        () if is(header::SEC_WEBSOCKET_PROTOCOL, "base64.binary.k8s.io") => {
            (Wrapping::Base64, Some("base64.binary.k8s.io"))
        }
        () => return Err(Status::bad_request("logs are sent as binary.k8s.io or base64.binary.k8s.io").into()),
    };
    Ok(Some(Asked { wrapping, protocol, accept }))
}

/// Switches protocols, and sends the log until either side ends.
pub(super) fn serve<T: Send + 'static>(asked: Asked, caller: OnUpgrade, log: Incoming, held: T) -> Response<Body> {
    let Asked { wrapping, protocol, accept } = asked;
    tokio::spawn(async move {
        let _held = held;
        if let Err(error) = send(wrapping, caller, log).await {
            tracing::debug!(%error, "a log over a WebSocket ended");
        }
    });
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

async fn send(wrapping: Wrapping, caller: OnUpgrade, log: Incoming) -> Result<(), body::BoxError> {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_write_buffer_size(SEND_BYTES_MAX);
    let stream = TokioIo::new(caller.await?);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits)).await;
    let (mut sink, mut source) = socket.split();
    let sending = async {
        let mut log = pin!(log);
        while let Some(frame) = log.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let message = match wrapping {
                Wrapping::Binary => Message::Binary(data),
                Wrapping::Base64 => Message::text(STANDARD.encode(&data)),
            };
            sink.send(message).await?;
        }
        sink.send(Message::Close(None)).await?;
        sink.flush().await?;
        Ok::<(), body::BoxError>(())
    };
    // Until the caller closes: whatever else it says is answered by the protocol, or not at all.
    let listening = async {
        while let Some(Ok(message)) = source.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    tokio::select! {
        outcome = sending => outcome,
        () = listening => Ok(()),
    }
}
