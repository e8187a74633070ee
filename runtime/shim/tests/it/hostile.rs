//! What a hostile container, a full disk and a host without descriptors do to a shim: nothing that anybody else would notice.

use crate::sandbox::{Sandbox, eventually, exec, kill_and_wait};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use runtime_shim::{Client, ClientError, ContainerState, Event, FailureCode, PidMode, Target, record};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Execs at once in a container that hurts them: each is answered, and the rest of the pod does not notice.
fn a_hostile_container_holds_up_nobody(script: &str) {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "hostile", script);
    let dir = sandbox.dir();
    let execs: Vec<_> = (0..8)
        .map(|number| {
            let dir = dir.clone();
            thread::spawn(move || {
                let mut client = Client::connect(&dir).unwrap();
                client.exec(exec("hostile", &format!("e{number}"), "sleep 1000"), Default::default())
            })
        })
        .collect();
    for number in 0..5 {
        let id = format!("other{number}");
        sandbox.run(&mut client, &id, "echo heard; exit 3");
        assert_eq!(client.wait(Target::container(&id)).unwrap().code, 3);
        assert_eq!(sandbox.entries(&id), ["stdout F heard"]);
        client.delete(&id).unwrap();
    }
    for exec in execs {
        match exec.join().unwrap() {
            Ok(execution) => assert!(execution.pid > 0),
            Err(ClientError::Failure(failure)) => assert_eq!(failure.code, FailureCode::Failed, "{failure}"),
            Err(other) => panic!("{other:?}"),
        }
    }
    client.set_deadline(Some(Duration::from_secs(8))).unwrap();
    client.delete_forced("hostile").unwrap();
    assert!(client.info().unwrap().containers.is_empty());
}

#[test]
fn a_container_that_stops_whatever_is_started_in_it_holds_up_nobody_else() {
    a_hostile_container_holds_up_nobody("while :; do kill -STOP -1; done");
}

#[test]
fn a_container_that_kills_whatever_is_started_in_it_holds_up_nobody_else() {
    a_hostile_container_holds_up_nobody("while :; do kill -KILL -1; done");
}

#[test]
fn a_container_that_is_stopped_while_it_is_created_can_be_deleted() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    sandbox.run(&mut client, "hostile", "while :; do kill -STOP -1; done");
    for number in 0..5 {
        let id = format!("victim{number}");
        let (dir, create) = (sandbox.dir(), sandbox.create(&id, "exit 3"));
        let creation = thread::spawn(move || Client::connect(&dir).unwrap().create(create));
        eventually("it is on its way", || creation.is_finished() || sandbox.dir().join("oci").join(&id).exists());
        client.set_deadline(Some(Duration::from_secs(15))).unwrap();
        client.delete_forced(&id).unwrap();
        let _created_or_given_up = creation.join().unwrap();
        client.delete_forced(&id).unwrap();
        assert!(!sandbox.dir().join("oci").join(&id).exists());
        assert!(!sandbox.container_cgroup(&id).exists());
    }
    client.delete_forced("hostile").unwrap();
    sandbox.run(&mut client, "after", "exit 4");
    assert_eq!(client.wait(Target::container("after")).unwrap().code, 4);
}

#[test]
fn a_forced_delete_does_not_wait_for_the_execs() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    for number in 0..3 {
        client.exec(exec("c1", &format!("e{number}"), "sleep 1000"), Default::default()).unwrap();
    }
    let waiting = {
        let dir = sandbox.dir();
        thread::spawn(move || Client::connect(&dir).unwrap().wait(Target::exec("c1", "e1")))
    };
    client.set_deadline(Some(Duration::from_secs(8))).unwrap();
    client.delete_forced("c1").unwrap();
    assert!(client.info().unwrap().containers.is_empty());
    drop(waiting);
    // Two at once are both answered.
    sandbox.run(&mut client, "c2", "sleep 1000");
    let dir = sandbox.dir();
    let other = thread::spawn(move || Client::connect(&dir).unwrap().delete_forced("c2"));
    client.delete_forced("c2").unwrap();
    other.join().unwrap().unwrap();
}

#[test]
fn an_exec_that_is_tied_to_its_connection_ends_with_it() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let mut tied = exec("c1", "tied", "sleep 1000");
    tied.tied = true;
    let mut caller = Client::connect(&sandbox.dir()).unwrap();
    caller.exec(tied, Default::default()).unwrap();
    client.exec(exec("c1", "free", "sleep 1000"), Default::default()).unwrap();
    drop(caller);
    assert_eq!(client.wait(Target::exec("c1", "tied")).unwrap().signal, Some(9));
    let info = client.info().unwrap();
    let free = info.containers[0].execs.iter().find(|exec| exec.exec_id == "free").unwrap();
    assert!(free.exit.is_none());
    client.delete_forced("c1").unwrap();
}

