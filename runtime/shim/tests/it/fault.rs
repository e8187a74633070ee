//! What must not hurt: dead and slow clients, a dead daemon, a dead shim.

use crate::sandbox::{Sandbox, eventually, kill_and_wait, pipes};
use runtime_shim::protocol::{Call, Request};
use runtime_shim::{Client, ContainerState, Target, record, socket, wire};
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn a_new_daemon_finds_everything() {
    let (sandbox, mut client) = Sandbox::started();
    let running = sandbox.run(&mut client, "running", "echo up; sleep 1000");
    sandbox.run(&mut client, "ended", "exit 4");
    client.create(sandbox.create("created", "true")).unwrap();
    client.wait(Target::container("ended")).unwrap();
    let before = client.info().unwrap();
    drop(client);
    let (info, _events) = Client::connect(&sandbox.dir()).unwrap().subscribe().unwrap();
    assert_eq!(serde_json::to_value(&info).unwrap(), serde_json::to_value(&before).unwrap());
    let states: Vec<_> = info.containers.iter().map(|container| (container.id.as_str(), container.state)).collect();
    let expect =
        [("created", ContainerState::Created), ("ended", ContainerState::Exited), ("running", ContainerState::Running)];
    assert_eq!(states, expect);
    assert_eq!(info.containers[2].pid, running);
    assert_eq!(info.containers[1].exit.as_ref().unwrap().code, 4);
}

#[test]
fn a_client_that_dies_in_mid_request_hurts_nobody() {
    let (sandbox, mut client) = Sandbox::started();
    let create = Request::Create(Box::new(sandbox.create("c1", "sleep 1000")));
    let frame = wire::encode(&Call { seq: 1, request: create }).unwrap();
    for cut in [1, 4, 5, frame.len() / 2, frame.len() - 1] {
        let mut stream = socket::connect(&sandbox.dir()).unwrap();
        stream.write_all(&frame[..cut]).unwrap();
    }
    assert!(client.info().unwrap().containers.is_empty());
    // Whole, but nobody waits for the answer: it is done all the same, and found by the next.
    socket::connect(&sandbox.dir()).unwrap().write_all(&frame).unwrap();
    eventually("it was created", || client.info().unwrap().containers.len() == 1);
    // Rubbish ends its own connection only.
    let mut rubbish = socket::connect(&sandbox.dir()).unwrap();
    rubbish.write_all(&[0xff; 64]).unwrap();
    assert_eq!(rubbish.read(&mut [0; 8]).unwrap_or(0), 0);
    client.delete_forced("c1").unwrap();
}

#[test]
fn a_subscriber_that_does_not_read_loses_events_and_is_told() {
    let (sandbox, mut client) = Sandbox::started();
    let (_, mut events) = Client::connect(&sandbox.dir()).unwrap().subscribe().unwrap();
    events.set_deadline(Some(Duration::from_secs(10))).unwrap();
    sandbox.run(&mut client, "c1", "sleep 1000");
    // A long name makes long events: the socket and the queue fill sooner.
    let name = "x".repeat(1000);
    let ended = 700;
    for number in 0..ended {
        let exec_id = format!("{name}{number}");
        client.exec(crate::sandbox::exec("c1", &exec_id, "true"), Default::default()).unwrap();
        client.wait(Target::exec("c1", &exec_id)).unwrap();
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < ended {
        match events.wait().unwrap() {
            runtime_shim::Event::Exited(_) => seen += 1,
            runtime_shim::Event::Lost { events } => lost += events,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen > 0 && lost > 0, "{seen} seen, {lost} lost");
}

#[test]
fn an_attached_client_that_does_not_read_is_detached_and_the_container_goes_on() {
    let (sandbox, mut client) = Sandbox::started();
    let mut create = sandbox.create("c1", "dd if=/dev/zero bs=65536 count=64 2>/dev/null; echo; echo done >&2");
    create.log_path = None;
    let mut spec = sandbox.spec("c1", "head -c 4000000 /proc/self/exe; echo done >&2; sleep 1000");
    spec["process"]["args"] = serde_json::json!([
        "/bin/sh",
        "-c",
        "i=0; while [ $i -lt 6 ]; do cat /bin/busybox; i=$((i+1)); done; echo done >&2; exit 6"
    ]);
    create.bundle = sandbox.bundle("c1", &spec);
    client.create(create).unwrap();
    let (theirs, stuck) = pipes();
    client.attach("c1", theirs).unwrap();
    client.start("c1").unwrap();
    // Other requests are answered while the container waits for the client.
    eventually("the client is attached", || client.info().unwrap().containers[0].attached == 1);
    // After ten seconds without a byte taken it is let go.
    let exit = client.wait(Target::container("c1")).unwrap();
    assert_eq!(exit.code, 6);
    drop(stuck);
}

#[test]
fn the_containers_of_a_killed_shim_are_cleared_away_with_a_record() {
    let (sandbox, mut client) = Sandbox::started();
    let pid = sandbox.run(&mut client, "lost", "sleep 1000");
    sandbox.run(&mut client, "ended", "exit 4");
    client.wait(Target::container("ended")).unwrap();
    kill_and_wait(client.info().unwrap().shim_pid);
    assert!(sandbox.container_cgroup("lost").pids().unwrap().contains(&pid));
    let records = runtime_shim::orphan::clean_up(&sandbox.dir()).unwrap();
    let facts: Vec<_> = records.iter().map(|record| (record.id.as_str(), record.code, record.lost)).collect();
    assert_eq!(facts, [("ended", 4, false), ("lost", record::LOST_CODE, true)]);
    assert!(!sandbox.container_cgroup("lost").exists());
    assert_eq!(runtime_shim::orphan::clean_up(&sandbox.dir()).unwrap(), records);
    sandbox.spawn().unwrap();
}
