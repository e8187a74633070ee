//! Limits that change while a container runs, on whatever cgroups the host has, and cgroups that are somebody else's or none.

use std::path::PathBuf;

use runtime_linux::cgroup::{Cgroup, Hierarchy, Mode};
use serde_json::{Value, json};

use crate::harness::{Said, World};

/// A file of the container's cgroup, in whichever version.
fn limit(world: &World, names: &[&str]) -> String {
    limit_if_any(world, names).unwrap_or_else(|| panic!("none of {names:?} in {:?}", world.cgroups()))
}

fn limit_if_any(world: &World, names: &[&str]) -> Option<String> {
    let paths = world.cgroups();
    let found =
        names.iter().find_map(|name| paths.iter().find_map(|path| std::fs::read_to_string(path.join(name)).ok()));
    found.map(|text| text.trim().to_owned())
}

fn update(world: &World, resources: &Value) -> Said {
    let path = world.path("resources.json");
    std::fs::write(&path, resources.to_string()).expect("write");
    world.oci(&["update", "--resources", path.to_str().expect("utf-8")], &[])
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["resources"]["cpu"] = json!({"quota": 500_000, "period": 1_000_000});
    world.start_all();
    let quota = |world: &World| {
        let text = limit(world, &["cpu.max", "cpu.cfs_quota_us"]);
        if text.contains(' ') { text } else { format!("{text} {}", limit(world, &["cpu.cfs_period_us"])) }
    };
    assert_eq!(quota(&world), "500000 1000000");
    world.oci(&["update", "--cpu-period", "900000"], &[]).good();
    assert_eq!(quota(&world), "500000 900000");
    world.oci(&["update", "--cpu-quota", "600000"], &[]).good();
    assert_eq!(quota(&world), "600000 900000");
}

#[test]
fn memory_grows_shrinks_and_is_unlimited_again() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 64 << 20});
    world.start_all();
    let memory = |world: &World| limit(world, &["memory.max", "memory.limit_in_bytes"]);
    for (flags, expect) in [
        (&["--memory", "64m", "--memory-swap", "128m"][..], "67108864"),
        (&["--memory", "16m", "--memory-swap", "32m"], "16777216"),
        (&["--memory", "1g", "--memory-swap", "-1"], "1073741824"),
    ] {
        world.oci(&[&["update"], flags].concat(), &[]).good();
        assert_eq!(memory(&world), expect);
    }
    world.oci(&["update", "--memory", "64m", "--memory-swap", "64m"], &[]).good();
    world.oci(&["update", "--memory", "-1"], &[]).good();
    assert!(["max", "9223372036854771712"].contains(&memory(&world).as_str()), "{}", memory(&world));
    // What was counted with it is unlimited too, where the kernel counts it.
    let swap = limit_if_any(&world, &["memory.swap.max", "memory.memsw.limit_in_bytes"]);
    assert!(swap.as_deref().is_none_or(|swap| ["max", "9223372036854771712"].contains(&swap)), "{swap:?}");
    let refused = update(&world, &json!({"memory": {"limit": 1024, "checkBeforeUpdate": true}})).bad();
    assert!(refused.contains("rejecting memory limit"), "{refused}");
}

#[test]
fn device_rules_change_while_it_runs() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    // A device of another name than the usual, so that nothing but the rules lets it be opened.
    world.oci(&["exec"], &["sh", "-c", "/bin/busybox mknod /dev/other c 1 1 && chmod 666 /dev/other || true"]).good();
    let opens = |world: &World| {
        world.oci(&["exec", "--cap", "CAP_SYS_RAWIO"], &["dd", "if=/dev/mem2", "of=/dev/null", "bs=1", "count=0"])
    };
    world.oci(&["exec", "--cap", "CAP_MKNOD"], &["/bin/busybox", "mknod", "/dev/mem2", "c", "1", "2"]).good();
    let refused = opens(&world);
    assert!(refused.bad().to_lowercase().contains("not permitted"));
    let rules = json!({"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 2, "access": "rw"}]});
    update(&world, &rules).good();
    // There is no such driver any more, but the rules let it be asked.
    assert!(!opens(&world).err.to_lowercase().contains("not permitted"));
    world
        .oci(
            &["exec"],
            &[
                "sh",
                "-c",
                "echo x > /dev/null && head -c 1 /dev/zero > /dev/null || dd if=/dev/zero of=/dev/null bs=1 count=1",
            ],
        )
        .good();
    update(&world, &json!({"devices": [{"allow": false, "access": "rwm"}]})).good();
    assert!(opens(&world).bad().to_lowercase().contains("not permitted"));
    // What else is updated leaves them as they are.
    update(&world, &rules).good();
    world.oci(&["update", "--pids-limit", "50"], &[]).good();
    assert!(!opens(&world).err.to_lowercase().contains("not permitted"));
}

#[test]
fn nothing_that_was_asked_for_is_dropped_in_silence() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let said = update(&world, &json!({"pids": {"limit": 9}, "cpu": {"shars": 5}, "nope": {}, "extra": 1}));
    assert_eq!(said.code, 0);
    assert!(said.err.contains("cpu.shars") && said.err.contains("extra") && !said.err.contains("nope"), "{}", said.err);
    let path = world.path("resources.json");
    let both = ["update", "--resources", path.to_str().expect("utf-8"), "--pids-limit", "5"];
    assert!(world.oci(&both, &[]).bad().contains("no other limit"));
    assert!(world.oci(&["update", "--l3-cache-schema", "L3:0=f"], &[]).bad().contains("intelRdt"));
    let said = world.oci(&["update", "--kernel-memory", "64m"], &[]);
    assert!(said.err.contains("memory.kernel"), "{}", said.err);
}

