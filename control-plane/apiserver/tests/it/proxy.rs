//! Logs, exec and proxying: against a kubelet that echoes what it was asked.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::server::Server;

/// Answers every request with its line; upgrades become an echo.
async fn echo(mut request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        let line = format!("{} {}\n", request.method(), request.uri());
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
        response.headers_mut().insert(header::UPGRADE, "echo".parse().unwrap());
        return Ok(response);
    }
    let credentials = request.headers().contains_key(header::AUTHORIZATION);
    Ok(Response::new(Full::from(format!("{} {} {credentials}\n", request.method(), request.uri()))))
}

async fn kubelet(server: &Server) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(server.pki.node.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(server.pki.node.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(tls), service_fn(echo))
                    .await;
            });
        }
    });
    address
}

async fn with_pod() -> Server {
    let server = Server::start().await;
    let address = kubelet(&server).await;
    server.kubectl("create serviceaccount default").await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]}});
    for (name, object) in [("node.json", node), ("pod.json", pod)] {
        let file = server.file(name, &object.to_string());
        server.kubectl(&format!("create -f {file}")).await;
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_proxied_paths_reach_the_kubelet() {
    let server = with_pod().await;
    let logs = server.kubectl("logs p --tail=20").await;
    assert_eq!(logs, "GET /containerLogs/default/p/c?tailLines=20 false\n");
    let stats = server.kubectl("get --raw /api/v1/nodes/node-1/proxy/stats/summary?only=x").await;
    assert_eq!(stats, "GET /stats/summary?only=x false\n");
    let wrong = server.refused("logs p -c other").await;
    assert!(wrong.contains("container other is not valid for pod p"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_tunnelled_both_ways() {
    let server = with_pod().await;
    let token = crate::server::ADMIN_TOKEN;
    let mut stream = server.connect_tls().await;
    let uri = "/api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdin=true&stdout=true&tty=true";
    let request = format!(
        "GET {uri} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.ends_with("hello") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "ended early: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
    assert!(seen.contains("GET /exec/default/p/c?input=1&output=1&tty=1&command=ls&command=-l\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_comes_over_a_websocket_as_it_was_asked_for() {
    use futures::StreamExt;
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
    let server = with_pod().await;
    let line = "GET /containerLogs/default/p/c?tailLines=1 false\n";
    let base64 = "R0VUIC9jb250YWluZXJMb2dzL2RlZmF1bHQvcC9jP3RhaWxMaW5lcz0xIGZhbHNlCg==";
    for (protocol, expect) in [
        (None, Ok(Message::binary(line))),
        (Some("binary.k8s.io"), Ok(Message::binary(line))),
        (Some("other, base64.binary.k8s.io"), Ok(Message::text(base64))),
        (Some("other"), Err(400)),
    ] {
        let mut request =
            "wss://localhost/api/v1/namespaces/default/pods/p/log?tailLines=1".into_client_request().unwrap();
        let token = format!("Bearer {}", crate::server::ADMIN_TOKEN);
        request.headers_mut().insert(header::AUTHORIZATION, token.parse().unwrap());
        if let Some(protocol) = protocol {
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        let connected = tokio_tungstenite::client_async(request, server.connect_tls().await).await;
        match (connected, expect) {
            (Ok((mut socket, _)), Ok(expect)) => {
                assert_eq!(socket.next().await.unwrap().unwrap(), expect, "{protocol:?}");
                assert!(socket.next().await.unwrap().unwrap().is_close(), "{protocol:?}");
            }
            (Err(tokio_tungstenite::tungstenite::Error::Http(answer)), Err(code)) => {
                assert_eq!(answer.status().as_u16(), code, "{protocol:?}");
            }
            (found, _) => panic!("{protocol:?}: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_leads_nowhere_but_to_pods() {
    use crate::http::{Caller, NONE};
    let server = with_pod().await;
    let mut admin = Caller::of(&server);
    let pods = "/api/v1/namespaces/default/pods/p";
    let media = "application/merge-patch+json";
    for address in ["127.0.0.1", "169.254.169.254", "::1", "224.0.0.1", "0.0.0.0"] {
        let status = json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}});
        let (code, answer) = admin.typed("PATCH", &format!("{pods}/status"), media, status).await;
        // A status that validation refuses leads nowhere either.
        assert!(code == 200 || code == 422, "{address}: {answer}");
        if code == 422 {
            continue;
        }
        for method in ["GET", "POST", "OPTIONS", "HEAD"] {
            let found = admin.send(method, &format!("{pods}/proxy/x"), NONE, Vec::new()).await;
            assert_eq!(found.status(), 400, "{method} {address}");
        }
    }
    let bare = admin.send("GET", &format!("{pods}/proxy?a=b"), NONE, Vec::new()).await;
    assert_eq!(
        (bare.status().as_u16(), bare.headers()[header::LOCATION].to_str().unwrap()),
        (301, &*format!("{pods}/proxy/?a=b"))
    );
    let other_port = admin.send("GET", "/api/v1/nodes/node-1:22/proxy/", NONE, Vec::new()).await;
    assert_eq!(other_port.status(), 400, "the node's address is the loopback here");
}
