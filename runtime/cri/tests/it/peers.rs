//! Clients of other makers.

use std::process::Command;

use runtime_cri_api::v1::VersionRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::server::Server;

/// What grpc-python 1.85 sends for Version, byte for byte: its authority is the socket's escaped path.
const C_CORE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \0\0\0\x04\0\0\0\0\0\
    \0\0\xf4\x01\x04\0\0\0\x01\
    \x40\x05:path\x22/runtime.v1.RuntimeService/Version\x40\x0a:authority\x13tmp%2Fcap-test.sock\x83\x86\
    \x40\x0ccontent-type\x10application/grpc\x40\x02te\x08trailers\x40\x14grpc-accept-encoding\x17identity, deflate, gzip\
    \x40\x0cgrpc-timeout\x0230\x40\x0auser-agent\x30grpc-python/1.85.3 grpc-c/58.0.0 (linux; chttp2)\
    \0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0";

#[tokio::test]
async fn a_client_that_sends_the_escaped_path_as_authority_is_answered() {
    let server = Server::start().await;
    let mut stream = UnixStream::connect(server.socket()).await.unwrap();
    let block = C_CORE.len() - 24 - 9 - 9 - 14;
    let mut bytes = C_CORE.to_vec();
    bytes[24 + 9 + 2] = u8::try_from(block).unwrap();
    // Two digits of time without a unit are none: seconds.
    let timeout = bytes.windows(2).rposition(|two| two == b"30").unwrap();
    bytes[timeout + 1] = b'S';
    stream.write_all(&bytes).await.unwrap();
    let mut said = Vec::new();
    while !said.windows(6).any(|six| six == b"sampan") {
        let count = stream.read_buf(&mut said).await.unwrap();
        assert!(count > 0, "refused: {said:?}");
    }
    // RST_STREAM, which a refused authority was answered with.
    assert!(!said.windows(5).any(|five| five == [3, 0, 0, 0, 1]), "{said:?}");
}

/// The real one, where it is installed (`pip install grpcio`).
#[tokio::test]
async fn python_is_answered_where_it_is_there() {
    let mut server = Server::start().await;
    let python = std::env::var("SAMPAN_PYTHON").unwrap_or_else(|_| "python3".into());
    let installed = Command::new(&python).args(["-c", "import grpc"]).output().is_ok_and(|said| said.status.success());
    if !installed {
        // The recorded bytes stand for it above; here the server answers somebody at least.
        server.runtime.version(VersionRequest::default()).await.unwrap();
        return;
    }
    let script = format!(
        "import grpc\nchannel = grpc.insecure_channel('unix://{}')\n\
         for call in range(3):\n print(channel.unary_unary('/runtime.v1.RuntimeService/Version')(b'', timeout=30))",
        server.socket().display()
    );
    let said = tokio::task::spawn_blocking(move || Command::new(python).args(["-c", &script]).output())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(text.matches("sampan").count(), 3, "{text}{}", String::from_utf8_lossy(&said.stderr));
}
