//! The server's end at any moment: containers go on, and the next one finds them.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use runtime_cri_api::v1::*;

use crate::server::{Server, eventually, shell};

#[tokio::test]
async fn containers_go_on_and_what_ended_meanwhile_is_known() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let lives = server.run(&pod, shell("lives", "exec sleep 1000")).await;
    let ends = server.run(&pod, shell("ends", "while ! [ -e /fresh/end ]; do sleep 0.02; done; exit 9")).await;
    let created = server.create(&pod, shell("created", "exit 2")).await;
    server.kill();
    let volumes: Vec<_> = fs::read_dir(server.path("data/cri/volumes").join(&ends)).unwrap().collect();
    assert_eq!(volumes.len(), 2);
    fs::write(server.path("data/cri/volumes").join(&ends).join("1/end"), "").unwrap();
    server.start_again().await;
    assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxReady)]);
    assert_eq!(server.status(&lives).await.state(), ContainerState::ContainerRunning);
    assert_eq!(server.until_exited(&ends).await.exit_code, 9);
    assert_eq!(server.status(&created).await.state(), ContainerState::ContainerCreated);
    server.start_container(&created).await.unwrap();
    assert_eq!(server.until_exited(&created).await.exit_code, 2);
    assert_eq!(server.said(&lives, &["echo", "here"]).await, "here\n");
    server.remove_pod(&pod).await.unwrap();
    assert!(server.containers().await.is_empty());
}

#[tokio::test]
async fn a_server_that_is_killed_anywhere_leaves_what_its_successor_can_clear() {
    let mut server = Server::start().await;
    for round in 0..12_u64 {
        let config = server.pod(&format!("p{round}"));
        let mut client = server.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config), ..RunPodSandboxRequest::default() };
        let asked = tokio::spawn(async move {
            let pod_sandbox_id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let config = Some(shell("main", "exec sleep 1000"));
            let request = CreateContainerRequest { pod_sandbox_id, config, sandbox_config: None };
            let container_id = client.create_container(request).await?.into_inner().container_id;
            client.start_container(StartContainerRequest { container_id }).await
        });
        tokio::time::sleep(Duration::from_millis(round * 7)).await;
        server.kill();
        let _cut_off = asked.await;
        server.start_again().await;
        for (id, _) in server.pods().await {
            server.stop_pod(&id).await.unwrap();
            server.remove_pod(&id).await.unwrap();
        }
        assert!(server.containers().await.is_empty());
        for below in ["run/pods", "data/cri/sandboxes", "data/cri/containers", "data/images/s"] {
            assert_eq!(fs::read_dir(server.path(below)).unwrap().count(), 0, "{below} in round {round}");
        }
        assert!(server.cgroup("").pids_recursive().unwrap().is_empty(), "round {round}");
    }
}

#[tokio::test]
async fn a_dead_shim_is_found_by_its_lock_and_its_pod_cleared() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exec sleep 1000")).await;
    kill(server.shim_pid(&pod), Signal::SIGKILL).unwrap();
    let status = server.until_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    eventually("the pod is not ready", async || {
        server.pods().await == [(pod.clone(), PodSandboxState::SandboxNotready)]
    })
    .await;
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
    assert!(server.cgroup("").pids_recursive().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_without_the_first_process_of_its_pid_namespace_is_not_ready() {
    let mut server = Server::start().await;
    let mut config = server.pod("web");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    let pod = server.run_pod(config).await;
    let shims = server.cgroup(&format!("/shims/{pod}")).pids_recursive().unwrap();
    let shim = server.shim_pid(&pod).as_raw();
    let pause = shims.into_iter().find(|pid| *pid != shim).unwrap();
    kill(nix::unistd::Pid::from_raw(pause), Signal::SIGKILL).unwrap();
    eventually("it is not ready", async || server.pods().await == [(pod.clone(), PodSandboxState::SandboxNotready)])
        .await;
    server.restart().await;
    assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxNotready)]);
    server.remove_pod(&pod).await.unwrap();
}

/// Ten silent shims cost a start one deadline, not ten; and each is heard again when it speaks.
#[tokio::test]
async fn silent_shims_are_asked_together_and_followed_when_they_speak() {
    let mut server = Server::start().await;
    let mut pods = Vec::new();
    for number in 0..10 {
        let pod = server.run_pod(server.pod(&format!("p{number}"))).await;
        let id = server.run(&pod, shell("main", "sleep 0.5; exit 6")).await;
        pods.push((pod, id));
    }
    for (pod, _) in &pods {
        kill(server.shim_pid(pod), Signal::SIGSTOP).unwrap();
    }
    server.kill();
    let begun = Instant::now();
    server.start_again().await;
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let ready = pods.iter().map(|(pod, _)| (pod.clone(), PodSandboxState::SandboxReady)).collect::<Vec<_>>();
    let mut found = server.pods().await;
    found.sort();
    let mut expect = ready;
    expect.sort();
    assert_eq!(found, expect);
    for (pod, _) in &pods {
        kill(server.shim_pid(pod), Signal::SIGCONT).unwrap();
    }
    for (_, id) in &pods {
        assert_eq!(server.until_exited(id).await.exit_code, 6);
    }
}

#[tokio::test]
async fn a_damaged_record_is_told_and_costs_nobody_else() {
    let mut server = Server::start().await;
    let (well, hurt) = (server.run_pod(server.pod("well")).await, server.run_pod(server.pod("hurt")).await);
    let lives = server.run(&well, shell("lives", "exec sleep 1000")).await;
    let stray = server.run(&hurt, shell("stray", "exec sleep 1000")).await;
    let spoilt = server.create(&well, shell("spoilt", "true")).await;
    server.kill();
    fs::write(server.path("data/cri/sandboxes").join(format!("{hurt}.json")), b"\0\0\0\0").unwrap();
    fs::write(server.path("data/cri/containers").join(format!("{spoilt}.json")), b"{\"version\":1").unwrap();
    server.start_again().await;
    assert_eq!(server.pods().await, [(well.clone(), PodSandboxState::SandboxReady)]);
    assert_eq!(server.status(&lives).await.state(), ContainerState::ContainerRunning);
    // The kubelet makes another pod in the place of the one that nobody can name: its processes must not go on.
    let left = server.cgroup(&format!("/pods/{hurt}/{stray}"));
    assert!(left.pids_recursive().unwrap().is_empty());
    assert!(!server.pod_dir(&hurt).exists());
    let log = server.log();
    assert!(log.contains("record set aside") && log.contains(&hurt) && log.contains(&spoilt), "{log}");
    assert!(server.path("data/cri/damaged").join(format!("sandboxes-{hurt}.json")).exists());
    let again = server.run_pod(server.pod("hurt")).await;
    server.run(&again, shell("stray", "exec sleep 1000")).await;
    server.remove_pod(&well).await.unwrap();
}