#[test]
fn a_pause_process_that_dies_is_told() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let (info, mut events) = Client::connect(&sandbox.dir()).unwrap().subscribe().unwrap();
    events.set_deadline(Some(Duration::from_secs(20))).unwrap();
    assert!(!info.pause_lost);
    sandbox.run(&mut client, "c1", "sleep 1000");
    let pause = info.pause_pid.unwrap();
    kill_and_wait(pause);
    let (mut is_told, mut has_ended) = (false, false);
    while !(is_told && has_ended) {
        match events.wait().unwrap() {
            Event::PauseExited { pid, code } => {
                assert_eq!((pid, code), (pause, 137));
                is_told = true;
            }
            Event::Exited(exit) => {
                assert_eq!((exit.id.as_str(), exit.code), ("c1", 137));
                has_ended = true;
            }
            other => panic!("{other:?}"),
        }
    }
    let info = client.info().unwrap();
    assert!(info.pause_lost && info.pause_pid.is_none());
    client.shutdown_forced().unwrap();
}

#[test]
fn an_exit_while_the_disk_is_full_is_told_and_written_later() {
    // A mount namespace of this thread's, which the shim inherits.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let sandbox = Sandbox::new();
    mount(Some("tmpfs"), &sandbox.dir(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    let mut client = sandbox.spawn().unwrap();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let ballast = sandbox.dir().join("ballast");
    let full = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(&ballast).unwrap());
    assert_eq!(full.unwrap_err().raw_os_error(), Some(nix::libc::ENOSPC));
    client.signal(Target::container("c1"), 9).unwrap();
    assert_eq!(client.wait(Target::container("c1")).unwrap().code, 137);
    assert_eq!(client.info().unwrap().containers[0].state, ContainerState::Exited);
    assert!(record::load(&sandbox.dir(), "c1").unwrap().is_none());
    fs::remove_file(&ballast).unwrap();
    eventually("the record is written", || record::load(&sandbox.dir(), "c1").unwrap().is_some());
    client.delete("c1").unwrap();
    assert!(record::load(&sandbox.dir(), "c1").unwrap().is_none());
    client.shutdown().unwrap();
}

fn soft_limit(of: &str) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{of}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn the_shim_has_as_many_descriptors_as_it_may_and_its_containers_what_it_came_with() {
    setrlimit(Resource::RLIMIT_NOFILE, 512, 4096).unwrap();
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let info = client.info().unwrap();
    assert_eq!(soft_limit(&info.shim_pid.to_string()), 4096);
    assert_eq!(soft_limit(&info.pause_pid.unwrap().to_string()), 512);
    let pid = sandbox.run(&mut client, "c1", "sleep 1000");
    assert_eq!(soft_limit(&pid.to_string()), 512);
    let exec = client.exec(exec("c1", "e1", "sleep 1000"), Default::default()).unwrap();
    assert_eq!(soft_limit(&exec.pid.to_string()), 512);
    let mut spec = sandbox.spec("c2", "sleep 1000");
    spec["process"]["rlimits"] = serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]);
    let created = client.create(sandbox.create_from("c2", &spec)).unwrap();
    client.start("c2").unwrap();
    assert_eq!(soft_limit(&created.pid.to_string()), 99);
}

#[test]
fn a_shim_without_descriptors_pauses_and_comes_back() {
    let (sandbox, mut client) = Sandbox::started();
    let shim = client.info().unwrap().shim_pid.to_string();
    let limited = std::process::Command::new("prlimit").args(["--pid", &shim, "--nofile=40:40"]).status();
    assert!(limited.unwrap().success());
    let crowd: Vec<_> = (0..60).map(|_| runtime_shim::socket::connect(&sandbox.dir()).unwrap()).collect();
    let log = sandbox.dir().join("shim.log");
    let pauses = |log: &Path| fs::read_to_string(log).unwrap().matches("no connections for").count();
    eventually("it says so", || pauses(&log) > 0);
    drop((crowd, client));
    Client::connect(&sandbox.dir()).unwrap().info().unwrap();
    // Once a second, not as often as the kernel tells.
    assert!(pauses(&log) < 40, "{}", pauses(&log));
}
