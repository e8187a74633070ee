//! A container that attacks the runtime while the runtime enters it, or makes another container beside it.

use std::path::Path;

use serde_json::json;

use super::caller::leak;
use super::{Canary, grant, make_executable};
use crate::harness::{World, eventually};

/// How often the runtime comes near the attacker.
const EXECS: usize = 60;

/// Everything that root of a container can be given and is not the host's root by.
const TRACER: [&str; 5] = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL", "CAP_AUDIT_WRITE"];

/// A container whose init does `attack` for every process `$p` that it sees, until it finds /tmp/end.
fn attacker(attack: &str) -> World {
    let script = format!(
        "mkdir -p /tmp; while ! [ -e /tmp/end ]; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || {{ {attack}; }}; done 2>/dev/null; done"
    );
    let mut world = World::new(&["sh", "-c", &script]);
    world.config["root"]["readonly"] = json!(false);
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/[")).expect("symlink");
    world
}

fn found(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.rootfs().join("tmp").join(name)).unwrap_or_default()
}

fn exec_often(world: &World) {
    for _ in 0..EXECS {
        world.oci(&["exec"], &["true"]).good();
    }
    std::fs::write(world.rootfs().join("tmp/end"), "").expect("end the attack");
    eventually("the attacker to end", || world.status() == "stopped");
}

/// CVE-2016-9962: with the rights of an ordinary container, an exec cannot even be looked at before it runs its program. Reading
/// `/proc/PID/exe` takes the same check as attaching with ptrace(2).
#[test]
fn an_exec_cannot_be_traced_by_the_containers_root() {
    let world = attacker("readlink $p/exe >> /tmp/seen; ls -l $p/fd >> /tmp/open");
    let canary = Canary::new(&world);
    let _leaked = leak(&canary.dir);
    world.start_all();
    exec_often(&world);
    let seen = found(&world, "seen");
    assert!(seen.lines().count() > 1, "the attacker saw nothing at all");
    let foreign: Vec<_> = seen.lines().filter(|line| !line.ends_with("/busybox")).collect();
    assert!(foreign.is_empty(), "the runtime was looked at: {foreign:?}");
    assert!(!found(&world, "open").contains("canary"), "{}", found(&world, "open"));
}

/// The same with CAP_SYS_PTRACE, which reaches everything that it sees: what it sees must have nothing of the host's, neither its root
/// nor its working directory nor a descriptor.
#[test]
fn an_exec_has_nothing_of_the_hosts_when_it_is_seen() {
    let mut world =
        attacker("cat $p/root$CANARY/file $p/cwd$CANARY/file $p/fd/*/file $p/fd/*/canary/file >> /tmp/stolen");
    let canary = Canary::new(&world);
    let _leaked = leak(&canary.dir);
    let environment = world.config["process"]["env"].as_array_mut().expect("env");
    environment.push(json!(format!("CANARY={}", canary.dir.display())));
    grant(&mut world, &TRACER);
    world.start_all();
    exec_often(&world);
    assert_eq!(found(&world, "stolen"), "", "the host's file was read through the runtime's process");
    canary.assert_unchanged();
}

/// CVE-2019-5736: the runtime's own file, through `/proc/PID/exe` of an exec, kept open and written as soon as nobody runs it.
#[test]
fn the_runtime_cannot_be_written_through_an_exec() {
    let attack = "{ case $(readlink /proc/self/fd/9) in */busybox) ;; *) echo caught >> /tmp/caught; \
        for i in 1 2 3 4 5 6 7 8 9 10; do echo x > /proc/self/fd/9 && echo written >> /tmp/written; done ;; esac; } 9< $p/exe";
    let mut world = attacker(attack);
    let (own, before) = own_copy(&mut world);
    grant(&mut world, &TRACER);
    world.start_all();
    exec_often(&world);
    assert_eq!(found(&world, "written"), "");
    assert!(std::fs::read(own).expect("read") == before, "the runtime was changed");
}

