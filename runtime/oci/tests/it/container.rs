//! What a process finds inside: namespaces, mounts, devices, identity, capabilities, limits, filter.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::harness::World;

fn shell(script: &str) -> World {
    World::new(&["sh", "-c", script])
}

fn mount(world: &mut World, mount: Value) {
    world.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

#[test]
fn every_namespace_is_its_own() {
    let kinds = ["mnt", "pid", "net", "uts", "ipc", "cgroup", "time", "user"];
    let mut world = shell(
        "for n in mnt pid net uts ipc cgroup time user; do readlink /proc/self/ns/$n; done; cat /proc/self/uid_map; id -u",
    );
    let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.extend([json!({"type": "time"}), json!({"type": "user"})]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    let out = world.run().good();
    let lines: Vec<_> = out.lines().collect();
    for (kind, line) in kinds.iter().zip(&lines) {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("readlink");
        assert!(line.starts_with(kind) && own.to_str() != Some(*line), "{kind}: {line}");
    }
    assert_eq!(lines[8].split_ascii_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(lines[9], "0");
    world.assert_gone();
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = World::new(&["sleep", "1000"]);
    first.start_all();
    let mut second = shell("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done");
    let list = ["network", "ipc", "uts", "pid"].map(|kind| {
        let file = if kind == "network" { "net" } else { kind };
        json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", first.pid()) })
    });
    second.config["linux"]["namespaces"] = json!([list[0], list[1], list[2], list[3], {"type": "mount"}]);
    second.config.as_object_mut().expect("object").remove("hostname");
    let out = second.run().good();
    for (kind, line) in ["net", "ipc", "uts", "pid"].iter().zip(out.lines()) {
        let theirs = std::fs::read_link(format!("/proc/{}/ns/{kind}", first.pid())).expect("readlink");
        assert_eq!(theirs.to_str(), Some(line));
    }
    // A new user namespace beside joined ones takes the process in between.
    second.config["linux"]["namespaces"] = json!([list[0], {"type": "mount"}, {"type": "user"}, {"type": "pid"}]);
    second.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    second.config["linux"]["gidMappings"] = second.config["linux"]["uidMappings"].clone();
    second.config["process"]["args"] = json!(["readlink", "/proc/self/ns/net"]);
    // sysfs belongs to the network namespace's owner, who is not this container's root.
    let mounts = second.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup" && mount["type"] != "mqueue");
    let theirs = std::fs::read_link(format!("/proc/{}/ns/net", first.pid())).expect("readlink");
    assert_eq!(Some(second.run().good().trim()), theirs.to_str());
    for name in ["uidMappings", "gidMappings"] {
        second.config["linux"].as_object_mut().expect("object").remove(name);
    }
    let bad = json!([{"type": "network", "path": "/etc/passwd"}, {"type": "mount"}]);
    second.config["linux"]["namespaces"] = bad;
    assert!(second.run().bad().contains("open net namespace /etc/passwd"));
}

#[test]
fn the_usual_devices_are_there_and_masks_hold() {
    let mut world = shell(
        "stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; readlink /dev/fd; readlink /dev/ptmx; \
         cat /proc/keys | id -u; ls /proc/acpi; echo x > /proc/sys/net/ipv4/ip_forward || echo read-only; touch /bin/x || echo root",
    );
    world.config["root"]["readonly"] = json!(true);
    let said = world.run();
    let expect = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n\
        /dev/tty 5:0 666\n/proc/self/fd\npts/ptmx\n0\nread-only\nroot\n";
    assert_eq!((said.code, said.out.as_str()), (0, expect), "{}", said.err);
}

#[test]
fn mount_options_do_what_they_say() {
    let mut world = shell(
        "cat /proc/self/mountinfo; cat /mnt/bound/file; touch /mnt/bound/new || echo refused; touch /mnt/up/old && ls /mnt/up",
    );
    let source = world.path("source");
    std::fs::create_dir_all(source.join("sub")).expect("mkdir");
    std::fs::write(source.join("file"), "content\n").expect("write");
    std::fs::create_dir_all(world.rootfs().join("mnt/up")).expect("mkdir");
    std::fs::write(world.rootfs().join("mnt/up/old"), "x").expect("write");
    let bound = json!({"destination": "/mnt/bound", "type": "bind", "source": source, "options": ["rbind", "rro", "nosuid", "noexec"]});
    mount(&mut world, bound);
    mount(
        &mut world,
        json!({"destination": "/mnt/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=64k", "nodev"]}),
    );
    let out = world.run().good();
    let line = |at: &str| out.lines().find(|line| line.contains(&format!(" {at} "))).unwrap_or_default().to_owned();
    assert!(line("/mnt/bound").contains(" ro,nosuid,noexec,"), "{out}");
    assert!(line("/mnt/up").contains("nodev") && line("/mnt/up").contains("size=64k"), "{out}");
    assert!(out.ends_with("content\nrefused\nold\n"), "{out}");
    world.assert_gone();
}

#[test]
fn id_mapped_bind_mounts() {
    let mut world = shell("stat -c '%u:%g' /mnt/file");
    let source = world.path("source");
    std::fs::create_dir_all(&source).expect("mkdir");
    std::fs::write(source.join("file"), "").expect("write");
    let map = json!([{"containerID": 0, "hostID": 4242, "size": 10}]);
    let bind = json!({"destination": "/mnt", "type": "bind", "source": source, "options": ["bind"], "uidMappings": map, "gidMappings": map});
    mount(&mut world, bind);
    assert_eq!(world.run().good(), "4242:4242\n");
}

#[test]
fn identity_and_capabilities() {
    let mut world = shell("id; umask; pwd; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ulimit -n");
    symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27});
    world.config["process"]["cwd"] = json!("/tmp");
    world.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_FUTURE"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    let out = world.run().good();
    let expect = "uid=1000 gid=1001 groups=5,6\n0027\n/tmp\nCapInh:\t0000000000000020\nCapPrm:\t0000000000000020\n\
        CapEff:\t0000000000000020\nCapBnd:\t0000000000000021\nCapAmb:\t0000000000000020\nNoNewPrivs:\t1\n1024\n";
    assert_eq!(out, expect);
}

