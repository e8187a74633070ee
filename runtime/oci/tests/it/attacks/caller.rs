//! What a caller's arguments, environment and surroundings may lead the runtime to: ids, paths, descriptors, hooks, cgroups.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use super::{Canary, mount, without_mount};
use crate::harness::{World, eventually};

/// Descriptors on a directory of the host that the runtime inherits, as a careless caller has them.
pub(super) fn leak(dir: &Path) -> Vec<std::fs::File> {
    let leaked: Vec<_> = (0..12).map(|_| std::fs::File::open(dir).expect("open")).collect();
    for file in &leaked {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(file, flags).expect("leak");
    }
    leaked
}

#[test]
fn bad_ids_touch_nothing() {
    let world = World::new(&["true"]);
    world.save();
    let canary = Canary::new(&world);
    let state = world.state_root();
    std::fs::create_dir(&state).expect("mkdir");
    let into_canary = format!("../canary/{}", world.id);
    let long = "x".repeat(1024);
    for id in ["..", ".", "a/b", "../x", "", "a\nb", "a\0b", "/etc", "..\\x", "a b", &into_canary, &long] {
        for verb in ["run", "create", "delete", "state", "start", "kill", "exec", "pause", "update"] {
            if id.contains('\0') {
                continue;
            }
            let mut command = world.command();
            command.arg(verb);
            if verb == "run" || verb == "create" {
                command.arg("--bundle").arg(world.bundle());
            }
            if verb == "update" {
                command.args(["--pids-limit", "7"]);
            }
            command.args(["--", id]);
            if verb == "exec" {
                command.arg("true");
            }
            let output = command.stdout(std::process::Stdio::null()).output().expect("run");
            assert!(!output.status.success(), "{verb} {id:?}");
        }
        let left: Vec<_> = std::fs::read_dir(&state).expect("read").flatten().collect();
        assert!(left.is_empty(), "{id:?}: {left:?}");
        canary.assert_unchanged();
    }
    assert!(!world.path("x").exists());
}

/// CVE-2024-21626: a working directory through a descriptor of the host's that the caller, or the runtime itself, left open.
#[test]
fn no_working_directory_outside_and_no_leaked_descriptors() {
    let mut world = World::new(&["ls", "/proc/self/fd"]);
    let leaked = leak(Path::new("/"));
    // 3 is what ls itself opens.
    assert_eq!(world.run().good(), "0\n1\n2\n3\n");
    let last = leaked.iter().map(AsRawFd::as_raw_fd).max().expect("some").max(20);
    for number in 3..=last {
        for up in ["", "/..", "/../.."] {
            world.config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}{up}"));
            world.config["process"]["args"] = json!(["/bin/busybox", "true"]);
            world.run().bad();
        }
    }
    world.config["process"]["cwd"] = json!("/");
    world.config["process"]["args"] = json!(["sleep", "1000"]);
    world.start_all();
    assert_eq!(world.oci(&["exec"], &["ls", "/proc/self/fd"]).good(), "0\n1\n2\n3\n");
    for number in 3..=last {
        world.oci(&["exec", "--cwd", &format!("/proc/self/fd/{number}")], &["true"]).bad();
    }
}