/// CVE-2019-5736: the runtime is made to run itself inside, by the entrypoint and by exec.
#[test]
fn the_runtime_cannot_be_written_from_inside() {
    for target in ["script", "link"] {
        let mut world = World::new(&["/evil"]);
        let (own, before) = own_copy(&mut world);
        let evil = world.rootfs().join("evil");
        if target == "script" {
            std::fs::write(&evil, "#!/proc/self/exe\n").expect("write");
            make_executable(&evil);
        } else {
            std::os::unix::fs::symlink("/proc/self/exe", &evil).expect("symlink");
        }
        let _any = world.run();
        let _gone = world.oci(&["delete", "--force"], &[]);
        // A waiting process of the runtime's, and an exec of itself, seen by a container in the same PID namespace with every right.
        world.config["process"]["args"] = json!(["sleep", "1000"]);
        world.create().good();
        let script = "for i in 1 2 3 4 5; do for p in /proc/[0-9]*; do echo x > $p/exe && echo written; done; done 2>/dev/null; true";
        let mut attacker = World::new(&["sh", "-c", script]);
        attacker.runtime.clone_from(&world.runtime);
        attacker.config["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{}/ns/pid", world.pid())}]);
        attacker.config.as_object_mut().expect("object").remove("hostname");
        let mounts = attacker.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] == "/proc" || mount["destination"] == "/dev");
        grant(&mut attacker, &[&TRACER[..], &["CAP_SYS_ADMIN"]].concat());
        let said = attacker.run();
        assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
        let _any = world.oci(&["exec"], &["/evil"]);
        assert!(std::fs::read(&own).expect("read") == before, "the runtime was changed");
    }
}

/// A copy of the runtime to run, so that an attack that works hurts nobody.
fn own_copy(world: &mut World) -> (std::path::PathBuf, Vec<u8>) {
    let own = world.path("runtime-under-attack");
    std::fs::copy(&world.runtime, &own).expect("copy the runtime");
    make_executable(&own);
    world.runtime.clone_from(&own);
    let before = std::fs::read(&own).expect("read");
    (own, before)
}

/// The start of a created container is the runtime's to give: nothing of the state is within the container's reach.
#[test]
fn a_container_cannot_reach_its_own_state() {
    let mut world = World::new(&[
        "sh",
        "-c",
        "ls -l /proc/self/fd /proc/1/fd; cat /proc/net/unix; ls $STATE; cat $STATE/state.json; echo x > $STATE/start.sock; true",
    ]);
    let state = world.state_root().join(&world.id);
    let environment = world.config["process"]["env"].as_array_mut().expect("env");
    environment.push(json!(format!("STATE={}", state.display())));
    // In the host's network namespace, where an abstract socket would be in reach.
    let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("list");
    namespaces.retain(|namespace| namespace["type"] != "network");
    super::without_mount(&mut world, "/sys");
    let out = world.run().good();
    assert!(!out.contains(&format!("@{}", state.display())), "an abstract socket: {out}");
    let descriptors = out.lines().filter(|line| line.contains(" -> ")).filter(|line| line.contains("socket:"));
    assert_eq!(descriptors.count(), 0, "{out}");
    assert!(!out.contains("oci_version") && !out.contains("ociVersion"), "{out}");
}

/// A container that makes cgroups of its own, deeper than a path can be long, is deleted all the same.
#[test]
fn deep_cgroups_of_the_container_are_removed() {
    let script = "cd /sys/fs/cgroup/unified 2>/dev/null || cd /sys/fs/cgroup; i=0; n=$(echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa); \
        while [ $i -lt 120 ]; do mkdir $n && cd $n || break; i=$((i+1)); done; echo $i";
    let mut world = World::new(&["sh", "-c", script]);
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/[")).expect("symlink");
    for mount in world.config["mounts"].as_array_mut().expect("mounts") {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    grant(&mut world, &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    let said = world.run();
    let made: usize = said.out.trim().parse().unwrap_or(0);
    assert!(made > 50 || !Path::new("/sys/fs/cgroup/unified").exists(), "{said:?}");
    world.assert_gone();
}
