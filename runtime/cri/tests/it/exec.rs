//! ExecSync: codes, output, time, and a caller that goes away.

use std::time::Duration;

use runtime_cri_api::v1::*;

use crate::server::{Server, eventually, shell};

/// The words of the processes that a container has.
async fn processes(server: &mut Server, id: &str) -> String {
    server.said(id, &["ps", "-o", "args"]).await
}

#[tokio::test]
async fn a_command_has_its_output_and_code() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exec sleep 1000")).await;
    let answer = server.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"]).await.unwrap();
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    let missing = server.exec(&id, &["nosuchprogram"]).await.unwrap_err();
    assert!(missing.message().contains("nosuchprogram"), "{missing}");
    let empty = server.exec(&id, &[]).await.unwrap_err();
    assert_eq!(empty.code(), tonic::Code::InvalidArgument);
    // What is beyond the limit is dropped, and the command goes on to its end.
    let flood = server.exec(&id, &["sh", "-c", "yes | head -c 20000000; exit 3"]).await.unwrap();
    assert_eq!((flood.stdout.len(), flood.exit_code), (7 << 20, 3));
}

#[tokio::test]
async fn a_command_ends_with_its_time() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exec sleep 1000")).await;
    let late = server.exec_within(&id, &["sleep", "777"], 1).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    eventually("the command is gone", async || !processes(&mut server, &id).await.contains("sleep 777")).await;
    // A time beyond all clocks is no time at all.
    assert_eq!(server.exec_within(&id, &["true"], i64::MAX).await.unwrap().exit_code, 0);
}

#[tokio::test]
async fn a_command_ends_with_whoever_asked_for_it() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exec sleep 1000")).await;
    let mut client = server.runtime.clone();
    let cmd = ["sleep", "888"].map(String::from).to_vec();
    let request = ExecSyncRequest { container_id: id.clone(), cmd: cmd.clone(), timeout: 0 };
    let asked = tokio::spawn(async move { client.exec_sync(request).await });
    eventually("the command runs", async || processes(&mut server, &id).await.contains("sleep 888")).await;
    asked.abort();
    eventually("the command is gone", async || !processes(&mut server, &id).await.contains("sleep 888")).await;
    // Also those that were only just starting: whenever the caller goes, nothing stays.
    for milliseconds in 0..20 {
        let mut client = server.runtime.clone();
        let request = ExecSyncRequest { container_id: id.clone(), cmd: cmd.clone(), timeout: 0 };
        let asked = client.exec_sync(request);
        let _given_up = tokio::time::timeout(Duration::from_millis(milliseconds), asked).await;
    }
    eventually("all commands are gone", async || !processes(&mut server, &id).await.contains("sleep 888")).await;
}
