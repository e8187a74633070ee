//! kill -9 of the server: containers live on, pods are taken over with their addresses, half-made things are undone.

use std::time::Duration;

use runtime_cri_api::v1::*;

use crate::house::{House, Process, Runtime, eventually, with_process};

/// The server answers again.
async fn up(house: &House) -> Runtime {
    eventually("the server answers", || async {
        tokio::net::UnixStream::connect(house.path("run/cri.sock")).await.is_ok()
    })
    .await;
    let mut runtime = house.connect().await;
    runtime.version(VersionRequest::default()).await.unwrap();
    runtime
}

#[test]
fn a_restart_takes_every_pod_over() {
    with_process(|house, mut process| async move {
        let mut runtime = up(&house).await;
        house.give_range(&mut runtime).await;
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let address = house.address(&mut runtime, &pod).await;
        let lives = house.start(&mut runtime, &pod, &house.container("lives", &["sleep", "1000"])).await;
        let script = "while [ ! -e /data/go ]; do sleep 0.02; done; exit 5";
        let mut config = house.container("ends", &["sh", "-c", script]);
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: house.path("flag").display().to_string(),
            ..Default::default()
        }];
        let ends = house.start(&mut runtime, &pod, &config).await;
        let created = house.create(&mut runtime, &pod, &house.container("created", &["sleep", "9"])).await.unwrap();
        let started_at = house.status(&mut runtime, &lives).await.started_at;

        process.kill();
        // One ends while nobody listens; its code is kept by the shim.
        std::fs::write(house.path("flag/go"), "").unwrap();
        process = Process::start(&house);
        let mut runtime = up(&house).await;
        let status = house.status(&mut runtime, &lives).await;
        assert_eq!((status.state(), status.started_at), (ContainerState::ContainerRunning, started_at));
        assert_eq!(house.address(&mut runtime, &pod).await, address);
        assert_eq!(house.exec(&mut runtime, &lives, &["echo", "here"]).await.1, "here\n");
        assert_eq!(house.wait_exit(&mut runtime, &ends).await.exit_code, 5);
        assert_eq!(house.status(&mut runtime, &created).await.state(), ContainerState::ContainerCreated);
        runtime.start_container(StartContainerRequest { container_id: created }).await.unwrap();
        house.remove_pod(&mut runtime, &pod).await;
        assert!(house.traces().is_empty(), "{:?}", house.traces());
        process.kill();
    });
}

#[test]
fn a_dead_shim_ends_its_pod_and_is_cleaned_up() {
    with_process(|house, process| async move {
        let mut runtime = up(&house).await;
        house.give_range(&mut runtime).await;
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let id = house.start(&mut runtime, &pod, &house.container("c", &["sleep", "1000"])).await;
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
        let info = runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let shim = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        let status = house.wait_exit(&mut runtime, &id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
        let status = runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        house.remove_pod(&mut runtime, &pod).await;
        assert!(house.traces().is_empty(), "{:?}", house.traces());
        drop(process);
    });
}

/// Killed at moments spread over a pod's making and ending, again and again: what a restarted server lists can be removed,
/// and then nothing is left.
#[test]
fn killed_at_any_moment_it_leaks_nothing() {
    with_process(|house, mut process| async move {
        let mut runtime = up(&house).await;
        house.give_range(&mut runtime).await;
        for round in 0_u64..12 {
            let mut busy = runtime.clone();
            let (pod, container) = (house.pod(&format!("p{round}")), house.container("c", &["sleep", "1000"]));
            let work = tokio::spawn(async move {
                let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
                let Ok(answer) = busy.run_pod_sandbox(request).await else { return };
                let id = answer.into_inner().pod_sandbox_id;
                let request = CreateContainerRequest {
                    pod_sandbox_id: id.clone(),
                    config: Some(container),
                    sandbox_config: None,
                };
                let Ok(answer) = busy.create_container(request).await else { return };
                let container_id = answer.into_inner().container_id;
                let _ = busy.start_container(StartContainerRequest { container_id }).await;
                let _ = busy.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
                let _ = busy.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await;
            });
            tokio::time::sleep(Duration::from_millis(7 + round * 13)).await;
            process.kill();
            work.await.unwrap();
            process = Process::start(&house);
            runtime = up(&house).await;
        }
        let listed = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
        for item in listed {
            house.remove_pod(&mut runtime, &item.id).await;
        }
        assert!(house.traces().is_empty(), "{:?}", house.traces());
        process.kill();
    });
}
