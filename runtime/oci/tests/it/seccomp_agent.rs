//! Profiles that ask an agent: it gets the descriptor and the container's state, whatever calls the profile asks about.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use runtime_linux::fd_passing;
use serde_json::{Value, json};

use crate::harness::{Said, World, eventually};

/// An agent at `path` that takes one descriptor, says what came with it, and lets go of it: what the container asks is then answered by the
/// kernel with ENOSYS, as soon as nobody has the descriptor any more.
fn agent(world: &World) -> JoinHandle<(Value, usize)> {
    let listener = UnixListener::bind(world.path("agent.sock")).expect("bind");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let (mut text, mut descriptors): ([u8; 4096], Vec<OwnedFd>) = ([0; 4096], Vec::new());
        let length = fd_passing::receive(&stream, &mut text, &mut descriptors).expect("receive");
        (serde_json::from_slice(&text[..length]).expect("json"), descriptors.len())
    })
}

fn world(names: &[&str], arguments: &[&str]) -> World {
    let mut world = World::new(arguments);
    world.config["process"]["noNewPrivileges"] = json!(true);
    world.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": world.path("agent.sock"),
        "listenerMetadata": "whose it is",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    });
    world
}

/// Ends also where the process waits for ever: then the test fails, and the container is killed with its world.
fn in_time(mut command: Command) -> Said {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("run sampan-oci");
    let mut code = None;
    eventually("the container's end", || {
        code = child.try_wait().expect("wait");
        code.is_some()
    });
    Said { out: String::new(), err: String::new(), code: code.and_then(|code| code.code()).unwrap_or(-1) }
}

#[test]
fn calls_that_hand_the_descriptor_over_may_be_asked_about() {
    // All that could be used to send it, and to wait for who sends it.
    let names = ["sendmsg", "sendto", "write", "writev", "close", "pidfd_getfd", "dup", "fcntl"];
    let world = world(&names, &["true"]);
    let agent = agent(&world);
    world.save();
    let mut command = world.command();
    command.args(["run", "--bundle"]).arg(world.bundle()).arg(&world.id);
    in_time(command).good();
    let (message, descriptors) = agent.join().expect("agent");
    assert_eq!(descriptors, 1);
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!(message["metadata"], json!("whose it is"));
    assert_eq!(message["state"]["id"], json!(world.id));
    assert_eq!(message["pid"], message["state"]["pid"]);
    world.assert_gone();
}

#[test]
fn an_exec_asks_the_agent_too() {
    let world = world(&["sendmsg", "write", "close"], &["sleep", "1000"]);
    let first = agent(&world);
    world.start_all();
    assert_eq!(first.join().expect("agent").1, 1);
    std::fs::remove_file(world.path("agent.sock")).expect("remove");
    let second = agent(&world);
    let mut command = world.command();
    command.arg("exec").arg(&world.id).arg("true");
    in_time(command).good();
    let (message, descriptors) = second.join().expect("agent");
    assert_eq!((descriptors, &message["state"]["id"]), (1, &json!(world.id)));
}

#[test]
fn nobody_at_the_agents_socket_is_an_error() {
    let world = world(&["write"], &["true"]);
    assert!(world.run().bad().contains("failed to connect with seccomp agent"));
    world.assert_gone();
}
