//! What must not hurt: dead and slow clients, a dead daemon, a dead shim.

use crate::sandbox::{Sandbox, eventually, kill_and_wait, pipes};
use runtime_shim::orphan::{self, OrphanError};
use runtime_shim::protocol::{Call, Message, OLDEST, PROTOCOL, Request};
use runtime_shim::{Client, ClientError, ContainerState, FailureCode, Reply, Target, record, socket, wire};
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
    let records = runtime_shim::orphan::clean_up(&sandbox.dir()).unwrap().records;
    let facts: Vec<_> = records.iter().map(|record| (record.id.as_str(), record.code, record.lost)).collect();
    assert_eq!(facts, [("ended", 4, false), ("lost", record::LOST_CODE, true)]);
    assert!(!sandbox.container_cgroup("lost").exists());
    assert_eq!(runtime_shim::orphan::clean_up(&sandbox.dir()).unwrap().records, records);
    sandbox.spawn().unwrap();
}

#[test]
fn nobody_clears_away_what_he_cannot_lock() {
    let (sandbox, mut client) = Sandbox::started();
    let pid = sandbox.run(&mut client, "c1", "sleep 1000");
    let shim = client.info().unwrap().shim_pid;
    let signal = |number| runtime_linux::pidfd::send_signal(runtime_linux::pidfd::open(shim).unwrap(), number).unwrap();
    // Stopped, it answers nobody and is not gone.
    signal(19);
    let failure =
        Client::connect_within(&sandbox.dir(), Duration::from_millis(300)).and_then(|mut client| client.info());
    assert!(matches!(failure, Err(ClientError::Deadline)), "{failure:?}");
    assert!(!failure.unwrap_err().is_gone());
    assert!(matches!(orphan::claim(&sandbox.dir()), Err(OrphanError::Alive { .. })));
    signal(18);
    assert_eq!(client.info().unwrap().containers[0].pid, pid);
    // Of two who clear away one waits for the other.
    kill_and_wait(shim);
    let claim = orphan::claim(&sandbox.dir()).unwrap();
    assert!(matches!(orphan::clean_up(&sandbox.dir()), Err(OrphanError::Alive { .. })));
    assert!(sandbox.spawn().is_err());
    assert_eq!(claim.clean_up().unwrap().records.len(), 1);
}

#[test]
fn damaged_records_are_told_and_the_rest_is_cleared_away() {
    let (sandbox, mut client) = Sandbox::started();
    for id in ["damaged", "ended", "unreadable"] {
        sandbox.run(&mut client, id, "exit 4");
        client.wait(Target::container(id)).unwrap();
    }
    kill_and_wait(client.info().unwrap().shim_pid);
    std::fs::write(record::path(&sandbox.dir(), "damaged"), "{").unwrap();
    std::fs::write(sandbox.dir().join("oci/unreadable/state.json"), "{").unwrap();
    std::fs::write(sandbox.dir().join("config.json"), "{").unwrap();
    let claim = orphan::claim(&sandbox.dir()).unwrap();
    assert!(matches!(claim.clean_up(), Err(OrphanError::Config(_))));
    let cleared = claim.clean_up_of(&sandbox.config.state_root, &sandbox.config.cgroup);
    // What cannot be read of a container that is in its cgroup cannot be cleared, and is told.
    assert!(matches!(&cleared, Err(OrphanError::Delete { id, .. }) if id == "unreadable"), "{cleared:?}");
    std::fs::remove_dir_all(sandbox.dir().join("oci/unreadable")).unwrap();
    let cleared = claim.clean_up_of(&sandbox.config.state_root, &sandbox.config.cgroup).unwrap();
    let facts: Vec<_> = cleared.records.iter().map(|record| (record.id.as_str(), record.code, record.lost)).collect();
    assert_eq!(facts, [("damaged", record::LOST_CODE, true), ("ended", 4, false), ("unreadable", 4, false)]);
    assert!(!sandbox.dir().join("ns").exists());
    sandbox.config.save(&sandbox.dir()).unwrap();
}

/// Sends frames as they are and reads the answers.
fn say(stream: &mut impl std::io::Write, text: &str) {
    let length = u32::try_from(text.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], text.as_bytes()].concat()).unwrap();
}

