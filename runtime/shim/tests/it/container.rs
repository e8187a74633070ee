//! Containers through the shim: life, exits, signals, logs, execs, re-adoption.

use crate::sandbox::{Sandbox, eventually, exec, pipes};
use runtime_shim::config::{IdRange, UserNamespace};
use runtime_shim::{Client, ClientError, ContainerState, Event, FailureCode, PidMode, Target, record};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

fn code(error: ClientError) -> FailureCode {
    match error {
        ClientError::Failure(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_container_runs_logs_and_ends_with_its_code() {
    let (sandbox, mut client) = Sandbox::started();
    let (_, events) = Client::connect(&sandbox.dir()).unwrap().subscribe().unwrap();
    let mut events = events;
    events.set_deadline(Some(Duration::from_secs(10))).unwrap();
    let created = client.create(sandbox.create("c1", "hostname; echo err >&2; printf rest; exit 7")).unwrap();
    assert_eq!(client.info().unwrap().containers[0].state, ContainerState::Created);
    client.start("c1").unwrap();
    let exit = client.wait(Target::container("c1")).unwrap();
    assert_eq!((exit.code, exit.signal, exit.pid, exit.oom_killed), (7, None, created.pid, false));
    assert!(exit.started_at_ns > 0 && exit.exited_at_ns >= exit.started_at_ns);
    let Event::Exited(told) = events.wait().unwrap() else { panic!("another event") };
    assert_eq!(told, exit);
    // On disk before anyone was told, and so is the log.
    assert_eq!(record::load(&sandbox.dir(), "c1").unwrap().unwrap(), exit);
    let mut entries = sandbox.entries("c1");
    entries.sort();
    assert_eq!(entries, ["stderr F err", "stdout F web-0", "stdout P rest"]);
    assert_eq!(code(client.start("c1").unwrap_err()), FailureCode::WrongState);

    client.delete("c1").unwrap();
    client.delete("c1").unwrap();
    assert!(client.info().unwrap().containers.is_empty());
    assert!(!sandbox.container_cgroup("c1").exists());
    assert!(record::load(&sandbox.dir(), "c1").unwrap().is_none());
}

#[test]
fn signals_end_containers_as_a_shell_tells_it() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "term", "trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait; done");
    eventually("the trap is set", || sandbox.entries("term") == ["stdout F up"]);
    client.signal(Target::container("term"), 15).unwrap();
    assert_eq!(client.wait(Target::container("term")).unwrap().code, 9);
    assert_eq!(code(client.signal(Target::container("term"), 15).unwrap_err()), FailureCode::WrongState);

    sandbox.run(&mut client, "kill", "sleep 1000");
    client.signal(Target::container("kill"), 9).unwrap();
    let exit = client.wait(Target::container("kill")).unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));

    // A real-time signal has no name in most libraries and is an end like any other.
    sandbox.run(&mut client, "all", "sleep 1000; sleep 1000");
    client.exec(exec("all", "e1", "exec sleep 1000"), Default::default()).unwrap();
    client.signal(Target::exec("all", "e1"), 40).unwrap();
    let exit = client.wait(Target::exec("all", "e1")).unwrap();
    assert_eq!((exit.code, exit.signal), (168, Some(40)));
    client.signal_all("all", 9).unwrap();
    assert_eq!(client.wait(Target::container("all")).unwrap().code, 137);
}

