//! The command line: what is typed before, after and instead of a container's id, and what machines are told.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use runtime_linux::fd_passing;
use serde_json::{Value, json};

use crate::harness::{Said, World, eventually};

fn plain(world: &World, words: &[&str]) -> Said {
    world.command().args(words).output().expect("run sampan-oci").into()
}

#[test]
fn help_and_version_are_data() {
    let world = World::new(&["true"]);
    for command in [
        "checkpoint",
        "create",
        "delete",
        "events",
        "exec",
        "features",
        "kill",
        "list",
        "pause",
        "ps",
        "restore",
        "resume",
        "run",
        "spec",
        "start",
        "state",
        "update",
    ] {
        let said = plain(&world, &[command, "--help"]).good();
        assert!(said.starts_with(&format!("NAME:\n   sampan-oci {command} - ")), "{said}");
        assert!(plain(&world, &[command, "-h"]).good().starts_with(&format!("NAME:\n   sampan-oci {command} - ")));
    }
    assert!(plain(&world, &["-h"]).good().starts_with("NAME:\n   sampan-oci - Open Container Initiative runtime"));
    let version = plain(&world, &["-v"]).good();
    let lines: Vec<_> = version.lines().collect();
    assert!(lines[0].starts_with("sampan-oci version ") && lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("spec: 1."), "{version}");
}

#[test]
fn what_is_not_known_is_said_for_machines_too() {
    let world = World::new(&["true"]);
    assert!(plain(&world, &["nope"]).bad().contains("No help topic for 'nope'"));
    assert!(plain(&world, &["run", "--nope", "id"]).bad().contains("--nope"));
    assert!(plain(&world, &["state"]).bad().contains("<ID>"));
    assert!(plain(&world, &["kill", &world.id, "NOPE"]).bad().contains("unknown signal"));
    let line: Value = serde_json::from_str(&plain(&world, &["--log-format", "json", "nope"]).bad()).expect("json");
    assert_eq!(line["level"], json!("error"));
    let line = plain(&world, &["--log-format=json", "run", "--bundle", "/nonexistent", "x"]).bad();
    let line: Value = serde_json::from_str(&line).expect("json");
    assert_eq!((&line["errno"], &line["path"]), (&json!(2), &json!("/nonexistent/config.json")));
}

#[test]
fn flags_stand_on_either_side_of_the_id() {
    let world = World::new(&["sleep", "1000"]);
    world.save();
    let bundle = world.bundle();
    let pid_file = world.path("pid");
    let mut command = world.command();
    command
        .args(["run", &world.id, "--detach=true", "--keep=false", "--bundle"])
        .arg(bundle)
        .arg("--pid-file")
        .arg(&pid_file);
    assert!(
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .expect("run")
            .success()
    );
    assert_eq!(std::fs::read_to_string(pid_file).expect("pid file"), world.pid().to_string());
    world.oci(&["update"], &["--pids-limit", "-1"]).good();
    world.oci(&["delete"], &["-f"]).good();
    world.assert_gone();
}

#[test]
fn debug_tells_what_is_done_and_only_then() {
    let world = World::new(&["true"]);
    world.save();
    let bundle = world.bundle();
    let bundle = bundle.to_str().expect("utf-8");
    let quiet = plain(&world, &["run", "--bundle", bundle, &world.id]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
    assert!(plain(&world, &["--debug", "run", "--bundle", bundle, &world.id]).err.contains("level=debug"));
    let log = world.path("log");
    let words = [
        "--log-level",
        "debug",
        "--log-format",
        "json",
        "--log",
        log.to_str().expect("utf-8"),
        "run",
        "--bundle",
        bundle,
    ];
    let said = plain(&world, &[&words[..], &[&world.id]].concat());
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let text = std::fs::read_to_string(log).expect("log");
    assert!(
        text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == json!("debug")))
    );
    assert!(!text.is_empty());
}

#[test]
fn list_wants_the_directory_that_was_named() {
    let world = World::new(&["true"]);
    assert!(plain(&world, &["list"]).bad().contains("state"));
    std::fs::create_dir(world.state_root()).expect("mkdir");
    assert!(plain(&world, &["list", "--all"]).good().starts_with("ID"));
    assert_eq!(plain(&world, &["list", "-q"]).good(), "");
}

