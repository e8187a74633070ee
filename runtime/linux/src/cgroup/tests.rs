//! Two kinds: on a fake v2 tree of plain files, where every written value can be seen; and on the real cgroups of the machine, whatever
//! its layout (run as root). `integration/e2e/tests/unified.rs` runs the same program on pure v2, in a virtual machine.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const CONTROLLERS: &str = "cpuset cpu io memory hugetlb pids rdma";

/// A v2 tree of plain files: one cgroup `/a/b` with the given files, empty.
struct Fake {
    directory: tempfile::TempDir,
    cgroup: Cgroup,
}

impl Fake {
    fn new(files: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for below in ["", "a", "a/b"] {
            fs::create_dir_all(root.join(below)).unwrap();
            fs::write(root.join(below).join("cgroup.controllers"), CONTROLLERS).unwrap();
            fs::write(root.join(below).join("cgroup.subtree_control"), "").unwrap();
        }
        for file in files {
            fs::write(root.join("a/b").join(file), "").unwrap();
        }
        let cgroup = Cgroup::create(&Hierarchy::unified(root), "/a/b").unwrap();
        Self { directory, cgroup }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join("a/b").join(name)).unwrap()
    }

    /// Applies JSON resources and returns what every file then holds, empty ones left out.
    fn apply(&self, json: &str) -> Result<(BTreeMap<String, String>, Vec<String>), Error> {
        let resources = serde_json::from_str(json).unwrap();
        let ignored = self.cgroup.apply(&resources)?.into_iter().map(|ignored| ignored.field).collect();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.directory.path().join("a/b")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let text = self.file(&name);
            if !text.is_empty() && !name.starts_with("cgroup.") {
                files.insert(name, text);
            }
        }
        Ok((files, ignored))
    }
}

const FILES: &[&str] = &[
    "memory.max",
    "memory.low",
    "memory.swap.max",
    "memory.oom.group",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "io.weight",
    "io.max",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "rdma.max",
    "memory.high",
];

fn check(json: &str, expect: &[(&str, &str)], ignored: &[&str]) {
    let (files, seen) = Fake::new(FILES).apply(json).unwrap();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert_eq!(files, expect, "{json}");
    assert_eq!(seen, ignored, "{json}");
}

fn refuse(json: &str, part: &str) {
    let error = Fake::new(FILES).apply(json).unwrap_err();
    assert!(error.to_string().contains(part), "{json}: {error}");
}