#[test]
fn seccomp_with_and_without_no_new_privileges() {
    for no_new_privileges in [true, false] {
        let mut world = shell("mkdir /tmp/x || echo refused; grep CapEff /proc/self/status");
        symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
        world.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        world.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
        assert_eq!(world.run().good(), "refused\nCapEff:\t0000000020000420\n");
    }
}

#[test]
fn the_default_profile_lets_programs_run_and_refuses_mounts() {
    let mut world = shell("ls / > /dev/null && sleep 0 && echo works; mount -t tmpfs x /tmp || echo refused");
    let profile = runtime_oci::seccomp::default_profile(&[]);
    world.config["linux"]["seccomp"] = serde_json::to_value(profile).expect("json");
    assert_eq!(world.run().good(), "works\nrefused\n");
}

/// Where the caller's standard input is the host's /dev/null; the file system of the container's own is another.
#[test]
fn the_hosts_null_device_stays_outside() {
    let script = "stat -L -c %d /proc/self/fd/0 /dev/null";
    let mut world = shell(script);
    let same = |out: String| {
        let devices: Vec<_> = out.lines().map(str::to_owned).collect();
        assert_eq!((devices.len(), &devices[0]), (2, &devices[1]), "{out}");
        devices[0].clone()
    };
    let inside = same(world.run().good());
    let host = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/dev/null").expect("stat"));
    assert_ne!(inside, host.to_string());
    world.config["process"]["args"] = json!(["sleep", "1000"]);
    world.start_all();
    same(world.oci(&["exec"], &["sh", "-c", script]).good());
}

#[test]
fn a_terminal_by_console_socket() {
    let mut world = shell("tty; test -c /dev/console && echo console; stty size");
    symlink("busybox", world.rootfs().join("bin/stty")).expect("symlink");
    symlink("busybox", world.rootfs().join("bin/test")).expect("symlink");
    world.config["process"]["terminal"] = json!(true);
    world.config["process"]["consoleSize"] = json!({"width": 91, "height": 17});
    assert!(world.create().bad().contains("console socket"));
    world.save();
    let path = world.path("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let mut command = world.command();
    command.args(["create", "--console-socket"]).arg(&path).arg("--bundle").arg(world.bundle()).arg(&world.id);
    assert!(command.status().expect("create").success());
    let (stream, _) = listener.accept().expect("accept");
    let mut descriptors = Vec::new();
    runtime_linux::fd_passing::receive(&stream, &mut [0; 64], &mut descriptors).expect("receive");
    let mut master = std::fs::File::from(descriptors.pop().expect("master"));
    world.oci(&["start"], &[]).good();
    let mut text = Vec::new();
    let mut buffer = [0; 256];
    // EIO is how a terminal says that its last user has gone.
    while let Ok(length) = std::io::Read::read(&mut master, &mut buffer) {
        text.extend(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    assert_eq!(text, "/dev/pts/0\nconsole\n17 91\n");
}
