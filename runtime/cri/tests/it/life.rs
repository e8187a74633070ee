//! The life of a pod and its containers, as kubelets lead it.

use std::fs;

use runtime_cri_api::v1::*;

use crate::server::{Server, command, security, shell};

#[tokio::test]
async fn a_pod_lives_and_leaves_nothing() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxReady)]);
    let id = server.create(&pod, shell("main", "echo said; echo told >&2; exec sleep 1000")).await;
    assert_eq!(server.status(&id).await.state(), ContainerState::ContainerCreated);
    server.start_container(&id).await.unwrap();
    let status = server.status(&id).await;
    assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerRunning, ""));
    assert_eq!(status.log_path, server.path("logs/main.log").display().to_string());
    crate::server::eventually("both lines are in the log", async || {
        let log = fs::read_to_string(server.path("logs/main.log")).unwrap_or_default();
        log.contains("stdout F said\n") && log.contains("stderr F told\n")
    })
    .await;
    // Twice the same name is refused, and the first goes on.
    let again = server.try_create(&pod, shell("main", "true")).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::AlreadyExists);
    server.stop_container(&id, 0).await.unwrap();
    let status = server.status(&id).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    for _ in 0..2 {
        server.stop_container(&id, 0).await.unwrap();
        server.remove_container(&id).await.unwrap();
        server.stop_pod(&pod).await.unwrap();
        server.remove_pod(&pod).await.unwrap();
    }
    assert!(server.pods().await.is_empty() && server.containers().await.is_empty());
    for below in ["run/pods", "data/cri/sandboxes", "data/cri/containers", "data/images/s", "data/cri/volumes"] {
        let left: Vec<_> = fs::read_dir(server.path(below)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{below}: {left:?}");
    }
    assert!(server.cgroup("").pids_recursive().unwrap().is_empty());
}

#[tokio::test]
async fn an_end_has_its_code_and_reason() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    for (number, (script, code, reason)) in
        [("true", 0, "Completed"), ("exit 3", 3, "Error"), ("sh -c 'kill -9 $$'; exit $?", 137, "Error")]
            .into_iter()
            .enumerate()
    {
        let id = server.run(&pod, shell(&format!("c{number}"), script)).await;
        let status = server.until_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{script}");
        assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
    }
}

/// As containerd has it: 128, `StartError`, and a start time that is none.
#[tokio::test]
async fn a_program_that_is_not_there_is_the_failure_of_its_start() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let directory = ContainerConfig { working_dir: "/etc/passwd".into(), ..shell("cwd", "true") };
    for (config, word) in [
        (command("missing", &["/no/such/program"]), "/no/such/program"),
        (command("unfound", &["nosuchprogram"]), "nosuchprogram"),
        (command("directory", &["/tmp"]), "/tmp"),
        (directory, "/etc/passwd"),
    ] {
        let id = server.create(&pod, config).await;
        let error = server.start_container(&id).await.unwrap_err();
        assert!(error.message().contains(word), "{error}");
        let status = server.status(&id).await;
        let told = (status.state(), status.exit_code, status.reason.as_str());
        assert_eq!(told, (ContainerState::ContainerExited, 128, "StartError"), "{word}");
        assert!(status.message.contains(word), "{}", status.message);
        assert!(status.finished_at > 0);
        server.remove_container(&id).await.unwrap();
    }
    // A container that was refused and never started goes with its pod, also after a restart.
    let id = server.create(&pod, command("missing", &["/no/such/program"])).await;
    server.restart().await;
    assert_eq!(server.status(&id).await.state(), ContainerState::ContainerCreated);
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
    assert!(server.containers().await.is_empty());
}