#[test]
fn a_pattern_means_every_container_that_it_matches() {
    let mut world = World::new(&["sleep", "1000"]);
    let own = world.id.clone();
    let names = [format!("{own}-a1"), format!("{own}-a2"), format!("{own}-b")];
    for name in &names {
        world.id.clone_from(name);
        world.start_all();
    }
    world.id = own.clone();
    plain(&world, &["kill", "--regex", &format!("^{own}-a"), "KILL"]).good();
    let left = |world: &World| plain(world, &["list", "-q"]).good().lines().map(str::to_owned).collect::<Vec<_>>();
    let is_stopped = |name: &str| {
        let state: Value = serde_json::from_str(&plain(&world, &["state", name]).good()).expect("json");
        state["status"] == json!("stopped")
    };
    eventually("stopped", || is_stopped(&names[0]) && is_stopped(&names[1]));
    assert!(!is_stopped(&names[2]));
    // The one that runs is refused, the others are deleted all the same.
    let said = plain(&world, &["delete", "--regex", &format!("^{own}-")]).bad();
    assert!(said.contains("not stopped: running") && said.contains("1 of 3"), "{said}");
    assert_eq!(left(&world), [names[2].clone()]);
    plain(&world, &["delete", "--force", "--regex", &format!("^{own}-(a|b)")]).good();
    assert_eq!(left(&world), [""; 0]);
    assert!(plain(&world, &["delete", "--regex", "("]).bad().contains("regular expression"));
}

#[test]
fn ps_has_the_columns_of_ps() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let full = world.oci(&["ps"], &[]).good();
    assert!(
        full.lines()
            .next()
            .is_some_and(|line| line.split_whitespace().eq(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]))
    );
    assert!(full.lines().nth(1).is_some_and(|line| line.starts_with("root") && line.ends_with("sleep 1000")), "{full}");
    let chosen = world.oci(&["ps"], &["-o", "pid,args"]).good();
    assert_eq!(chosen.lines().nth(1).map(|line| line.trim().to_owned()), Some(format!("{} sleep 1000", world.pid())));
    let list: Value = serde_json::from_str(&world.oci(&["ps"], &["--format", "json"]).good()).expect("json");
    assert_eq!(list, json!([world.pid()]));
    assert!(world.oci(&["ps"], &["--forest"]).bad().contains("no ps(1) is run"));
}

#[test]
fn a_created_container_ends_when_it_is_told_to() {
    let world = World::new(&["sleep", "1000"]);
    world.create().good();
    world.oci(&["kill"], &["TERM"]).good();
    eventually("stopped", || world.status() == "stopped");
    // What is started is deaf to it again, as the first of its PID namespace.
    world.oci(&["delete"], &[]).good();
    world.start_all();
    world.oci(&["kill"], &["TERM"]).good();
    assert_eq!(world.status(), "running");
}

#[test]
fn a_pidfd_goes_to_whoever_listens() {
    let world = World::new(&["sleep", "1000"]);
    world.save();
    let path = world.path("pidfd.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let receive = || {
        let (stream, _) = listener.accept().expect("accept");
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        fd_passing::receive(&stream, &mut [0; 64], &mut descriptors).expect("receive");
        descriptors.pop().expect("a descriptor")
    };
    let mut command = world.command();
    command.args(["run", "-d", "--pidfd-socket"]).arg(&path).arg("--bundle").arg(world.bundle()).arg(&world.id);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().expect("run").success());
    let init = receive();
    let mut command = world.command();
    command.args(["exec", "-d", "--pidfd-socket"]).arg(&path).args([&world.id, "sleep", "1000"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().expect("exec").success());
    runtime_linux::pidfd::send_signal(receive(), nix::libc::SIGKILL).expect("kill the exec");
    eventually("the exec is gone", || world.oci(&["ps"], &["-f", "json"]).good() == format!("[{}]\n", world.pid()));
    runtime_linux::pidfd::send_signal(&init, nix::libc::SIGKILL).expect("kill the init");
    eventually("stopped", || world.status() == "stopped");
}

#[test]
fn what_a_hook_says_on_the_terminal_is_not_lost() {
    let mut world = World::new(&["true"]);
    world.config["process"]["terminal"] = json!(true);
    world.config["hooks"]["startContainer"] = json!([{ "path": "/bin/cat", "args": ["cat", "/no/such/file"] }]);
    let said = world.run();
    assert_ne!(said.code, 0);
    assert!(said.out.contains("/no/such/file"), "{said:?}");
    world.assert_gone();
}

#[test]
fn the_cpus_of_the_caller_are_not_the_containers() {
    let world = World::new(&[
        "sh",
        "-c",
        "while read line; do case $line in Cpus_allowed_list:*) echo $line;; esac; done < /proc/self/status",
    ]);
    world.save();
    let mut own = String::new();
    std::fs::File::open("/proc/self/status").and_then(|mut file| file.read_to_string(&mut own)).expect("status");
    let all = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("Cpus_allowed_list:")).expect("the line").to_owned();
        line.split_whitespace().nth(1).expect("a list").to_owned()
    };
    let before = all(&own);
    runtime_linux::process::set_cpu_affinity(0, &[0]).expect("one CPU for this thread and what it spawns");
    let said = world.run().good();
    assert_eq!(all(&said), before);
}
