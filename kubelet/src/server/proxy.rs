//! Exec, attach and port-forward: the runtime gives a URL, and the client's upgraded connection is carried there byte by byte.
//! The protocols inside are none of the kubelet's business.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use runtime_cri_api::stream::StreamUrl;
use runtime_cri_api::v1 as cri;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::route::{Attach, Exec};
use super::{Body, full, text};
use crate::cri::{self as runtime, Runtime};

/// An answer that is not an upgrade is an error text; no more of it is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

pub(super) async fn exec(runtime: &Runtime, request: Request<Incoming>, id: String, exec: Exec) -> Response<Body> {
    let message = cri::ExecRequest {
        container_id: id,
        cmd: exec.command,
        tty: exec.attach.tty,
        stdin: exec.attach.stdin,
        stdout: exec.attach.stdout,
        // A terminal has one stream for both.
        stderr: exec.attach.stderr && !exec.attach.tty,
    };
    let answer = runtime.runtime.clone().exec(message).await;
    forward(request, answer.map(|a| a.into_inner().url)).await
}

pub(super) async fn attach(
    runtime: &Runtime,
    request: Request<Incoming>,
    id: String,
    attach: Attach,
) -> Response<Body> {
    let message = cri::AttachRequest {
        container_id: id,
        stdin: attach.stdin,
        tty: attach.tty,
        stdout: attach.stdout,
        stderr: attach.stderr && !attach.tty,
    };
    let answer = runtime.runtime.clone().attach(message).await;
    forward(request, answer.map(|a| a.into_inner().url)).await
}

pub(super) async fn port_forward(
    runtime: &Runtime,
    request: Request<Incoming>,
    id: String,
    port: Vec<i32>,
) -> Response<Body> {
    let message = cri::PortForwardRequest { pod_sandbox_id: id, port };
    let answer = runtime.runtime.clone().port_forward(message).await;
    forward(request, answer.map(|a| a.into_inner().url)).await
}

async fn forward(request: Request<Incoming>, url: Result<String, tonic::Status>) -> Response<Body> {
    let url = match url {
        Ok(url) => url,
        Err(status) if status.code() == tonic::Code::NotFound => return text(StatusCode::NOT_FOUND, status.message()),
        Err(status) => {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("the runtime refused: {}", status.message()));
        }
    };
    match tunnel(request, &url).await {
        Ok(response) => response,
        Err(error) => {
            text(StatusCode::BAD_GATEWAY, format!("reach the runtime's stream: {}", crate::operation::chain(&error)))
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the runtime's URL {url:?} names no place")]
    Url { url: String },
    #[error("connect to {address}")]
    Connect { address: StreamUrl, source: std::io::Error },
    #[error("ask the runtime's stream server")]
    Exchange(#[from] hyper::Error),
    #[error("build the request")]
    Request(#[from] http::Error),
}

/// Our own runtime is reached by a socket of the file system; another's may be on loopback.
async fn open(url: &StreamUrl) -> std::io::Result<Either<TcpStream, UnixStream>> {
    match url {
        StreamUrl::Unix { socket, .. } => runtime::dial(socket).await.map(Either::Right),
        StreamUrl::Http { authority, .. } => TcpStream::connect(authority).await.map(Either::Left),
    }
}

async fn tunnel(mut request: Request<Incoming>, url: &str) -> Result<Response<Body>, Error> {
    let target = StreamUrl::parse(url).ok_or_else(|| Error::Url { url: url.to_owned() })?;
    let stream = open(&target).await.map_err(|source| Error::Connect { address: target.clone(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let client = hyper::upgrade::on(&mut request);
    let mut onward = Request::builder().method(request.method()).uri(target.target());
    for (name, value) in request.headers() {
        // Who the user is has been settled here; it goes no further.
        if name != "authorization" && name != "host" {
            onward = onward.header(name, value);
        }
    }
    let onward = onward.header("host", target.host()).body(Empty::<Bytes>::new())?;
    let mut answer = sender.send_request(onward).await?;
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let mut body = Vec::new();
        while body.len() < ANSWER_BYTES_MAX {
            let Some(frame) = answer.frame().await else { break };
            body.extend_from_slice(frame?.data_ref().map_or(&[][..], |d| d));
        }
        let mut response = response.body(full(body))?;
        // The body has been read whole; how it was framed is over.
        response.headers_mut().remove("transfer-encoding");
        response.headers_mut().remove("content-length");
        return Ok(response);
    }
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = tokio::join!(client, runtime) else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        // However it ends, both ends are closed by dropping them.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut runtime).await;
    });
    Ok(response.body(Empty::<Bytes>::new().map_err(|e: Infallible| e).boxed_unsync())?)
}