/// Hooks get their own environment and the three streams; not the container's variables, nor what the caller has open or preserves.
#[test]
fn hooks_get_nothing_of_others() {
    let mut world = World::new(&["true"]);
    let leaked = leak(Path::new("/"));
    let trace = world.path("trace");
    let script = format!("(ls /proc/$$/fd; env; cat > /dev/null) >> {}", trace.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin", "OWN=1"]}]);
    for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        world.config["hooks"][name] = hook.clone();
    }
    let environment = world.config["process"]["env"].as_array_mut().expect("env");
    environment.extend([json!("LD_PRELOAD=/tmp/evil.so"), json!("EVIL=1")]);
    world.save();
    let number = leaked.iter().map(AsRawFd::as_raw_fd).min().expect("some");
    let mut command = world.command();
    // 3 and more belong to the container, where they are open.
    let preserve = if number == 3 { "1" } else { "0" };
    command.args(["run", "--preserve-fds", preserve, "--bundle"]).arg(world.bundle()).arg(&world.id);
    command.env("LD_BIND_NOW_EVIL", "1");
    assert!(command.status().expect("run").success());
    let text = std::fs::read_to_string(trace).expect("trace");
    assert_eq!(text.matches("OWN=1").count(), 5, "{text}");
    assert!(!text.contains("EVIL") && !text.contains("LD_"), "{text}");
    // The shell itself may hold a high number on its script or on nothing at all; a low one came from outside.
    let foreign = text.lines().filter_map(|line| line.parse::<u32>().ok()).find(|number| (3..10).contains(number));
    assert_eq!(foreign, None, "{text}");
}

/// A cgroup path that leads out of the cgroup file system, to the root cgroup or into somebody else's.
#[test]
fn cgroup_paths_stay_in_the_hierarchy() {
    for path in ["/../../../tmp/CANARY", "../CANARY", "a/../../../../CANARY", "/a/./../..", "/a\nb", "/"] {
        let mut world = World::new(&["true"]);
        let canary = Canary::new(&world);
        let below = canary.dir.to_str().expect("utf-8").trim_start_matches('/');
        world.config["linux"]["cgroupsPath"] = json!(path.replace("CANARY", below));
        let _any = world.run();
        canary.assert_unchanged();
        assert!(!Path::new("/sys/fs/cgroup").join(below).exists());
        world.assert_gone();
    }
    // An exec that asks for a cgroup outside of the container's own.
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    for path in ["../..", "/../..", "../../../../..", "x/../../.."] {
        world.oci(&["exec", "--cgroup", path], &["true"]).bad();
    }
}

/// CVE-2024-3154: annotations that would become properties of a systemd unit.
#[test]
fn annotations_run_nothing() {
    let mut world = World::new(&["true"]);
    let canary = Canary::new(&world);
    let evil = format!("[('/bin/rm', ['/bin/rm', '-rf', '{}'], false)]", canary.dir.display());
    world.config["annotations"] = json!({
        "org.systemd.property.ExecStartPre": evil, "org.systemd.property.ExecStopPost": evil,
        "org.systemd.property.Delegate": "'; rm -rf /'", "run.oci.hooks.stdout": canary.dir.join("file"),
        "run.oci.hooks.stderr": canary.dir.join("new"),
    });
    let _any = world.run();
    world.save();
    let mut command = world.command();
    command.args(["--systemd-cgroup", "run", "--bundle"]).arg(world.bundle()).arg(&world.id);
    let _any = command.output().expect("run");
    canary.assert_unchanged();
}

/// The state of a container is its owner's, and a planted symlink in its place is not followed.
#[test]
fn the_state_is_nobody_elses() {
    let mut world = World::new(&["sleep", "1000"]);
    world.start_all();
    let dir = world.state_root().join(&world.id);
    let mode = std::fs::metadata(&dir).expect("state").permissions().mode();
    assert_eq!(mode & 0o022, 0, "others may write: {mode:o}");
    for entry in std::fs::read_dir(&dir).expect("read").flatten() {
        let mode = entry.metadata().expect("stat").permissions().mode();
        let reachable = std::fs::metadata(&dir).expect("state").permissions().mode() & 0o001 != 0;
        assert!(!reachable || mode & 0o002 == 0, "{entry:?}: {mode:o}");
    }
    world.oci(&["delete", "--force"], &[]).good();
    let canary = Canary::new(&world);
    symlink(&canary.dir, &dir).expect("symlink");
    let _any = world.oci(&["delete", "--force"], &[]);
    world.config["process"]["args"] = json!(["true"]);
    let _any = world.run();
    canary.assert_unchanged();
    let _gone = std::fs::remove_file(&dir);
}

