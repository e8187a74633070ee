//! create, start, state, kill, delete, list, pause: their order, their answers, what they leave.

use serde_json::{Value, json};

use crate::harness::{World, eventually};

#[test]
fn a_life_from_create_to_delete() {
    let world = World::new(&["sleep", "1000"]);
    world.create().good();
    assert_eq!(world.status(), "created");
    assert!(world.oci(&["create", "--bundle", "/nonexistent"], &[]).bad().contains("nonexistent"));
    assert!(world.create().bad().contains("already exists"));
    world.oci(&["start"], &[]).good();
    assert_eq!(world.status(), "running");
    assert!(world.oci(&["start"], &[]).bad().contains("running"));
    assert!(world.oci(&["delete"], &[]).bad().contains("not stopped: running"));
    let list = world.command().args(["list", "-f", "json"]).output().expect("list");
    let list: Value = serde_json::from_slice(&list.stdout).expect("json");
    assert_eq!((&list[0]["id"], &list[0]["owner"]), (&json!(world.id), &json!("root")));
    world.oci(&["kill"], &["KILL"]).good();
    eventually("stopped", || world.status() == "stopped");
    assert!(world.oci(&["kill"], &["KILL"]).bad().contains("container not running"));
    world.oci(&["kill", "--all"], &["KILL"]).good();
    world.oci(&["delete"], &[]).good();
    assert!(world.oci(&["state"], &[]).bad().contains("does not exist"));
    assert!(world.oci(&["delete"], &[]).bad().contains("does not exist"));
    world.oci(&["delete", "--force"], &[]).good();
    world.assert_gone();
}

#[test]
fn run_hands_on_exit_codes_and_leaves_nothing() {
    let mut world = World::new(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let said = world.run();
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (7, "out\n", "err\n"));
    world.config["process"]["args"] = json!(["sh", "-c", "kill -KILL $$; kill -TERM $$; exec sleep 0"]);
    // Init of its PID namespace is deaf to its own signals; from outside a signal is 128 + its number.
    assert_eq!(world.run().code, 0);
    world.assert_gone();
}

#[test]
fn a_signal_to_run_reaches_the_container() {
    let world = World::new(&["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"]);
    world.save();
    let mut command = world.command();
    command.arg("run").arg("--bundle").arg(world.bundle()).arg(&world.id).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    let mut line = String::new();
    let out = child.stdout.take().expect("stdout");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("read");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert_eq!(child.wait().expect("wait").code(), Some(9));
    world.assert_gone();
}

#[test]
fn what_cannot_be_run_is_said_and_undone() {
    for (args, words) in [
        (json!(["/nope"]), "no such file or directory"),
        (json!(["nope"]), "executable file not found in $PATH"),
        (json!(["/etc"]), "permission denied"),
        (json!([]), "process.args"),
    ] {
        let mut world = World::new(&["true"]);
        world.config["process"]["args"] = args;
        let err = world.run().bad();
        assert!(err.contains(words), "{err}");
        world.assert_gone();
    }
}

#[test]
fn an_exec_that_fails_after_the_wait_is_told_by_start() {
    let world = World::new(&["/tmp/text"]);
    std::fs::write(world.rootfs().join("tmp/text"), "not a program").expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.rootfs().join("tmp/text"), mode).expect("chmod");
    world.create().good();
    assert!(world.oci(&["start"], &[]).bad().contains("exec format error"));
    eventually("stopped", || world.status() == "stopped");
}

