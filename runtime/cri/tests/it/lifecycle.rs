//! A pod's life: made, run, looked at, ended, and nothing left.

use runtime_cri_api::v1::*;
use tonic::Code;

use crate::house::{IMAGE, eventually, with_server};

#[test]
fn a_pod_lives_and_leaves_nothing() {
    with_server(|house, mut runtime| async move {
        let before = house.traces();
        let version = runtime.version(VersionRequest::default()).await.unwrap().into_inner();
        assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("sampan", "v1"));
        let status = runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        for condition in status.status.unwrap().conditions {
            assert!(condition.status, "{condition:?}");
        }

        let pod = house.run_pod(&mut runtime, &house.pod("web")).await;
        let address = house.address(&mut runtime, &pod).await;
        assert!(address.starts_with("10.77.0."), "{address}");
        let config = house.container("main", &["sh", "-c", "echo hello; echo problem >&2; exec sleep 1000"]);
        let id = house.start(&mut runtime, &pod, &config).await;
        eventually("the log has both lines", || {
            let log = house.log("web", "main");
            async move { log.contains("hello\n") && log.contains("problem\n") }
        })
        .await;
        let status = house.status(&mut runtime, &id).await;
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(status.user.unwrap().linux.unwrap().uid, 0);

        // Its place in the world: name, address, resolver, loopback, environment, directory.
        let (code, out, err) =
            house.exec(&mut runtime, &id, &["sh", "-c", "hostname; pwd; env; cat /etc/resolv.conf"]).await;
        assert_eq!((code, err.as_str()), (0, ""));
        for part in
            ["web\n", "/tmp\n", "FROM_IMAGE=yes", "HOSTNAME=web", "HOME=/root", "nameserver 10.43.0.10", "ndots:5"]
        {
            assert!(out.contains(part), "{part} not in {out}");
        }
        let (_, out, _) = house.exec(&mut runtime, &id, &["ip", "addr"]).await;
        assert!(out.contains(&address) && out.contains("127.0.0.1"), "{out}");
        let (code, _, err) = house.exec(&mut runtime, &id, &["sh", "-c", "echo no >&2; exit 7"]).await;
        assert_eq!((code, err.as_str()), (7, "no\n"));

        let listed = runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.containers.len(), 1);
        let stats = ContainerStatsRequest { container_id: id[..12].into() };
        let stats = runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);

        // SIGTERM does nothing to a pid 1 that does not mind it, so it is killed when its time is up.
        runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 1 }).await.unwrap();
        let status = house.status(&mut runtime, &id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
        runtime.remove_container(RemoveContainerRequest { container_id: id }).await.unwrap();
        house.remove_pod(&mut runtime, &pod).await;
        house.remove_pod(&mut runtime, &pod).await;
        assert_eq!(house.traces(), before);
    });
}

