//! The pod itself, without containers: namespaces, names, sysctls, one shim per directory.

use crate::sandbox::{Sandbox, eventually, kill_and_wait};
use nix::sched::{CloneFlags, setns};
use runtime_shim::config::{IdRange, UserNamespace};
use runtime_shim::{Client, ClientError, FailureCode, NamespaceMode, PidMode, SpawnError};
use std::fs::{self, File};
use std::path::Path;

/// Runs a closure in pinned namespaces, on a thread of its own.
fn within<T: Send + 'static>(
    pins: Vec<(std::path::PathBuf, CloneFlags)>,
    act: impl FnOnce() -> T + Send + 'static,
) -> T {
    std::thread::spawn(move || {
        for (path, flags) in pins {
            setns(File::open(path).unwrap(), flags).unwrap();
        }
        act()
    })
    .join()
    .unwrap()
}

#[test]
fn namespaces_are_made_named_and_pinned() {
    let mut sandbox = Sandbox::new();
    sandbox.config.domainname = Some("example".into());
    sandbox.config.sysctls = [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shmmni", "77")]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
    let mut client = sandbox.spawn().unwrap();
    let info = client.info().unwrap();
    let names: Vec<&str> = info.namespaces.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["network", "ipc", "uts"]);
    assert_eq!((info.pod_id.as_str(), info.pause_pid, info.containers.len()), ("pod", None, 0));
    let pins = sandbox.dir().join("ns");
    let pins = vec![
        (pins.join("net"), CloneFlags::CLONE_NEWNET),
        (pins.join("ipc"), CloneFlags::CLONE_NEWIPC),
        (pins.join("uts"), CloneFlags::CLONE_NEWUTS),
    ];
    let read = |path: &str| fs::read_to_string(format!("/proc/sys/{path}")).unwrap().trim().to_owned();
    let inside = within(pins, move || {
        ["kernel/hostname", "kernel/domainname", "net/ipv4/ip_unprivileged_port_start", "kernel/shmmni"].map(read)
    });
    assert_eq!(inside, ["web-0", "example", "80", "77"]);
    assert_ne!(read("kernel/hostname"), "web-0");
    client.shutdown().unwrap();
    eventually("socket, lock, pins and cgroup are gone", || {
        let left = ["shim.sock", "shim.pid", "ns"].iter().any(|name| sandbox.dir().join(name).exists());
        !left && !sandbox.container_cgroup("shim").exists()
    });
    assert!(Client::connect(&sandbox.dir()).unwrap_err().is_gone());
}

#[test]
fn a_pod_on_the_hosts_namespaces_pins_nothing() {
    let mut sandbox = Sandbox::new();
    sandbox.config.network = NamespaceMode::Host;
    sandbox.config.ipc = NamespaceMode::Host;
    sandbox.config.uts = NamespaceMode::Host;
    sandbox.config.hostname = None;
    let mut client = sandbox.spawn().unwrap();
    assert!(client.info().unwrap().namespaces.is_empty());
    assert!(!sandbox.dir().join("ns").exists());
}