#[test]
fn a_bad_configuration_names_its_field() {
    for (pointer, value, words) in [
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/linux/sysctl", json!({"kernel.core_pattern": "x"}), "kernel.core_pattern"),
        ("/linux/rootfsPropagation", json!("sideways"), "rootfsPropagation"),
        ("/linux/cgroupsPath", json!("/"), "cgroupsPath"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp"),
        ("/linux/intelRdt", json!({"closID": "x"}), "intelRdt"),
    ] {
        let mut world = World::new(&["true"]);
        let (parent, name) = pointer.rsplit_once('/').expect("pointer");
        world.config.pointer_mut(parent).expect("parent")[name] = value;
        let err = world.run().bad();
        assert!(err.contains(words), "{pointer}: {err}");
        world.assert_gone();
    }
}

#[test]
fn a_failure_is_a_line_for_machines_too() {
    let mut world = World::new(&["true"]);
    let bad = json!({"destination": "/mnt", "type": "nofs", "source": "x"});
    world.config["mounts"].as_array_mut().expect("mounts").push(bad);
    world.save();
    let log = world.path("log");
    let mut command = world.command();
    command.args(["--log-format", "json", "--log"]).arg(&log).args(["run", "--bundle"]).arg(world.bundle());
    assert_eq!(command.arg(&world.id).status().expect("run").code(), Some(1));
    let line: Value = serde_json::from_str(std::fs::read_to_string(log).expect("log").trim()).expect("json");
    assert_eq!(
        (&line["level"], &line["step"], &line["errno"]),
        (&json!("error"), &json!("mount nofs at /mnt"), &json!(19))
    );
    world.assert_gone();
}

#[test]
fn hooks_run_in_order_with_the_state() {
    let mut world = World::new(&["echo", "main"]);
    let trace = world.path("trace");
    let hook = |name: &str| {
        let script = format!("echo {name} $(cat) >> {}", trace.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    let names = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for name in names {
        world.config["hooks"][name] = hook(name);
    }
    world.config["hooks"]["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo start in $(hostname)"] }]);
    assert_eq!(world.run().good(), "start in sampan\nmain\n");
    let trace = std::fs::read_to_string(trace).expect("trace");
    let seen: Vec<_> = trace.lines().map(|line| line.split_once(' ').expect("two")).collect();
    assert_eq!(seen.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    for (_, state) in seen {
        let state: Value = serde_json::from_str(state).expect("state");
        assert_eq!(state["id"], json!(world.id));
    }
    world.assert_gone();
}

#[test]
fn a_hook_that_fails_or_hangs_undoes_the_create() {
    for (hook, words) in [
        (json!([{"path": "/bin/false"}]), "exit status: 1"),
        (json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]), "timeout of 1 s"),
        (json!([{"path": "/nope"}]), "cannot be run"),
    ] {
        let mut world = World::new(&["true"]);
        world.config["hooks"] = json!({ "createRuntime": hook });
        let err = world.run().bad();
        assert!(err.contains(words), "{err}");
        world.assert_gone();
    }
}

#[test]
fn pause_freezes_and_delete_force_ends_it() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    world.oci(&["pause"], &[]).good();
    assert_eq!(world.status(), "paused");
    assert!(world.oci(&["exec"], &["true"]).bad().contains("paused"));
    assert!(world.oci(&["pause"], &[]).bad().contains("paused"));
    world.oci(&["resume"], &[]).good();
    assert_eq!(world.status(), "running");
    world.oci(&["pause"], &[]).good();
    world.oci(&["delete", "--force"], &[]).good();
    world.assert_gone();
}

/// kill -9 of the creator at many moments: `delete --force` always leaves nothing.
#[test]
fn a_killed_creator_leaves_what_delete_cleans() {
    let world = World::new(&["sleep", "1000"]);
    world.save();
    for delay in 0..24u32 {
        let mut command = world.command();
        command.args(["create", "--bundle"]).arg(world.bundle()).arg(&world.id);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("spawn");
        std::thread::park_timeout(std::time::Duration::from_micros(u64::from(delay) * 700));
        child.kill().expect("kill");
        child.wait().expect("wait");
        eventually("deleted", || world.oci(&["delete", "--force"], &[]).code == 0);
        world.assert_gone();
    }
}

/// It dies while it is being killed, which is no reason to say that it was not running.
#[test]
fn who_shares_the_hosts_pids_is_killed_at_once_and_without_a_word() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|space| space["type"] != "pid");
    for _ in 0..20 {
        world.start_all();
        world.oci(&["kill"], &["KILL"]).good();
        eventually("it has stopped", || world.status() == "stopped");
        assert!(world.oci(&["kill"], &["KILL"]).bad().contains("not running"));
        world.oci(&["delete"], &[]).good();
    }
    world.assert_gone();
}
