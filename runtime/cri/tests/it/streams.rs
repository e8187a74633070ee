//! Exec, attach and port-forward over the stream server's socket, as a kubelet joins them.

use std::path::PathBuf;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use runtime_cri_api::stream::StreamUrl;
use runtime_cri_api::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::server::{Server, eventually, shell};

type Session = WebSocketStream<UnixStream>;

fn place(url: &str) -> (PathBuf, String) {
    match StreamUrl::parse(url) {
        Some(StreamUrl::Unix { socket, target }) => (socket, target),
        other => panic!("{url}: {other:?}"),
    }
}

async fn open(url: &str, protocol: &str) -> Result<Session, tokio_tungstenite::tungstenite::Error> {
    let (socket, target) = place(url);
    let mut request = format!("ws://localhost{target}").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let stream = UnixStream::connect(socket).await.unwrap();
    Ok(tokio_tungstenite::client_async(request, stream).await?.0)
}

async fn send(session: &mut Session, channel: u8, data: &[u8]) {
    let message = Bytes::from([&[channel], data].concat());
    session.send(Message::Binary(message)).await.unwrap();
}

/// All that was said, by channel, until the session ends.
async fn drain(session: &mut Session) -> [Vec<u8>; 4] {
    let mut said = [const { Vec::new() }; 4];
    while let Some(Ok(message)) = session.next().await {
        if let Message::Binary(data) = message
            && let Some((channel, data)) = data.split_first()
        {
            said[usize::from(*channel)].extend_from_slice(data);
        }
    }
    said
}

async fn exec(server: &mut Server, id: &str, script: &str, stdin: bool, tty: bool) -> String {
    let cmd = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let request = ExecRequest { container_id: id.into(), cmd, tty, stdin, stdout: true, stderr: !tty };
    server.runtime.exec(request).await.unwrap().into_inner().url
}

async fn running(server: &mut Server, script: &str) -> (String, String) {
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", script)).await;
    (pod, id)
}

#[tokio::test]
async fn a_command_is_fed_heard_and_judged() {
    let mut server = Server::start().await;
    let (_, id) = running(&mut server, "exec sleep 1000").await;
    let url = exec(&mut server, &id, "cat; echo err >&2; exit 3", true, false).await;
    let mut session = open(&url, "v5.channel.k8s.io").await.unwrap();
    send(&mut session, 0, b"hello ").await;
    send(&mut session, 0, b"there").await;
    send(&mut session, 255, &[0]).await;
    let [_, out, err, verdict] = drain(&mut session).await;
    assert_eq!((out.as_slice(), err.as_slice()), (&b"hello there"[..], &b"err\n"[..]));
    let verdict: serde_json::Value = serde_json::from_slice(&verdict).unwrap();
    assert_eq!(verdict["details"]["causes"][0]["message"], "3");
    // Its URL is used up, and opens nothing else.
    assert!(open(&url, "v5.channel.k8s.io").await.is_err());
    assert!(open(&url.replace("/exec/", "/attach/"), "v5.channel.k8s.io").await.is_err());
}

#[tokio::test]
async fn a_terminal_has_its_size() {
    let mut server = Server::start().await;
    let (_, id) = running(&mut server, "exec sleep 1000").await;
    // The size travels beside the input, so it may come later.
    let script = "read line; while [ \"$(stty size)\" != '42 101' ]; do sleep 0.02; done; stty size; tty";
    let url = exec(&mut server, &id, script, true, true).await;
    let mut session = open(&url, "v4.channel.k8s.io").await.unwrap();
    send(&mut session, 4, br#"{"Width":101,"Height":42}"#).await;
    send(&mut session, 0, b"go\n").await;
    let [_, out, _, verdict] = drain(&mut session).await;
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("42 101") && out.contains("/dev/pts/"), "{out}");
    assert!(String::from_utf8(verdict).unwrap().contains("Success"));
}

#[tokio::test]
async fn an_attached_client_hears_a_container_and_feeds_it() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let config =
        ContainerConfig { stdin: true, stdin_once: true, ..shell("main", "read line; echo got $line; exit 5") };
    let id = server.run(&pod, config).await;
    let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
    let url = server.runtime.attach(request).await.unwrap().into_inner().url;
    let mut session = open(&url, "v4.channel.k8s.io").await.unwrap();
    send(&mut session, 0, b"word\n").await;
    let [_, out, ..] = drain(&mut session).await;
    assert_eq!(out, b"got word\n");
    assert_eq!(server.until_exited(&id).await.exit_code, 5);
}

#[tokio::test]
async fn a_port_is_forwarded_both_ways() {
    let mut server = Server::start().await;
    let (pod, _) = running(&mut server, "exec sleep 1000").await;
    // The pod is in the host's network, which is this test's.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).await.unwrap();
        socket.write_all(&[b"heard ", said.as_slice()].concat()).await.unwrap();
    });
    let request = PortForwardRequest { pod_sandbox_id: pod, port: vec![i32::from(port)] };
    let url = server.runtime.port_forward(request).await.unwrap().into_inner().url;
    let mut session = open(&url, "v4.channel.k8s.io").await.unwrap();
    // Both channels begin with the port.
    for channel in [0, 1] {
        let begin = loop {
            match session.next().await.unwrap().unwrap() {
                Message::Binary(data) => break data,
                _ping => {}
            }
        };
        assert_eq!(begin.as_ref(), [&[channel], port.to_le_bytes().as_slice()].concat());
    }
    send(&mut session, 0, b"words").await;
    send(&mut session, 255, &[0]).await;
    let [data, error, ..] = drain(&mut session).await;
    assert_eq!((data.as_slice(), error.as_slice()), (&b"heard words"[..], &b""[..]));
    echo.await.unwrap();
}

/// Kilobytes of the server's memory that are its own.
fn resident(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A command that never reads, and a client that never stops sending: the client is held up by its socket, not by our memory.
#[tokio::test]
async fn a_session_that_nobody_reads_costs_little_memory() {
    let mut server = Server::start().await;
    let (_, id) = running(&mut server, "exec sleep 1000").await;
    let before = resident(&server);
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let url = exec(&mut server, &id, "exec sleep 1000", true, false).await;
        let mut session = open(&url, "v5.channel.k8s.io").await.unwrap();
        let chunk = Bytes::from(vec![0; 1 << 20]);
        let sent = async {
            for _ in 0..200 {
                session.send(Message::Binary(chunk.clone())).await?;
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        };
        assert!(tokio::time::timeout(std::time::Duration::from_secs(2), sent).await.is_err(), "200 MiB went somewhere");
        sessions.push(session);
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB");
}

#[tokio::test]
async fn a_command_outlives_no_client_that_only_listens() {
    let mut server = Server::start().await;
    let (_, id) = running(&mut server, "exec sleep 1000").await;
    let url = exec(&mut server, &id, "while :; do echo tick; sleep 0.05; done", false, false).await;
    let session = open(&url, "v5.channel.k8s.io").await.unwrap();
    drop(session);
    // Nobody hears it: its next word ends it, as a closed pipe does.
    eventually("the command is gone", async || !server.said(&id, &["ps", "-o", "args"]).await.contains("echo tick"))
        .await;
}
