//! Exec, attach and port-forward over WebSocket, as kubelets and clients use them.

use futures::{SinkExt, StreamExt};
use runtime_cri_api::v1::*;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::house::with_server;

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn open(url: &str, protocol: &str) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let url = url.replace("http://", "ws://");
    let mut request = url.as_str().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let address = request.uri().authority().unwrap().to_string();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    Ok(tokio_tungstenite::client_async(request, socket).await?.0)
}

/// Everything until the verdict (channel 3) or the end, by channel.
async fn collect(socket: &mut Socket) -> (String, String, String) {
    let mut channels = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(data) = message else { break };
        channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        if data[0] == 3 {
            break;
        }
    }
    let [_, out, err, verdict] = channels.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (out, err, verdict)
}

async fn send(socket: &mut Socket, channel: u8, data: &[u8]) {
    socket.send(Message::Binary([&[channel], data].concat().into())).await.unwrap();
}

#[test]
fn exec_and_attach() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let mut config = house.container("c", &["sh", "-c", "while read line; do echo got $line; done; echo end"]);
        (config.stdin, config.stdin_once) = (true, true);
        let id = house.start(&mut runtime, &pod, &config).await;
        let exec = |cmd: &[&str], stdin, tty| ExecRequest {
            container_id: id.clone(),
            cmd: cmd.iter().map(ToString::to_string).collect(),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };

        // Standard input is closed by v5's close signal; the exit code comes as a Status.
        let script = "cat; echo problem >&2; exit 4";
        let url = runtime.exec(exec(&["sh", "-c", script], true, false)).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        send(&mut socket, 0, b"through").await;
        send(&mut socket, 255, &[0]).await;
        let (out, err, verdict) = collect(&mut socket).await;
        assert_eq!((out.as_str(), err.as_str()), ("through", "problem\n"));
        let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
        assert_eq!(verdict["reason"], "NonZeroExitCode");
        assert_eq!(verdict["details"]["causes"][0]["message"], "4");
        // A URL works once.
        assert!(open(&url, "v5.channel.k8s.io").await.is_err());

        // A terminal, and its size.
        let script = "while [ \"$(stty size 2>/dev/null)\" != \"33 101\" ]; do sleep 0.02; done; stty size";
        let url = runtime.exec(exec(&["sh", "-c", script], true, true)).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        send(&mut socket, 4, br#"{"Width":101,"Height":33}"#).await;
        let (out, _, verdict) = collect(&mut socket).await;
        assert_eq!(out.trim_end(), "33 101");
        assert!(verdict.contains("Success"), "{verdict}");

        // What cannot be run is a verdict too.
        let url = runtime.exec(exec(&["/no/such"], false, false)).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        let (.., verdict) = collect(&mut socket).await;
        assert!(verdict.contains("Failure") && verdict.contains("/no/such"), "{verdict}");

        let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
        let url = runtime.attach(request).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        send(&mut socket, 0, b"one\n").await;
        send(&mut socket, 255, &[0]).await;
        let (out, ..) = collect(&mut socket).await;
        assert_eq!(out, "got one\nend\n");
        assert_eq!(house.wait_exit(&mut runtime, &id).await.exit_code, 0);
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let id = house.start(&mut runtime, &pod, &house.container("c", &["sleep", "1000"])).await;
        let cmd = ["sh", "-c", "echo $$ > /tmp/pid; exec sleep 500"].map(String::from).to_vec();
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 };
        let refused = runtime.exec_sync(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
        let look = ["sh", "-c", "kill -0 $(cat /tmp/pid)"];
        crate::house::eventually("the command is gone", || {
            let mut runtime = runtime.clone();
            let (house, id) = (&house, &id);
            async move { house.exec(&mut runtime, id, &look).await.0 != 0 }
        })
        .await;
        // Output of any size, and a child that holds it open, do not hang the answer.
        let big = house.exec(&mut runtime, &id, &["sh", "-c", "head -c 3000000 /dev/zero; sleep 300 &"]).await;
        assert_eq!((big.0, big.1.len()), (0, 3_000_000));
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn a_port_is_forwarded_into_the_pod() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let config = house.container("c", &["nc", "-ll", "-p", "8080", "-e", "cat"]);
        let id = house.start(&mut runtime, &pod, &config).await;
        crate::house::eventually("the port listens", || {
            let mut runtime = runtime.clone();
            let (house, id) = (&house, &id);
            let look = ["grep", "-q", "1F90", "/proc/net/tcp", "/proc/net/tcp6"];
            async move { house.exec(&mut runtime, id, &look).await.0 == 0 }
        })
        .await;
        let forward = |port| PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![port] };
        let url = runtime.port_forward(forward(8080)).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        send(&mut socket, 0, b"ping").await;
        let mut echoed = Vec::new();
        while echoed.len() < 6 {
            let Some(Ok(Message::Binary(data))) = socket.next().await else { panic!("closed early: {echoed:?}") };
            if data[0] == 0 {
                echoed.extend_from_slice(&data[1..]);
            }
        }
        // The port first, little endian, then what came back.
        assert_eq!(echoed, [&8080_u16.to_le_bytes()[..], b"ping"].concat());

        let url = runtime.port_forward(forward(9)).await.unwrap().into_inner().url;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        let mut problem = String::new();
        while let Some(Ok(Message::Binary(data))) = socket.next().await {
            if data[0] == 1 {
                problem.push_str(&String::from_utf8_lossy(&data[1..]));
            }
        }
        assert!(problem.contains("port 9") && problem.contains("refused"), "{problem}");
        house.remove_pod(&mut runtime, &pod).await;
    });
}