#[test]
fn every_field_reaches_its_v2_file() {
    check("{}", &[], &[]);
    check(
        r#"{"memory":{"limit":1000,"reservation":500,"swap":1500}}"#,
        &[("memory.low", "500"), ("memory.max", "1000"), ("memory.swap.max", "500")],
        &[],
    );
    check(r#"{"memory":{"limit":-1,"swap":-1}}"#, &[("memory.max", "max"), ("memory.swap.max", "max")], &[]);
    check(r#"{"memory":{"limit":-1}}"#, &[("memory.max", "max"), ("memory.swap.max", "max")], &[]);
    check(
        r#"{"memory":{"limit":0,"swappiness":10,"disableOOMKiller":true,"kernel":5}}"#,
        &[],
        &["memory.kernel", "memory.swappiness", "memory.disableOOMKiller"],
    );
    check(
        r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":1000,"cpus":"0-1","mems":"0"}}"#,
        &[
            ("cpu.max", "50000 100000"),
            ("cpu.max.burst", "1000"),
            ("cpu.weight", "100"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
        ],
        &[],
    );
    check(r#"{"cpu":{"shares":1024,"idle":1}}"#, &[("cpu.idle", "1")], &[]);
    check(r#"{"cpu":{"quota":-1}}"#, &[("cpu.max", "max")], &[]);
    check(r#"{"cpu":{"period":50000,"realtimeRuntime":5}}"#, &[("cpu.max", "max 50000")], &["cpu.realtimeRuntime"]);
    check(r#"{"pids":{"limit":0}}"#, &[("pids.max", "1")], &[]);
    check(r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")], &[]);
    check(r#"{"pids":{"limit":7}}"#, &[("pids.max", "7")], &[]);
    check(
        r#"{"blockIO":{"weight":1000,"leafWeight":10,
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}]}}"#,
        &[("io.max", "8:0 rbps=600"), ("io.weight", "default 10000")],
        &["blockIO.leafWeight"],
    );
    check(
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096},{"pageSize":"1GB","limit":0}]}"#,
        &[("hugetlb.2MB.max", "4096"), ("hugetlb.2MB.rsvd.max", "4096")],
        // One for the limit, one for its reservation.
        &["hugepageLimits", "hugepageLimits"],
    );
    check(
        r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":4}}}"#,
        &[("rdma.max", "mlx5_1 hca_handle=3 hca_object=4")],
        &[],
    );
    check(r#"{"unified":{"memory.high":"100"}}"#, &[("memory.high", "100")], &[]);
    check(r#"{"network":{"classID":5}}"#, &[], &["network.classID"]);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    refuse(r#"{"memory":{"limit":1000,"swap":500}}"#, "memory.swap");
    refuse(r#"{"memory":{"swap":500}}"#, "needs memory.limit");
    refuse(r#"{"unified":{"../x.y":"1"}}"#, "must be the name");
    refuse(r#"{"unified":{"cgroup.procs":"1"}}"#, "must be the name");
    refuse(r#"{"unified":{"NO-KEY":"1"}}"#, "CONTROLLER.VALUE `NO-KEY`");
    refuse(r#"{"unified":{"foo.bar":"1"}}"#, "unified.foo.bar: controller `foo` is not available under /");
    refuse(r#"{"unified":{"memory.bar":"1"}}"#, "unified.memory.bar: no such file or directory in /");
    refuse(r#"{"unified":{"misc.max":"1"}}"#, "misc.max");
    refuse(r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "page size");
    refuse(r#"{"devices":[{"allow":true,"type":"p"}]}"#, "devices[0]");
    let error = Fake::new(&[]).apply(r#"{"memory":{"limit":5000}}"#).unwrap_err();
    assert!(matches!(&error, Error::NoController { controller, .. } if controller == "memory"), "{error}");
}

#[test]
fn controllers_are_enabled_along_the_path_but_not_in_the_leaf() {
    let fake = Fake::new(&[]);
    let control =
        |below: &str| fs::read_to_string(fake.directory.path().join(below).join("cgroup.subtree_control")).unwrap();
    let all: Vec<String> = CONTROLLERS.split(' ').map(|name| format!("+{name}")).collect();
    assert_eq!(control(""), all.join(" "));
    assert_eq!(control("a"), all.join(" "));
    assert_eq!(control("a/b"), "");
}

#[test]
fn stats_are_read_from_v2_files() {
    let fake = Fake::new(&[]);
    for (name, text) in [
        ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 1\nthrottled_usec 4\n"),
        ("memory.current", "1000\n"),
        ("memory.max", "max\n"),
        ("memory.stat", "anon 600\nfile 300\ninactive_file 200\npgfault 7\npgmajfault 1\n"),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
        ("pids.current", "4\n"),
        ("pids.max", "10\n"),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n"),
    ] {
        fs::write(fake.directory.path().join("a/b").join(name), text).unwrap();
    }
    let stats = fake.cgroup.stats().unwrap();
    assert_eq!((stats.cpu.usage_ns, stats.cpu.throttled_ns), (5000, 4000));
    assert_eq!((stats.memory.usage_bytes, stats.memory.limit_bytes, stats.memory.working_set_bytes), (1000, None, 800));
    assert_eq!(stats.memory.oom_kills, 1);
    assert_eq!(stats.pids, PidsStats { current: 4, limit: Some(10) });
    let disk =
        IoDeviceStats { major: 8, minor: 0, read_bytes: 1, write_bytes: 2, read_operations: 3, write_operations: 4 };
    assert_eq!(stats.io[0], disk);
}

#[test]
fn paths_that_climb_are_refused() {
    let hierarchy = Hierarchy::unified("/x");
    for path in ["a", "", "/a/../b", "/a//b", "/./a", "/a\nb"] {
        assert!(matches!(Cgroup::new(&hierarchy, path), Err(Error::Path { .. })), "{path:?}");
    }
    assert_eq!(Cgroup::new(&hierarchy, "/").unwrap().path(), "/");
    assert_eq!(Cgroup::new(&hierarchy, "/a/b/").unwrap().child("c").unwrap().path(), "/a/b/c");
}

/// A cgroup on the real host, removed with all its processes whatever happens.
struct Real {
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Real {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = format!("/sampan-test-{}-{}/inner", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = Cgroup::create(&Hierarchy::detect().unwrap(), &path).unwrap();
        Self { cgroup, children: Vec::new() }
    }

    /// Starts a program that sits in the cgroup before its first instruction of our choosing: it waits for its input first.
    fn run(&mut self, script: &str) -> i32 {
        use std::io::Write;
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.cgroup.add(pid).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        self.children.push(child);
        pid
    }

    fn outer(&self) -> Cgroup {
        let path = self.cgroup.path().trim_end_matches("/inner").to_owned();
        Cgroup::new(self.cgroup.hierarchy(), &path).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let outer = self.outer();
        let _killed = outer.kill();
        for child in &mut self.children {
            let _status = child.wait();
        }
        outer.remove().expect("the test's cgroup is removed");
    }
}

#[test]
fn a_real_cgroup_is_filled_frozen_killed_and_removed() {
    let mut real = Real::new();
    let pid = real.run("sleep 1000 & sleep 1000");
    assert!(real.cgroup.pids().unwrap().contains(&pid));
    assert!(real.outer().pids().unwrap().is_empty());
    assert!(real.outer().pids_recursive().unwrap().contains(&pid));

    real.cgroup.freeze().unwrap();
    assert!(real.cgroup.is_frozen().unwrap());
    // Killed while frozen, it dies all the same.
    real.cgroup.kill().unwrap();
    real.children[0].wait().unwrap();
    assert!(real.cgroup.wait_empty(Duration::from_secs(10)).unwrap());

    real.outer().remove().unwrap();
    assert!(!real.outer().exists());
    real.outer().remove().unwrap();
    real.outer().kill().unwrap();
    assert!(real.cgroup.pids_recursive().unwrap().is_empty());
}

#[test]
fn a_real_cgroup_that_goes_while_it_is_killed_is_killed() {
    for _ in 0..200 {
        let mut real = Real::new();
        real.run("exit");
        let mut child = real.children.pop().unwrap();
        let cgroup = real.cgroup.clone();
        // As a shim's own end does: somebody else takes the cgroup away as soon as it is empty.
        let other = std::thread::spawn(move || {
            child.wait().unwrap();
            while !cgroup.remove_if_empty() {}
        });
        while real.cgroup.exists() {
            real.cgroup.kill().unwrap();
        }
        other.join().unwrap();
    }
}

#[test]
fn a_busy_real_cgroup_is_removed_as_soon_as_its_processes_die() {
    let mut real = Real::new();
    real.run("sleep 1000");
    let cgroup = real.outer();
    // No wait in between: remove itself waits for the dying.
    cgroup.kill().unwrap();
    let reaper = std::thread::spawn({
        let mut child = real.children.pop().unwrap();
        move || child.wait().unwrap()
    });
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    reaper.join().unwrap();
}

#[test]
fn a_real_cgroup_is_new_once_and_goes_at_once_while_it_is_empty() {
    let real = Real::new();
    let below = real.cgroup.child("below").unwrap();
    assert!(below.create_new() && below.directories().iter().all(|directory| directory.is_dir()));
    assert!(!below.create_new() && below.directories().iter().all(|directory| directory.is_dir()));
    assert!(below.remove_if_empty() && !below.exists());
    // It is in the last hierarchy alone: what was made in the others until it was found there is gone again.
    let last = below.directories().pop().unwrap();
    std::fs::create_dir(&last).unwrap();
    assert!(!below.create_new());
    let left: Vec<_> = below.directories().into_iter().filter(|directory| directory.is_dir()).collect();
    assert_eq!(left, [last]);
    assert!(below.remove_if_empty() && below.remove_if_empty());

    let mut real = Real::new();
    let pid = real.run("sleep 1000");
    assert!(!real.cgroup.remove_if_empty() && !real.outer().remove_if_empty());
    assert!(real.cgroup.pids().unwrap().contains(&pid));
}

#[test]
fn real_limits_are_in_force_and_stats_count() {
    let mut real = Real::new();
    let resources = serde_json::from_str(
        r#"{"memory":{"limit":50000000},"cpu":{"shares":512,"quota":50000,"period":100000},"pids":{"limit":5}}"#,
    );
    real.cgroup.apply(&resources.unwrap()).unwrap();
    let stats = real.cgroup.stats().unwrap();
    assert_eq!(stats.pids.limit, Some(5));
    // The kernel rounds down to pages.
    assert_eq!(stats.memory.limit_bytes, Some(50_000_000 / 4096 * 4096));
    // Lowering both, then raising: the kernel's cross-checks must be met in either direction.
    for quota in [20_000, 90_000] {
        let json = format!(r#"{{"cpu":{{"quota":{quota},"period":100000,"burst":1000}}}}"#);
        real.cgroup.apply(&serde_json::from_str(&json).unwrap()).unwrap();
    }
    real.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; : ; : ");
    real.children[0].wait().unwrap();
    assert!(real.cgroup.stats().unwrap().cpu.usage_ns > 0);

    real.cgroup.apply(&serde_json::from_str(r#"{"pids":{"limit":-1}}"#).unwrap()).unwrap();
    assert_eq!(real.cgroup.stats().unwrap().pids.limit, None);
}

#[test]
fn a_real_oom_kill_is_told_and_counted() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut real = Real::new();
    real.cgroup.apply(&serde_json::from_str(r#"{"memory":{"limit":8000000,"swap":8000000}}"#).unwrap()).unwrap();
    let watch = real.cgroup.watch_oom().unwrap();
    assert_eq!(watch.kills().unwrap(), Some(0));
    real.run("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    let flags = if watch.is_priority() { PollFlags::POLLPRI } else { PollFlags::POLLIN };
    let mut descriptors = [PollFd::new(watch.as_fd(), flags)];
    assert_eq!(poll(&mut descriptors, PollTimeout::from(30_000u16)).unwrap(), 1, "no event within 30 s");
    // The v1 kernel tells of the shortage before it kills, and says nothing more afterwards.
    real.children[0].wait().unwrap();
    assert_eq!(real.cgroup.oom_kills().unwrap(), 1);
    assert_eq!(real.cgroup.stats().unwrap().memory.oom_kills, 1);
}

const DEVICES: &str = r#"{"devices":[{"allow":false,"access":"rwm"},
    {"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
    {"allow":true,"type":"c","major":5,"access":"rwm"}]}"#;

#[test]
fn real_devices_are_denied_by_whatever_version_the_host_has() {
    let mut real = Real::new();
    let resources: LinuxResources = serde_json::from_str(DEVICES).unwrap();
    // Twice: the second replaces the first.
    real.cgroup.apply(&resources).unwrap();
    real.cgroup.apply(&resources).unwrap();
    assert_devices_denied(&mut real);
}

#[test]
fn the_v2_device_filter_works_where_a_v2_tree_is_mounted() {
    let mut real = Real::new();
    // On a hybrid host the v1 controller would be asked: go to the filter itself.
    let Some(directory) = real.cgroup.unified_directory() else { return };
    let resources: LinuxResources = serde_json::from_str(DEVICES).unwrap();
    let rules = device::parse(resources.devices().as_ref().unwrap()).unwrap();
    device_filter::apply(&directory, &rules).unwrap();
    device_filter::apply(&directory, &rules).unwrap();
    assert_devices_denied(&mut real);
    // And replaced by one that allows all.
    device_filter::apply(&directory, &device::parse(&[serde_json::from_str(r#"{"allow":true}"#).unwrap()]).unwrap())
        .unwrap();
    real.run("head -c 1 /dev/zero || exit 3");
    assert!(real.children.last_mut().unwrap().wait().unwrap().success());
}

fn assert_devices_denied(real: &mut Real) {
    // /dev/null is 1:3 and allowed, /dev/zero 1:5 is not.
    real.run("echo x > /dev/null || exit 2; head -c 1 /dev/zero && exit 3; exit 0");
    let status = real.children.last_mut().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(0));
}