#[test]
fn what_is_wrong_is_refused_by_code() {
    let (sandbox, mut client) = Sandbox::started();
    assert_eq!(code(client.start("none").unwrap_err()), FailureCode::NotFound);
    assert_eq!(code(client.wait(Target::container("none")).unwrap_err()), FailureCode::NotFound);
    assert_eq!(code(client.create(sandbox.create("a/b", "true")).unwrap_err()), FailureCode::Invalid);
    let mut lying = sandbox.create("c1", "true");
    lying.terminal = true;
    assert_eq!(code(client.create(lying).unwrap_err()), FailureCode::Invalid);
    let mut spec = sandbox.spec("bad", "true");
    spec["process"]["args"] = json!(["/no/such/program"]);
    let failed = client.create(sandbox.create_from("bad", &spec)).map(drop).and_then(|()| client.start("bad"));
    assert!(failed.unwrap_err().to_string().contains("/no/such/program"));
    client.delete_forced("bad").unwrap();

    sandbox.run(&mut client, "c1", "sleep 1000");
    assert_eq!(code(client.create(sandbox.create("c1", "true")).unwrap_err()), FailureCode::AlreadyExists);
    assert_eq!(code(client.delete("c1").unwrap_err()), FailureCode::WrongState);
    assert_eq!(code(client.shutdown().unwrap_err()), FailureCode::WrongState);
    assert_eq!(code(client.resize("c1", 80, 24).unwrap_err()), FailureCode::WrongState);
    assert_eq!(code(client.exec(exec("c2", "e", "true"), Default::default()).unwrap_err()), FailureCode::NotFound);
    client.delete_forced("c1").unwrap();
}

#[test]
fn an_exec_has_its_own_streams_and_exit() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let (theirs, mut ours) = pipes();
    let execution = client.exec(exec("c1", "e1", "cat; echo err >&2; exit 5"), theirs).unwrap();
    assert!(execution.pid > 0 && execution.console.is_none());
    ours.stdin.write_all(b"through").unwrap();
    drop(ours.stdin);
    let (mut out, mut err) = (String::new(), String::new());
    ours.stdout.read_to_string(&mut out).unwrap();
    ours.stderr.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through", "err\n"));
    // Waited for late: the exit is kept.
    let exit = client.wait(Target::exec("c1", "e1")).unwrap();
    assert_eq!((exit.code, exit.exec_id.as_deref()), (5, Some("e1")));
    assert_eq!(
        code(client.exec(exec("c1", "e1", "true"), Default::default()).unwrap_err()),
        FailureCode::AlreadyExists
    );

    client.exec(exec("c1", "e2", "sleep 1000"), Default::default()).unwrap();
    client.signal(Target::exec("c1", "e2"), 9).unwrap();
    assert_eq!(client.wait(Target::exec("c1", "e2")).unwrap().code, 137);
    assert!(sandbox.entries("c1").is_empty());
}

#[test]
fn an_exec_with_a_terminal_hands_the_terminal_over() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let mut request = exec("c1", "e1", "stty size; tty; read line; echo got $line");
    request.process.set_terminal(Some(true));
    let size = serde_json::from_value(json!({"height": 33, "width": 111})).unwrap();
    request.process.set_console_size(Some(size));
    let execution = client.exec(request, Default::default()).unwrap();
    let mut console = fs::File::from(execution.console.unwrap());
    console.write_all(b"typed\n").unwrap();
    let mut seen = Vec::new();
    // EIO is the end of a terminal.
    let _end = console.read_to_end(&mut seen);
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("33 111") && seen.contains("/dev/") && seen.contains("got typed"), "{seen}");
    assert_eq!(client.wait(Target::exec("c1", "e1")).unwrap().code, 0);
}

