//! What a caller hands over to a container and hears from it: descriptors, and the service manager's socket.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{World, eventually};

#[test]
fn descriptors_are_preserved_as_far_as_there_are_any() {
    let world = World::new(&["ls", "/proc/self/fd"]);
    world.save();
    let open = world.path("open");
    std::fs::write(&open, "").expect("write");
    let oci = env!("CARGO_BIN_EXE_sampan-oci");
    let run = |shell: &str, count: &str| {
        let mut command = std::process::Command::new("sh");
        let script = format!(
            "{shell}; exec {oci} --root {} run --bundle {} --preserve-fds {count} {}",
            world.state_root().display(),
            world.bundle().display(),
            world.id
        );
        command.args(["-c", &script]).output().expect("sh")
    };
    // A gap is no error, and nothing of the runtime's takes its place.
    let redirect = format!("exec 3<{0} 4<{0} 5<&- 6<&- 7<{0} 8<&- 9<&-", open.display());
    for (count, expect) in [("5", "0\n1\n2\n3\n4\n5\n7\n"), ("1", "0\n1\n2\n3\n4\n"), ("0", "0\n1\n2\n3\n")] {
        let said = run(&redirect, count);
        // The lowest free one is the directory that ls itself has open.
        assert_eq!(String::from_utf8_lossy(&said.stdout), expect, "{said:?}");
    }
    assert!(run(&redirect, "100").status.success());
}

/// What the manager gets when the container says `words`.
fn notified(world: &World, words: &[&str]) -> Vec<String> {
    let host = UnixDatagram::bind(world.path("manager.sock")).expect("bind");
    host.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut command = world.command();
    command
        .env("NOTIFY_SOCKET", world.path("manager.sock"))
        .arg("run")
        .arg("--bundle")
        .arg(world.bundle())
        .arg(&world.id);
    let mut child = command.stdout(Stdio::null()).spawn().expect("spawn");
    let inside = world.state_root().join(&world.id).join("notify/notify");
    eventually("the socket is there", || inside.exists());
    // The container's own side has no program that could send; from here it is the same socket.
    let sender = UnixDatagram::unbound().expect("socket");
    for words in words {
        eventually("sent", || sender.send_to(words.as_bytes(), &inside).is_ok());
    }
    let mut buffer = [0; 256];
    let length = host.recv(&mut buffer).expect("a notification");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    eventually("running", || world.oci(&["kill"], &["KILL"]).code == 0);
    child.wait().expect("wait");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn readiness_reaches_the_service_manager() {
    let mut world = World::new(&["sh", "-c", "test -S \"$NOTIFY_SOCKET\" && sleep 1000"]);
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/test")).expect("symlink");
    world.config["root"]["readonly"] = serde_json::json!(true);
    world.save();
    assert_eq!(notified(&world, &["STATUS=warming up", "X=1\nREADY=1\nMAINPID=1"]), ["READY=1"]);
    world.assert_gone();
}

#[test]
fn a_detached_run_waits_for_readiness_and_names_the_process() {
    let world = World::new(&["sleep", "1000"]);
    world.save();
    let host = UnixDatagram::bind(world.path("manager.sock")).expect("bind");
    host.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut command = world.command();
    command.env("NOTIFY_SOCKET", world.path("manager.sock")).args(["run", "--detach", "--bundle"]);
    let mut child = command.arg(world.bundle()).arg(&world.id).stdout(Stdio::null()).spawn().expect("spawn");
    let inside = world.state_root().join(&world.id).join("notify/notify");
    eventually("the socket is there", || inside.exists());
    eventually("running", || world.status() == "running");
    assert!(child.try_wait().expect("wait").is_none(), "it did not wait");
    UnixDatagram::unbound().expect("socket").send_to(b"READY=1", &inside).expect("send");
    let mut buffer = [0; 256];
    let length = host.recv(&mut buffer).expect("a notification");
    assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("READY=1\nMAINPID={}", world.pid()));
    assert_eq!(child.wait().expect("wait").code(), Some(0));
    // One that ends without a word keeps nobody waiting.
    world.oci(&["delete", "--force"], &[]).good();
    let mut quiet = World::new(&["true"]);
    quiet.config["process"]["args"] = serde_json::json!(["true"]);
    quiet.save();
    let mut command = quiet.command();
    command.env("NOTIFY_SOCKET", world.path("manager.sock")).args(["run", "--detach", "--bundle"]);
    assert!(command.arg(quiet.bundle()).arg(&quiet.id).status().expect("run").success());
}