#[test]
fn names_are_reserved_and_refusals_are_clear() {
    with_server(|house, mut runtime| async move {
        let config = house.pod("one");
        let pod = house.run_pod(&mut runtime, &config).await;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let refused = runtime.run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        assert!(refused.message().contains(&pod), "{}", refused.message());

        let container = house.container("c", &["sleep", "1000"]);
        house.create(&mut runtime, &pod, &container).await.unwrap();
        let refused = house.create(&mut runtime, &pod, &container).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);

        let before = house.traces();
        let mut missing = house.container("d", &["sleep"]);
        missing.image = Some(ImageSpec { image: "no/such:1".into(), ..Default::default() });
        assert_eq!(house.create(&mut runtime, &pod, &missing).await.unwrap_err().code(), Code::NotFound);
        let mut ghost = house.container("e", &["sleep"]);
        ghost.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_username = "ghost".into();
        let refused = house.create(&mut runtime, &pod, &ghost).await.unwrap_err();
        assert!(refused.message().contains("no user \"ghost\""), "{refused}");
        // The failed create was undone whole, and its name is free again.
        assert_eq!(house.traces(), before);
        house.create(&mut runtime, &pod, &house.container("e", &["sleep", "1"])).await.unwrap();

        let refused =
            runtime.container_status(ContainerStatusRequest { container_id: "zz".into(), verbose: false }).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
        let checkpoint = runtime.checkpoint_container(CheckpointContainerRequest::default()).await;
        assert_eq!(checkpoint.unwrap_err().code(), Code::Unimplemented);
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn a_program_that_is_not_there_is_a_start_error() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let id = house.create(&mut runtime, &pod, &house.container("c", &["/no/such/program"])).await;
        let message = match id {
            Ok(id) => {
                let started = runtime.start_container(StartContainerRequest { container_id: id.clone() }).await;
                let status = house.status(&mut runtime, &id).await;
                assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
                started.unwrap_err().message().to_owned()
            }
            Err(refused) => refused.message().to_owned(),
        };
        assert!(message.contains("/no/such/program"), "{message}");
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn events_tell_a_containers_life() {
    with_server(|house, mut runtime| async move {
        let mut events = runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let id = house.start(&mut runtime, &pod, &house.container("c", &["sh", "-c", "exit 3"])).await;
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let event = events.message().await.unwrap().unwrap();
            if event.container_id == id {
                seen.push(event);
            }
        }
        let kinds: Vec<ContainerEventType> = seen.iter().map(ContainerEventResponse::container_event_type).collect();
        assert!(kinds.contains(&ContainerEventType::ContainerCreatedEvent));
        assert!(kinds.contains(&ContainerEventType::ContainerStartedEvent));
        let stopped =
            seen.iter().find(|event| event.container_event_type() == ContainerEventType::ContainerStoppedEvent);
        let stopped = &stopped.unwrap().containers_statuses[0];
        assert_eq!((stopped.exit_code, stopped.reason.as_str()), (3, "Error"));
        house.remove_pod(&mut runtime, &pod).await;
    });
}

#[test]
fn images_are_listed_and_removed() {
    with_server(|house, _| async move {
        let mut images = house.images().await;
        let listed = images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        assert_eq!(listed[0].repo_tags, [IMAGE]);
        let image = Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
        let status = ImageStatusRequest { image: image.clone(), verbose: true };
        let status = images.image_status(status).await.unwrap().into_inner();
        assert_eq!(status.image.unwrap().id, listed[0].id);
        assert!(images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner().image_filesystems.len() == 1);
        images.remove_image(RemoveImageRequest { image: image.clone() }).await.unwrap();
        images.remove_image(RemoveImageRequest { image: image.clone() }).await.unwrap();
        let status = images.image_status(ImageStatusRequest { image, verbose: false }).await.unwrap().into_inner();
        assert!(status.image.is_none());
        let bad = Some(ImageSpec { image: "UPPER CASE".into(), ..Default::default() });
        let refused = images.pull_image(PullImageRequest { image: bad, ..Default::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    });
}

#[test]
fn a_rotated_log_is_opened_anew_and_limits_change_in_place() {
    with_server(|house, mut runtime| async move {
        let pod = house.run_pod(&mut runtime, &house.pod("p")).await;
        let mut config = house.container("c", &["sh", "-c", "while read line; do echo $line; done"]);
        config.command = ["sh", "-c", "while true; do echo tick; sleep 0.05; done"].map(String::from).to_vec();
        let id = house.start(&mut runtime, &pod, &config).await;
        let log = house.path("logs/p/c.log");
        eventually("the log is begun", || {
            let log = log.clone();
            async move { log.exists() }
        })
        .await;
        std::fs::rename(&log, house.path("logs/p/c.log.1")).unwrap();
        runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
        eventually("the new log grows", || {
            let log = house.log("p", "c");
            async move { log.contains("tick") }
        })
        .await;
        let linux = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        let request =
            UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
        runtime.update_container_resources(request).await.unwrap();
        let status = house.status(&mut runtime, &id).await;
        assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 64 << 20);
        house.remove_pod(&mut runtime, &pod).await;
    });
}