/// `--pid-file` in a directory where somebody else may write: the file they planted is replaced, its target is not written.
#[test]
fn a_pid_file_follows_no_planted_symlink() {
    let world = World::new(&["sleep", "1000"]);
    let canary = Canary::new(&world);
    world.save();
    let place = world.path("pids");
    std::fs::create_dir(&place).expect("mkdir");
    for name in ["pid", ".pid", "pid.new", "pid.tmp"] {
        symlink(canary.dir.join("file"), place.join(name)).expect("symlink");
    }
    let mut command = world.command();
    command.args(["create", "--pid-file"]).arg(place.join("pid")).arg("--bundle").arg(world.bundle()).arg(&world.id);
    let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    let _any = status.expect("create");
    canary.assert_unchanged();
}

/// Sysctls that are not the container's: by name, by a path, by dots in place of slashes.
#[test]
fn sysctls_are_the_containers_own() {
    let pattern = super::core_pattern();
    for key in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "kernel/../kernel.core_pattern",
        "net..kernel.core_pattern",
        "fs.mqueue/../../kernel/core_pattern",
        "kernel.shmmax/../core_pattern",
        "../../proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/core_pattern",
    ] {
        let mut world = World::new(&["true"]);
        world.config["linux"]["sysctl"] = json!({key: "|/bin/false"});
        world.run().bad();
        assert_eq!(super::core_pattern(), pattern, "{key}");
        world.assert_gone();
    }
    // One of a namespace that is the host's.
    let mut world = World::new(&["true"]);
    let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("list");
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "ipc");
    without_mount(&mut world, "/sys");
    without_mount(&mut world, "/dev/mqueue");
    let before = std::fs::read("/proc/sys/kernel/shmmni").expect("shmmni");
    world.config["linux"]["sysctl"] = json!({"kernel.shmmni": "77"});
    world.run().bad();
    assert_eq!(std::fs::read("/proc/sys/kernel/shmmni").expect("shmmni"), before);
}

/// CVE-2023-25809: the host's cgroups below a /sys that is bound read-only, with no cgroup namespace.
#[test]
fn cgroups_below_a_read_only_sys_are_read_only() {
    let mut world = World::new(&[
        "sh",
        "-c",
        "for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $dir/evil-$ID 2>/dev/null && echo made $dir; done; true",
    ]);
    let id = world.id.clone();
    world.config["process"]["env"].as_array_mut().expect("env").push(json!(format!("ID={id}")));
    let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("list");
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "cgroup");
    // Root in the user namespace is root outside, who may write to the host's cgroups, as a rootless user may to their own.
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    without_mount(&mut world, "/sys");
    let options = json!(["rbind", "nosuid", "noexec", "nodev", "ro"]);
    mount(&mut world, json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options}));
    let said = world.run();
    let mut places: Vec<_> = std::fs::read_dir("/sys/fs/cgroup").expect("read").flatten().map(|it| it.path()).collect();
    places.push("/sys/fs/cgroup".into());
    let made: Vec<_> = places.iter().map(|place| place.join(format!("evil-{id}"))).filter(|dir| dir.exists()).collect();
    for dir in &made {
        std::fs::remove_dir(dir).expect("rmdir");
    }
    assert!(made.is_empty() && said.out.is_empty(), "{said:?}");
}

/// A container that is ended and whose pid is another's by then: nothing that is done to it reaches that process.
#[test]
fn a_pid_of_before_is_nobody() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let pid = world.pid();
    world.oci(&["kill"], &["KILL"]).good();
    eventually("stopped", || world.status() == "stopped");
    // Whoever has that number now, or nobody.
    for verb in [&["kill"][..], &["exec"], &["pause"], &["ps"]] {
        let arguments: &[&str] = if verb == ["exec"] { &["true"] } else { &[] };
        let said = world.oci(verb, arguments);
        assert!(said.code != 0 || verb == ["ps"], "{verb:?} {pid}: {said:?}");
    }
    world.oci(&["delete"], &[]).good();
    world.assert_gone();
}