#[test]
fn an_oom_kill_is_told_and_recorded() {
    let (sandbox, mut client) = Sandbox::started();
    let (_, mut events) = Client::connect(&sandbox.dir()).unwrap().subscribe().unwrap();
    events.set_deadline(Some(Duration::from_secs(30))).unwrap();
    let mut spec = sandbox.spec("c1", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    spec["linux"]["resources"] = json!({"memory": {"limit": 16_000_000}});
    client.create(sandbox.create_from("c1", &spec)).unwrap();
    client.start("c1").unwrap();
    let exit = client.wait(Target::container("c1")).unwrap();
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    // The two events are told in whichever order the kernel lets us see them; the exit is there for sure.
    loop {
        match events.wait().unwrap() {
            Event::Exited(record) => {
                assert!(record.oom_killed);
                break;
            }
            Event::Oom { kills, .. } => assert_eq!(kills, 1),
            other @ (Event::Lost { .. } | Event::PauseExited { .. } | Event::Unknown) => panic!("{other:?}"),
        }
    }
}

#[test]
fn limits_of_a_running_container_change() {
    let (sandbox, mut client) = Sandbox::started();
    sandbox.run(&mut client, "c1", "sleep 1000");
    let resources = serde_json::from_value(json!({"pids": {"limit": 17}, "memory": {"limit": 64_000_000}})).unwrap();
    client.update("c1", resources).unwrap();
    let stats = sandbox.container_cgroup("c1").stats().unwrap();
    assert_eq!(stats.pids.limit, Some(17));
    assert_eq!(stats.memory.limit_bytes, Some(64_000_000 / 4096 * 4096));
}

#[test]
fn zombies_of_a_shared_pid_namespace_are_reaped_and_leftovers_die_with_their_container() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let pause = client.info().unwrap().pause_pid.unwrap();
    // Double forks: orphans whose parent has gone, one that ends and one that stays.
    sandbox.run(&mut client, "c1", "(sleep 0 &) ; (sleep 1000 &) ; echo $$; exec sleep 1000");
    let cgroup = sandbox.container_cgroup("c1");
    let children = || fs::read_to_string(format!("/proc/{pause}/task/{pause}/children")).unwrap();
    eventually("the orphans have a new parent and the zombie is gone", || {
        let zombies = cgroup
            .pids()
            .unwrap()
            .iter()
            .any(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z")));
        children().split_whitespace().count() == 1 && !zombies && cgroup.pids().unwrap().len() == 2
    });
    assert_ne!(sandbox.entries("c1"), ["stdout F 1"]);
    client.signal(Target::container("c1"), 9).unwrap();
    client.wait(Target::container("c1")).unwrap();
    assert!(cgroup.wait_empty(Duration::from_secs(10)).unwrap());
    // The namespace lives on for the next container.
    sandbox.run(&mut client, "c2", "exit 3");
    assert_eq!(client.wait(Target::container("c2")).unwrap().code, 3);
}

#[test]
fn containers_live_in_the_pods_user_namespace() {
    let mut sandbox = Sandbox::new();
    let range = IdRange { inside: 0, outside: 200_000, count: 65_536 };
    sandbox.config.user = Some(UserNamespace { uid_map: vec![range], gid_map: vec![range] });
    let mut client = sandbox.spawn().unwrap();
    open_to_all(&sandbox);
    // Its streams can be opened again, as images of well-known servers do.
    let script = "id -u; hostname > /proc/self/fd/1; echo err > /proc/self/fd/2; sleep 1000";
    let pid = sandbox.run(&mut client, "c1", script);
    eventually("it has started", || {
        let mut entries = sandbox.entries("c1");
        entries.sort();
        entries == ["stderr F err", "stdout F 0", "stdout F web-0"]
    });
    let (theirs, mut ours) = pipes();
    let mut user = exec("c1", "e1", "echo out > /proc/self/fd/1; echo err > /proc/self/fd/2");
    user.process.user_mut().set_uid(1000);
    client.exec(user, theirs).unwrap();
    drop(ours.stdin);
    let (mut out, mut err) = (String::new(), String::new());
    ours.stdout.read_to_string(&mut out).unwrap();
    ours.stderr.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t200000\t200000"), "{status}");
}

/// A root inside a user namespace is a nobody on the temporary directory's path.
fn open_to_all(sandbox: &Sandbox) {
    use std::os::unix::fs::PermissionsExt;
    let root = sandbox.dir().parent().unwrap().to_owned();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn fifty_containers_start_and_end() {
    let (sandbox, mut client) = Sandbox::started();
    for number in 0..50 {
        sandbox.run(&mut client, &format!("c{number}"), &format!("echo {number}; read x < /dev/null; exit {number}"));
    }
    for number in 0..50 {
        let id = format!("c{number}");
        assert_eq!(client.wait(Target::container(&id)).unwrap().code, number);
        assert_eq!(sandbox.entries(&id), [format!("stdout F {number}")]);
        client.delete(&id).unwrap();
    }
    let shim = client.info().unwrap().shim_pid;
    let open = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    assert!(open < 16, "{open} descriptors are open");
}