#[test]
fn no_pids_at_all_are_one() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["resources"]["pids"] = json!({"limit": 0});
    world.start_all();
    assert_eq!(limit(&world, &["pids.max"]), "1");
}

#[test]
fn files_that_no_controller_has_are_told_by_what_is_missing() {
    for (file, words) in [
        ("foo.bar", "controller `foo` is not available under /sys/fs/cgroup"),
        ("NO-KEY", "has not the form CONTROLLER.VALUE `NO-KEY`"),
        ("cgroup.bar", "unified.cgroup.bar: must be the name of a controller's file"),
    ] {
        let mut world = World::new(&["true"]);
        world.config["linux"]["resources"]["unified"] = json!({file: "1"});
        let said = world.run().bad();
        assert!(said.contains(words), "{file}: {said}");
        world.assert_gone();
    }
    let mut world = World::new(&["true"]);
    world.config["linux"]["resources"]["unified"] = json!({"memory.bar": "1"});
    let said = world.run().bad();
    let expect = if is_pure_v2() { "unified.memory.bar: no such file or directory" } else { "as cgroup v1" };
    assert!(said.contains(expect), "{said}");
}

fn is_pure_v2() -> bool {
    Hierarchy::detect().expect("cgroups").mode() == Mode::Unified
}

/// A cgroup2 mount of its own gets them, and its kernel knows them or not; what is there already keeps its own.
#[test]
fn options_of_a_cgroup_mount_are_not_dropped() {
    let mut world = World::new(&["true"]);
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup").expect("a cgroup mount");
    cgroup["options"].as_array_mut().expect("options").push(json!("no_such_option"));
    let said = world.run();
    if is_pure_v2() {
        let said = said.bad();
        assert!(said.contains("invalid argument") && said.contains("no_such_option"), "{said}");
    } else {
        assert!(said.err.contains("option no_such_option has no meaning"), "{said:?}");
        said.good();
    }
    world.assert_gone();
}

#[test]
fn a_frozen_cgroup_is_refused() {
    let mut world = World::new(&["true"]);
    let path = format!("{}-frozen", world.id);
    world.config["linux"]["cgroupsPath"] = json!(format!("/{path}"));
    let hierarchy = Hierarchy::detect().expect("cgroups");
    let cgroup = Cgroup::create(&hierarchy, &format!("/{path}")).expect("create");
    cgroup.freeze().expect("freeze");
    assert!(world.run().bad().contains("container's cgroup unexpectedly frozen"));
    cgroup.thaw().expect("thaw");
    cgroup.remove().expect("remove");
}

#[test]
fn a_container_lives_without_a_cgroup_of_its_own() {
    let world = World::new(&["sleep", "1000"]);
    world.save();
    let mut command = world.command();
    command.args(["--cgroup-manager", "disabled", "run", "-d", "--bundle"]).arg(world.bundle()).arg(&world.id);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().expect("run").success());
    assert_eq!(world.cgroups(), Vec::<PathBuf>::new());
    assert_eq!(world.status(), "running");
    world.oci(&["exec"], &["true"]).good();
    assert!(world.oci(&["pause"], &[]).bad().contains("freezer"));
    world.oci(&["delete", "--force"], &[]).good();
    world.assert_gone();
}

#[test]
fn an_exec_joins_places_below() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let hierarchy = Hierarchy::detect().expect("cgroups");
    Cgroup::create(&hierarchy, &format!("/{}/below", world.id)).expect("create");
    let own = |words: &[&str]| {
        let said = world.oci(&[&["exec"], words].concat(), &["cat", "/proc/self/cgroup"]);
        said.good().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = own(&["--cgroup", "below"]);
    assert!(all.iter().filter(|line| line.ends_with("/below")).count() >= world.cgroups().len(), "{all:?}");
    assert!(own(&["--cgroup", "/"]).iter().all(|line| !line.ends_with("/below")));
    for (path, words) in [("..", "bad sub cgroup path"), ("none", " adding pid "), ("what:/", "unknown controller")] {
        let said = world.oci(&["exec", "--cgroup", path], &["true"]).bad();
        assert!(said.contains(words), "{path}: {said}");
    }
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let some = own(&["--cgroup", "pids:below"]);
        assert_eq!(some.iter().filter(|line| line.ends_with("/below")).count(), 1, "{some:?}");
    }
}

#[test]
fn statistics_are_runcs_and_whole() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let text = world.oci(&["events", "--stats"], &[]).good();
    assert!(text.starts_with(&format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", world.id)), "{text}");
    let stats: Value = serde_json::from_str(&text).expect("json");
    let data = &stats["data"];
    assert!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|time| time > 0));
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(data["memory"]["raw"].as_object().is_some_and(|raw| raw.len() > 5));
    assert!(data["hugetlb"].is_object() && data["cpuset"]["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty()));
    assert_eq!(data["pids"]["current"], json!(1));
    assert!(world.oci(&["events", "--interval", "0s"], &[]).bad().contains("--interval"));
}