fn hear(stream: &mut impl std::io::Read, decoder: &mut wire::Decoder) -> Message {
    loop {
        if let Some(message) = decoder.decode().unwrap() {
            return message;
        }
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection was closed");
        decoder.push(&buffer[..count]);
    }
}

#[test]
fn what_a_shim_does_not_know_is_answered_and_the_connection_stays() {
    let (sandbox, _client) = Sandbox::started();
    let mut stream = socket::connect(&sandbox.dir()).unwrap();
    let mut decoder = wire::Decoder::default();
    let unknown = [
        r#"{"seq":1,"request":{"op":"novelty","id":"c1"}}"#,
        r#"{"seq":2,"request":{"op":"start","id":"c1","sandboxed":true}}"#,
        r#"{"seq":3,"request":{"op":"delete"}}"#,
        r#"{"seq":4,"request":7}"#,
        r#"{"seq":5,"request":{"op":"hello","protocol":0}}"#,
    ];
    for (text, number) in unknown.iter().zip(1..) {
        say(&mut stream, text);
        match hear(&mut stream, &mut decoder) {
            Message::Reply { seq, result: Err(failure) } => {
                assert_eq!((seq, failure.code), (number, FailureCode::Unsupported), "{failure}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A newer client is told what is spoken here.
    say(&mut stream, r#"{"seq":6,"request":{"op":"hello","protocol":99}}"#);
    let Message::Reply { result: Ok(Reply::Hello(greeting)), .. } = hear(&mut stream, &mut decoder) else { panic!() };
    assert_eq!((greeting.protocol, greeting.oldest), (PROTOCOL, OLDEST));
    say(&mut stream, r#"{"seq":7,"request":{"op":"info"}}"#);
    assert!(matches!(hear(&mut stream, &mut decoder), Message::Reply { seq: 7, result: Ok(Reply::Info(_)) }));
    // Without a number there is nobody to answer.
    say(&mut stream, r#"{"request":{"op":"info"}}"#);
    assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn a_shim_of_the_release_before_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let listener = socket::listen(directory.path()).unwrap();
    // As protocol 1 did it: what is not understood ends the connection.
    let shim = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = vec![0; 4];
        stream.read_exact(&mut first).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        for answer in [
            r#"{"reply":{"seq":1,"result":{"Ok":{"executed":{"pid":8}}}}}"#,
            r#"{"reply":{"seq":3,"result":{"Ok":{"info":{"protocol":1,"pod_id":"p","shim_pid":5,"started_at_ns":3,"pause_pid":null,"namespaces":[],"containers":[]}}}}}"#,
        ] {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut body).unwrap();
            asked.push(String::from_utf8(body).unwrap());
            say(&mut stream, answer);
        }
        asked
    });
    let mut client = Client::connect(directory.path()).unwrap();
    let (theirs, _ours) = pipes();
    assert_eq!(client.exec(crate::sandbox::exec("c1", "e1", "true"), theirs).unwrap().pid, 8);
    assert_eq!(client.protocol(), Some(1));
    assert_eq!(client.info().unwrap().protocol, 1);
    let asked = shim.join().unwrap();
    assert!(asked[0].contains(r#""op":"exec""#) && !asked[0].contains("tied"), "{asked:?}");
    assert_eq!(asked[1], r#"{"seq":3,"request":{"op":"info"}}"#);
}

#[test]
fn unfinished_requests_hold_bounded_memory() {
    let (sandbox, mut client) = Sandbox::started();
    client.info().unwrap();
    let crowd: Vec<_> = (0..12)
        .map(|_| {
            let mut stream = socket::connect(&sandbox.dir()).unwrap();
            // Nearly a whole frame each; those beyond the limit are told so and closed.
            let _closed =
                stream.write_all(&(4_000_000u32.to_be_bytes())).and_then(|()| stream.write_all(&vec![b' '; 3_900_000]));
            stream
        })
        .collect();
    let pid = client.info().unwrap().shim_pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kilobytes < 48 * 1024, "{kilobytes} kB");
    drop(crowd);
}