#[tokio::test]
async fn the_effective_stop_signal_is_told_and_sent() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let script = "trap 'exit 5' USR1; trap 'exit 6' TERM; while :; do sleep 0.05; done";
    let own = ContainerConfig { stop_signal: Signal::Sigterm.into(), ..shell("own", script) };
    for (config, signal, code) in [(shell("image", script), Signal::Sigusr1, 5), (own, Signal::Sigterm, 6)] {
        let id = server.run(&pod, config).await;
        assert_eq!(server.status(&id).await.stop_signal(), signal);
        crate::server::eventually("the shell has its traps", async || {
            let masks = server.said(&id, &["grep", "SigCgt", "/proc/1/status"]).await;
            u64::from_str_radix(masks.trim_start_matches("SigCgt:").trim(), 16).unwrap() & (1 << 14) != 0
        })
        .await;
        server.stop_container(&id, 30).await.unwrap();
        assert_eq!(server.status(&id).await.exit_code, code);
    }
}

#[tokio::test]
async fn one_that_ignores_its_signal_is_killed_when_its_time_is_over_and_a_shorter_stop_gets_through() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("deaf", "trap '' USR1 TERM; while :; do sleep 0.05; done")).await;
    let mut patient = server.runtime.clone();
    let request = StopContainerRequest { container_id: id.clone(), timeout: i64::MAX };
    let waiting = tokio::spawn(async move { patient.stop_container(request).await });
    server.stop_container(&id, 1).await.unwrap();
    assert_eq!(server.status(&id).await.exit_code, 137);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn volumes_of_the_image_are_made_filled_and_writable_below_a_read_only_root() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let mut config = shell("main", "exec sleep 1000");
    security(&mut config).readonly_rootfs = true;
    let id = server.run(&pod, config).await;
    assert_eq!(server.said(&id, &["cat", "/data/seed"]).await, "planted");
    assert_eq!(server.said(&id, &["stat", "-c", "%a", "/data", "/data/seed", "/fresh"]).await, "750\n640\n755\n");
    server.said(&id, &["sh", "-c", "echo mine > /data/own && echo mine > /fresh/own"]).await;
    assert_ne!(server.exec(&id, &["touch", "/etc/own"]).await.unwrap().exit_code, 0);
    // Another container has its own, and a mount stands for the volume.
    let host = server.path("mounted");
    let mounts =
        vec![Mount { container_path: "/x/../data/".into(), host_path: host.display().to_string(), ..Mount::default() }];
    let other = server.run(&pod, ContainerConfig { mounts, ..shell("other", "exec sleep 1000") }).await;
    assert_eq!(server.said(&other, &["ls", "/data", "/fresh"]).await, "/data:\n\n/fresh:\n");
    server.said(&other, &["touch", "/data/there"]).await;
    assert!(host.join("there").exists());
    assert_eq!(fs::read_dir(server.path("data/cri/volumes")).unwrap().count(), 2);
    server.stop_container(&id, 0).await.unwrap();
    server.remove_container(&id).await.unwrap();
    assert_eq!(fs::read_dir(server.path("data/cri/volumes")).unwrap().count(), 1);
}

#[tokio::test]
async fn what_a_container_is_given_is_what_it_has() {
    let mut server = Server::start().await;
    let mut config = server.pod("web");
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.1".into()],
        searches: vec!["a.test".into(), "b.test".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = server.run_pod(config).await;
    let mut config = shell("main", "exec sleep 1000");
    config.envs = vec![KeyValue { key: "SECRET".into(), value: b"hidden".to_vec() }];
    config.working_dir = "/tmp".into();
    security(&mut config).run_as_username = "web".into();
    let id = server.run(&pod, config).await;
    assert_eq!(server.said(&id, &["sh", "-c", "echo $SECRET; pwd; id -u; id -g"]).await, "hidden\n/tmp\n33\n34\n");
    let resolv = server.said(&id, &["cat", "/etc/resolv.conf"]).await;
    assert_eq!(resolv, "search a.test b.test\nnameserver 192.0.2.1\noptions ndots:5\n");
    assert!(server.said(&id, &["cat", "/etc/hosts"]).await.contains("localhost"));
    assert_eq!(server.said(&id, &["sh", "-c", "echo x > /dev/shm/x; cat /dev/shm/x"]).await, "x\n");
    let user = server.status(&id).await.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (33, 34));
}

