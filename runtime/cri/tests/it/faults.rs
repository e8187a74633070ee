//! What goes wrong beside the server: shims that hang, disks that are full, callers that give up, a directory that is gone.

use std::fs;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use runtime_cri_api::v1::*;

use crate::server::{Server, eventually, shell};

/// As a container that stops its own exec does to a shim without deadlines.
#[tokio::test]
async fn a_pod_whose_shim_hangs_is_stopped_and_removed_by_the_kernel() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let ids = [
        server.run(&pod, shell("one", "exec sleep 1000")).await,
        server.run(&pod, shell("two", "exec sleep 1000")).await,
    ];
    let shim = server.shim_pid(&pod);
    kill(shim, Signal::SIGSTOP).unwrap();
    // One container alone: its end is true, and the rest of the pod goes on.
    server.stop_container(&ids[0], 0).await.unwrap();
    let status = server.status(&ids[0]).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    assert_eq!(server.status(&ids[1]).await.state(), ContainerState::ContainerRunning);
    let begun = Instant::now();
    server.stop_pod(&pod).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_eq!(server.status(&ids[1]).await.state(), ContainerState::ContainerExited);
    assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxNotready)]);
    server.remove_pod(&pod).await.unwrap();
    assert!(server.cgroup("").pids_recursive().unwrap().is_empty());
    assert!(server.pods().await.is_empty());
    eventually("the shim is gone", async || kill(shim, None).is_err()).await;
}

/// Looking is answered while a shim hangs, and while work on its pod waits for it.
#[tokio::test]
async fn looking_never_waits_for_work() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exec sleep 1000")).await;
    kill(server.shim_pid(&pod), Signal::SIGSTOP).unwrap();
    let mut client = server.runtime.clone();
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    let stopping = tokio::spawn(async move { client.stop_pod_sandbox(request).await });
    let mut looks = 0;
    while !stopping.is_finished() {
        let begun = Instant::now();
        server.pods().await;
        server.status(&id).await;
        server.pod_status(&pod).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        looks += 1;
    }
    stopping.await.unwrap().unwrap();
    assert!(looks > 3, "{looks}");
}

/// Records in a file system of their own, which is then filled to its last block and inode.
#[tokio::test]
async fn a_full_disk_loses_no_end_and_keeps_nobody_from_stopping_and_removing() {
    let mut server = Server::start().await;
    server.kill();
    let records = server.path("data/cri");
    mount(Some("small"), &records, Some("tmpfs"), MsFlags::empty(), Some("size=512k,nr_inodes=64")).unwrap();
    server.start_again().await;
    let pod = server.run_pod(server.pod("web")).await;
    let ends = server.run(&pod, shell("ends", "while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 8")).await;
    let lives = server.run(&pod, shell("lives", "exec sleep 1000")).await;
    fill(&records);
    server.said(&ends, &["touch", "/tmp/end"]).await;
    assert_eq!(server.until_exited(&ends).await.exit_code, 8);
    // Nothing new is begun, and what there is can be ended.
    assert!(server.try_create(&pod, shell("new", "true")).await.is_err());
    server.stop_container(&lives, 0).await.unwrap();
    server.remove_container(&lives).await.unwrap();
    assert!(server.log().contains("record not written; kept in memory"), "{}", server.log());
    empty(&records);
    let record = records.join("containers").join(format!("{ends}.json"));
    eventually("the end is written", async || {
        fs::read_to_string(&record).is_ok_and(|text| text.contains("\"code\":8"))
    })
    .await;
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
}

fn fill(dir: &std::path::Path) {
    // Blocks first, then inodes.
    let big = vec![0_u8; 4096];
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut file, &big).is_ok() {}
    for number in 0..200 {
        if fs::File::create(dir.join(format!("filler-{number}"))).is_err() {
            return;
        }
    }
    panic!("not full");
}

fn empty(dir: &std::path::Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("filler") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// containerd takes back what nobody waited for; so the retry by the same name succeeds, whenever the first was given up.
#[tokio::test]
async fn a_request_that_was_given_up_can_be_made_again() {
    let mut server = Server::start().await;
    for milliseconds in [0, 1, 2, 5, 10, 20, 40] {
        let config = server.pod(&format!("p{milliseconds}"));
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let mut client = server.runtime.clone();
        let asked = client.run_pod_sandbox(request);
        let first = tokio::time::timeout(Duration::from_millis(milliseconds), asked).await;
        let pod = match (first, server.try_run_pod(config).await) {
            (Ok(first), Err(again)) => {
                assert_eq!(again.code(), tonic::Code::AlreadyExists);
                first.unwrap().into_inner().pod_sandbox_id
            }
            (Err(_given_up), again) => again.unwrap(),
            (Ok(_), Ok(_)) => panic!("one name, two pods"),
        };
        assert_eq!(server.pods().await, [(pod.clone(), PodSandboxState::SandboxReady)]);
        let config = shell("main", "exec sleep 1000");
        let request =
            CreateContainerRequest { pod_sandbox_id: pod.clone(), config: Some(config.clone()), sandbox_config: None };
        let mut client = server.runtime.clone();
        let asked = client.create_container(request);
        let first = tokio::time::timeout(Duration::from_millis(milliseconds), asked).await;
        match (first, server.try_create(&pod, config).await) {
            (Err(_given_up), again) => drop(again.unwrap()),
            (Ok(_), Err(again)) => assert_eq!(again.code(), tonic::Code::AlreadyExists),
            (Ok(_), Ok(_)) => panic!("one name, two containers"),
        }
        assert_eq!(server.containers().await.len(), 1);
        server.remove_pod(&pod).await.unwrap();
    }
}

/// Kill and remove at once, again and again: an end that comes late must not write a record that was removed.
#[tokio::test]
async fn a_record_never_comes_back_after_its_removal() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    for _ in 0..30 {
        let id = server.run(&pod, shell("main", "sleep 0.01")).await;
        let removals = (0..3).map(|_| {
            let mut client = server.runtime.clone();
            let request = RemoveContainerRequest { container_id: id.clone() };
            async move { client.remove_container(request).await }
        });
        for outcome in futures::future::join_all(removals).await {
            outcome.unwrap();
        }
        assert!(server.containers().await.is_empty());
    }
    assert_eq!(fs::read_dir(server.path("data/cri/containers")).unwrap().count(), 0);
    server.restart().await;
    assert!(server.containers().await.is_empty());
}

#[tokio::test]
async fn a_run_directory_that_is_deleted_ends_its_pods_and_others_start() {
    let mut server = Server::start().await;
    let pod = server.run_pod(server.pod("web")).await;
    server.run(&pod, shell("main", "exec sleep 1000")).await;
    for mounted in crate::server::mounts_below(&server.path("run")) {
        nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    fs::remove_dir_all(server.path("run")).unwrap();
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
    assert!(server.cgroup("").pids_recursive().unwrap().is_empty());
    let again = server.run_pod(server.pod("web")).await;
    let id = server.run(&again, shell("main", "exec sleep 1000")).await;
    assert_eq!(server.said(&id, &["echo", "here"]).await, "here\n");
}
