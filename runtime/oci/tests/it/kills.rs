//! kill -9 of the runtime at random moments of every operation: no exit is lost, nothing is left, and `delete` cleans up whatever it finds.
//!
//! `SAMPAN_KILL_ROUNDS` says how many rounds; 60 where it is not set.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{World, eventually};

const ROUNDS: usize = 60;
const OPERATIONS: [&str; 5] = ["create", "start", "exec", "update", "delete"];
/// What the container's process ends with when it was started.
const CODE: i32 = 7;

/// splitmix64: the same moments in every run, so far as a moment can be the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

/// One operation of the runtime's, that can be killed in the middle.
fn spawn(world: &World, operation: &str) -> std::process::Child {
    let mut command = world.command();
    command.arg(operation);
    match operation {
        "create" => {
            command.arg("--bundle").arg(world.bundle());
        }
        "update" => {
            command.args(["--pids-limit", "50"]);
        }
        "delete" => {
            command.arg("--force");
        }
        _ => {}
    }
    command.arg(&world.id);
    if operation == "exec" {
        command.arg("true");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("spawn")
}

/// How long an operation takes when nobody disturbs it.
fn duration(world: &World, operation: &str) -> Duration {
    let began = Instant::now();
    assert!(spawn(world, operation).wait().expect("wait").success(), "{operation}");
    began.elapsed()
}

/// Processes, but for zombies, that have the container's id among their arguments.
fn processes(world: &World) -> Vec<String> {
    let own = std::process::id().to_string();
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| *name != own);
    numbers
        .filter_map(|pid| Some((std::fs::read(format!("/proc/{pid}/cmdline")).ok()?, pid)))
        .map(|(line, pid)| format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")))
        .filter(|line| line.contains(&world.id))
        .collect()
}

fn world() -> World {
    let mut world = World::new(&[]);
    // The id is in the arguments of whatever the container runs.
    let script = format!("[ -e /tmp/wait ] && sleep 1000; exit {CODE}; : {}", world.id);
    world.config["process"]["args"] = json!(["sh", "-c", script]);
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/[")).expect("symlink");
    world.save();
    world
}

/// The end of an orphan, as its new parent sees it. Others that came to us are reaped on the way: an unreaped one in a PID namespace keeps
/// that namespace's init from ending.
fn end_of(pid: i32) -> WaitStatus {
    loop {
        let status = waitpid(None::<Pid>, None).expect("an orphan of a killed runtime is ours to reap");
        if status.pid() == Some(Pid::from_raw(pid)) {
            return status;
        }
    }
}

/// Brings the world to where `operation` has its place, kills the operation at some moment, and looks at what holds.
fn round(world: &World, operation: &str, delay: Duration) {
    let wait = world.rootfs().join("tmp/wait");
    if matches!(operation, "exec" | "update" | "delete") {
        std::fs::write(&wait, "").expect("write");
        world.create().good();
        world.oci(&["start"], &[]).good();
    } else if operation == "start" {
        let _gone = std::fs::remove_file(&wait);
        world.create().good();
    }
    let pid = if operation == "create" { 0 } else { world.pid() };
    let mut child = spawn(world, operation);
    std::thread::park_timeout(delay);
    child.kill().expect("kill");
    child.wait().expect("wait");
    match operation {
        "start" => {
            // Started, or still there to be started: never in between.
            if world.status() == "created" {
                let said = world.oci(&["start"], &[]);
                assert!(said.code == 0 || world.status() != "created", "{said:?}");
            }
            let end = end_of(pid);
            assert!(matches!(end, WaitStatus::Exited(_, CODE)), "the exit of {pid} is lost: {end:?}");
            eventually("stopped", || world.status() == "stopped");
            world.oci(&["delete"], &[]).good();
        }
        "exec" | "update" => {
            assert_eq!(world.status(), "running", "{operation} hurt the container");
            world.oci(&["exec"], &["true"]).good();
            world.oci(&["update", "--pids-limit", "60"], &[]).good();
        }
        _ => {}
    }
    // A child of the killed one may hold the lock until it sees that it is alone.
    eventually("deleted", || world.oci(&["delete", "--force"], &[]).code == 0);
    world.assert_gone();
    if pid != 0 && operation != "start" {
        end_of(pid);
    }
    eventually("no process is left", || processes(world).is_empty());
}

/// In a process of its own, since it reaps whatever it is given.
#[test]
fn a_kill_at_any_moment_loses_and_leaves_nothing() {
    let own = std::env::current_exe().expect("the test program");
    let mut command = std::process::Command::new(own);
    command.args(["--exact", "kills::rounds", "--ignored", "--nocapture"]);
    assert!(command.status().expect("run the rounds").success());
}

#[test]
#[ignore = "run by the test above"]
fn rounds() {
    // What a killed runtime leaves behind becomes our child, as it becomes conmon's or a shim's.
    nix::sys::prctl::set_child_subreaper(true).expect("subreaper");
    let rounds = std::env::var("SAMPAN_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let world = world();
    std::fs::write(world.rootfs().join("tmp/wait"), "").expect("write");
    let longest: Vec<Duration> = OPERATIONS.iter().map(|operation| duration(&world, operation)).collect();
    let began = Instant::now();
    let mut random = Random(1);
    for number in 0..rounds {
        let (operation, longest) = (OPERATIONS[number % OPERATIONS.len()], longest[number % OPERATIONS.len()]);
        let limit = u64::try_from(longest.as_micros() * 5 / 4).unwrap_or(u64::MAX);
        round(&world, operation, Duration::from_micros(random.below(limit)));
    }
    eprintln!("{rounds} rounds in {:?}; undisturbed: {longest:?}", began.elapsed());
}
