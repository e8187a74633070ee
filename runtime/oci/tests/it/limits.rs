//! Limits, on whatever cgroups the host has, and what the tools say of them.

use serde_json::{Value, json};

use crate::harness::{World, eventually};

#[test]
fn a_tiny_memory_limit_starts_and_a_larger_one_kills() {
    let mut world = World::new(&["echo", "small"]);
    world.config["linux"]["resources"]["memory"] = json!({"limit": 1_048_576});
    assert_eq!(world.run().good(), "small\n");
    world.config["linux"]["resources"]["memory"] = json!({"limit": 8 << 20, "swap": 8 << 20});
    world.config["process"]["args"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    assert_eq!(world.run().code, 137);
    world.assert_gone();
}

#[test]
fn pids_are_limited_and_updates_take_effect() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["resources"]["pids"] = json!({"limit": 2});
    world.start_all();
    assert!(world.oci(&["exec"], &["sh", "-c", "sleep 0; true"]).bad().contains("fork"));
    world.oci(&["update", "--pids-limit", "20"], &[]).good();
    world.oci(&["exec"], &["sh", "-c", "sleep 0; true"]).good();
    assert!(world.oci(&["update"], &[]).bad().contains("nothing to update"));
    assert!(world.oci(&["update", "--memory", "much"], &[]).bad().contains("--memory"));
    let stats: Value = serde_json::from_str(&world.oci(&["events", "--stats"], &[]).good()).expect("json");
    assert_eq!((&stats["type"], &stats["data"]["pids"]["limit"]), (&json!("stats"), &json!(20)));
    let pids: Value = serde_json::from_str(&world.oci(&["ps", "--format", "json"], &[]).good()).expect("json");
    assert_eq!(pids, json!([world.pid()]));
}

#[test]
fn devices_are_denied_but_for_the_usual() {
    let mut world = World::new(&[
        "sh",
        "-c",
        "cat /dev/null && echo null; dd if=/dev/zero of=/dev/null bs=1 count=1 2>/dev/null && echo zero; cat /dev/mem || echo refused",
    ]);
    world.config["linux"]["devices"] =
        json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666}]);
    assert_eq!(world.run().good(), "null\nzero\nrefused\n");
}

#[test]
fn a_cgroup_of_others_is_not_taken() {
    let first = World::new(&["sleep", "1000"]);
    first.start_all();
    let mut second = World::new(&["true"]);
    second.config["linux"]["cgroupsPath"] = json!(format!("/{}", first.id));
    assert!(second.run().bad().contains("holds processes of somebody else"));
    assert_eq!(first.status(), "running");
}

/// What a container of the host's cgroup namespace finds below /sys/fs/cgroup: on v2 the host's tree, as with runc and crun; on v1 its own
/// cgroup of each hierarchy.
#[test]
fn in_the_hosts_cgroup_namespace_the_hosts_cgroups_are_seen() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|space| space["type"] != "cgroup");
    world.start_all();
    let see = |path: &str| world.oci(&["exec"], &["cat", path]);
    let is_unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let own = if is_unified { format!("/{}", world.id) } else { "/pids".to_owned() };
    let found = see(&format!("/sys/fs/cgroup{own}/cgroup.procs")).good();
    assert!(found.lines().any(|pid| pid == "1"), "{found}");
    let host = see("/proc/self/mountinfo").good();
    let shown = |kind: &str, root: &str| host.lines().any(|line| line.contains(kind) && line.contains(root));
    let (whole, own) = (" / /sys/fs/cgroup ro", format!("/{} /sys/fs/cgroup/", world.id));
    assert_eq!((shown(" - cgroup2 ", whole), shown(" - cgroup ", &own)), (is_unified, !is_unified), "{host}");
    world.oci(&["exec"], &["mkdir", "/sys/fs/cgroup/made"]).bad();
}

/// The v1 kernel tells of a shortage before it kills, and counts the kill when that is done.
#[test]
fn a_kill_for_memory_is_an_event() {
    let mut world = World::new(&["sleep", "600"]);
    world.config["linux"]["resources"] = json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}});
    world.start_all();
    let log = world.path("events");
    let file = std::fs::File::create(&log).expect("create");
    let mut events = world.command().args(["events", &world.id]).stdout(file).spawn().expect("events");
    let text = || std::fs::read_to_string(&log).expect("read");
    eventually("statistics", || text().contains("\"type\":\"stats\""));
    let said = world.oci(&["exec"], &["sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"]);
    assert_eq!(said.code, 137, "{said:?}");
    let line = format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", world.id);
    eventually("the event", || text().contains(&line));
    world.oci(&["kill"], &["KILL"]).good();
    assert!(events.wait().expect("wait").success());
    assert_eq!(text().matches(&line).count(), 1);
}