#[tokio::test]
async fn limits_change_in_place_and_statistics_are_told() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let mut config = shell("main", "dd if=/dev/zero of=/tmp/file bs=1024 count=64; exec sleep 1000");
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..LinuxContainerResources::default() });
    let id = server.run(&pod, config).await;
    let wanted = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..LinuxContainerResources::default() };
    let request =
        UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(wanted), ..Default::default() };
    server.runtime.update_container_resources(request).await.unwrap();
    let resources = server.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 96 << 20);
    let stats = server.runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap().into_inner();
    let stats = stats.stats.into_iter().find(|stats| stats.attributes.as_ref().unwrap().id == id).unwrap();
    let memory = stats.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0);
    let limit = memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value;
    assert_eq!(limit, 96 << 20);
    let pods = server.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
    assert_eq!(pods.into_inner().stats[0].linux.as_ref().unwrap().containers.len(), 1);
    let metrics = server.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
    assert_eq!(metrics.into_inner().pod_metrics.len(), 1);
}

#[tokio::test]
async fn a_log_that_was_renamed_away_is_opened_anew() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "while :; do echo tick; sleep 0.05; done")).await;
    let (log, old) = (server.path("logs/main.log"), server.path("logs/main.log.1"));
    crate::server::eventually("it is written", async || fs::metadata(&log).is_ok_and(|file| file.len() > 0)).await;
    fs::rename(&log, &old).unwrap();
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    server.runtime.reopen_container_log(request.clone()).await.unwrap();
    crate::server::eventually("the new one is written", async || fs::metadata(&log).is_ok_and(|file| file.len() > 0))
        .await;
    server.stop_container(&id, 0).await.unwrap();
    let refused = server.runtime.reopen_container_log(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn images_are_listed_used_and_removed_by_any_number_at_once() {
    let mut server = Server::start().await;
    let listed = server.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed[0].repo_tags, [crate::image::NAME]);
    let usage = server.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
    let image = Some(ImageSpec { image: listed[0].id.clone(), ..ImageSpec::default() });
    let removals = (0..8).map(|_| {
        let (mut images, image) = (server.images.clone(), image.clone());
        async move { images.remove_image(RemoveImageRequest { image }).await }
    });
    for outcome in futures::future::join_all(removals).await {
        outcome.unwrap();
    }
    let status = server.images.image_status(ImageStatusRequest { image, verbose: false }).await.unwrap();
    assert!(status.into_inner().image.is_none());
}

#[tokio::test]
async fn what_is_unknown_is_told_so_by_every_call() {
    let mut server = Server::start().await;
    let id = "0123456789abcdef".to_owned();
    let not_found = |outcome: Result<(), tonic::Status>| assert_eq!(outcome.unwrap_err().code(), tonic::Code::NotFound);
    not_found(server.start_container(&id).await);
    not_found(server.exec(&id, &["true"]).await.map(drop));
    not_found(server.try_create(&id, shell("main", "true")).await.map(drop));
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
    not_found(server.runtime.container_status(request).await.map(drop));
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    not_found(server.runtime.pod_sandbox_status(request).await.map(drop));
    not_found(server.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.map(drop));
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    not_found(server.runtime.pod_sandbox_stats(request).await.map(drop));
    let request = PortForwardRequest { pod_sandbox_id: id.clone(), port: vec![80] };
    not_found(server.runtime.port_forward(request).await.map(drop));
    // What is gone is stopped and removed.
    server.stop_container(&id, 1).await.unwrap();
    server.remove_container(&id).await.unwrap();
    server.stop_pod(&id).await.unwrap();
    server.remove_pod(&id).await.unwrap();
    let version = server.runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("sampan", "v1"));
    let status = server.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner().status.unwrap();
    let is_so = |kind: &str| status.conditions.iter().find(|condition| condition.r#type == kind).unwrap().status;
    assert!(is_so("RuntimeReady") && !is_so("NetworkReady"));
    let pod = server.pod("web");
    let bad = PodSandboxConfig { metadata: None, ..pod.clone() };
    assert_eq!(server.try_run_pod(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: "kata".into() };
    assert_eq!(server.runtime.run_pod_sandbox(request).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}