#[test]
fn one_directory_has_one_shim() {
    let (sandbox, mut client) = Sandbox::started();
    match sandbox.spawn() {
        Err(SpawnError::Refused { source, .. }) => assert_eq!(source.code, FailureCode::AlreadyExists),
        other => panic!("{other:?}"),
    }
    client.info().unwrap();
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let mut sandbox = Sandbox::new();
    sandbox.config.sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    match sandbox.spawn() {
        Err(SpawnError::Refused { source, .. }) => {
            assert_eq!(source.code, FailureCode::Failed);
            assert!(source.message.contains("net.ipv4.no_such_thing"), "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!sandbox.dir().join("ns").exists());
    assert!(matches!(Client::connect(&sandbox.dir()), Err(ClientError::Connect { .. })));
}

#[test]
fn the_shim_is_alone_in_its_session_and_cgroup_and_ignores_polite_signals() {
    let (sandbox, mut client) = Sandbox::started();
    let pid = client.info().unwrap().shim_pid;
    let target = nix::unistd::Pid::from_raw(pid);
    assert_eq!(nix::unistd::getsid(Some(target)).unwrap(), target);
    assert_eq!(sandbox.container_cgroup("shim").pids().unwrap(), [pid]);
    for signal in [15, 2, 1] {
        runtime_linux::pidfd::send_signal(runtime_linux::pidfd::open(pid).unwrap(), signal).unwrap();
    }
    assert_eq!(client.info().unwrap().shim_pid, pid);
}

#[test]
fn a_shared_pid_namespace_has_a_small_process_that_holds_it() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let pause = client.info().unwrap().pause_pid.unwrap();
    eventually("it runs its own program", || {
        fs::read_to_string(format!("/proc/{pause}/cmdline")).unwrap() == "sampan-shim\0pause\0"
    });
    client.shutdown().unwrap();
    eventually("it is gone", || !Path::new(&format!("/proc/{pause}")).exists());
}

#[test]
fn the_pause_process_has_nothing_of_the_hosts() {
    let range = IdRange { inside: 0, outside: 200_000, count: 65_536 };
    for user in [None, Some(UserNamespace { uid_map: vec![range], gid_map: vec![range] })] {
        let mut sandbox = Sandbox::new();
        sandbox.config.pid = PidMode::Pod;
        let uid = if user.is_some() { 265_534 } else { 65_534 };
        sandbox.config.user = user;
        let mut client = sandbox.spawn().unwrap();
        // As soon as the shim answers, not some time later.
        let pause = client.info().unwrap().pause_pid.unwrap();
        let list = |name: &str| -> Vec<_> {
            fs::read_dir(format!("/proc/{pause}/{name}")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        assert!(list("fd").is_empty() && list("root").is_empty() && list("cwd").is_empty());
        let mounts = fs::read_to_string(format!("/proc/{pause}/mountinfo")).unwrap();
        let last = mounts.lines().last().unwrap();
        assert!(last.contains(" / / ro,nosuid,nodev,noexec") && last.contains(" - tmpfs "), "{mounts}");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        let status = fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        let facts = ["Uid:", "Gid:", "NoNewPrivs:", "Seccomp:"].map(field);
        assert_eq!(facts, [uid.to_string(), uid.to_string(), "1".into(), "2".into()]);
        assert!(fs::read(format!("/proc/{pause}/environ")).unwrap().is_empty());
        // Not dumpable: its files in /proc are its namespace's root's, whoever it is.
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pause}/maps")).unwrap());
        assert_eq!(owner, uid - 65_534);
    }
}

#[test]
fn a_container_that_may_trace_finds_nothing_of_the_host_in_the_pause_process() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let look = "for at in root cwd fd; do echo $at $(/bin/busybox ls -A /proc/1/$at | /bin/busybox wc -l); done
        echo x > /proc/1/root/x && echo written
        cat /proc/1/root/etc/passwd /proc/1/cwd/etc/passwd && echo read
        /bin/busybox nsenter -t 1 -m /bin/busybox ls / && echo entered
        exit 0";
    let mut spec = sandbox.spec("c1", look);
    let all = ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE", "CAP_KILL"];
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = serde_json::json!(all);
    }
    client.create(sandbox.create_from("c1", &spec)).unwrap();
    client.start("c1").unwrap();
    client.wait(runtime_shim::Target::container("c1")).unwrap();
    let out: Vec<_> = sandbox.entries("c1").into_iter().filter(|entry| entry.starts_with("stdout")).collect();
    assert_eq!(out, ["stdout F root 0", "stdout F cwd 0", "stdout F fd 0"], "{:?}", sandbox.entries("c1"));
}

#[test]
fn a_user_namespace_owns_the_others() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let range = IdRange { inside: 0, outside: 200_000, count: 65_536 };
    sandbox.config.user = Some(UserNamespace { uid_map: vec![range], gid_map: vec![range] });
    let mut client = sandbox.spawn().unwrap();
    let info = client.info().unwrap();
    let names: Vec<&str> = info.namespaces.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["user", "network", "ipc", "uts", "pid"]);
    let pause = info.pause_pid.unwrap();
    let map = fs::read_to_string(format!("/proc/{pause}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
}

#[test]
fn a_killed_shim_is_cleaned_up_and_the_pod_starts_anew() {
    let mut sandbox = Sandbox::new();
    sandbox.config.pid = PidMode::Pod;
    let mut client = sandbox.spawn().unwrap();
    let info = client.info().unwrap();
    assert!(matches!(
        runtime_shim::orphan::clean_up(&sandbox.dir()),
        Err(runtime_shim::orphan::OrphanError::Alive { .. })
    ));
    kill_and_wait(info.shim_pid);
    assert!(client.info().is_err());
    assert!(Client::connect(&sandbox.dir()).unwrap_err().is_gone());
    assert!(sandbox.dir().join("ns/net").exists());
    assert_eq!(runtime_shim::orphan::clean_up(&sandbox.dir()).unwrap().records, []);
    assert!(!sandbox.dir().join("ns").exists());
    assert!(!sandbox.container_cgroup("shim").exists());
    assert!(!Path::new(&format!("/proc/{}/exe", info.pause_pid.unwrap())).exists());
    let mut client = sandbox.spawn().unwrap();
    assert_ne!(client.info().unwrap().shim_pid, info.shim_pid);
}
