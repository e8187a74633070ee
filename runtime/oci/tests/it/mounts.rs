//! Mount entries beyond the usual: symlinks on either side, remount, what lies over the root, user namespaces without maps.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::harness::World;

fn shell(script: &str) -> World {
    World::new(&["sh", "-c", script])
}

fn mount(world: &mut World, mount: Value) {
    world.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn namespace(world: &mut World, namespace: Value) {
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(namespace);
}

#[test]
fn a_destination_behind_a_dangling_link_is_made_inside() {
    let mut world = shell("cat /link; cat /made/inside/here");
    symlink("../../made/inside/here", world.rootfs().join("link")).expect("symlink");
    let source = world.path("source");
    std::fs::write(&source, "content\n").expect("write");
    mount(&mut world, json!({"destination": "/link", "type": "bind", "source": source, "options": ["bind"]}));
    assert_eq!(world.run().good(), "content\ncontent\n");
    world.assert_gone();
}

#[test]
fn symlinks_are_bound_copied_or_covered() {
    let mut world = shell("readlink /copied; readlink /bound; cat /covered; readlink /covered || echo file");
    let (link, file) = (world.path("source-link"), world.path("source-file"));
    symlink("point-to-nowhere", &link).expect("symlink");
    std::fs::write(&file, "content\n").expect("write");
    for name in ["bound", "covered"] {
        symlink("/elsewhere", world.rootfs().join(name)).expect("symlink");
    }
    mount(
        &mut world,
        json!({"destination": "/copied", "type": "bind", "source": link, "options": ["rbind", "copy-symlink"]}),
    );
    let options = json!(["bind", "src-nofollow", "dest-nofollow"]);
    mount(&mut world, json!({"destination": "/bound", "type": "bind", "source": link, "options": options}));
    mount(
        &mut world,
        json!({"destination": "/covered", "type": "bind", "source": file, "options": ["bind", "dest-nofollow"]}),
    );
    assert_eq!(world.run().good(), "point-to-nowhere\npoint-to-nowhere\ncontent\nfile\n");
    assert!(!world.rootfs().join("elsewhere").exists());
    world.assert_gone();
}

#[test]
fn remount_changes_what_an_earlier_entry_made() {
    let mut world = shell("grep ' /mnt ' /proc/self/mountinfo; touch /mnt/x || echo refused");
    symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    mount(
        &mut world,
        json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "iversion"]}),
    );
    mount(
        &mut world,
        json!({"destination": "/mnt", "source": "none", "options": ["remount", "size=128k", "ro", "nosuid"]}),
    );
    let out = world.run().good();
    assert!(out.contains("size=128k") && out.contains(" ro,nosuid") && out.ends_with("refused\n"), "{out}");
    // With bind only the mount changes, not its file system.
    let last = world.config["mounts"].as_array().expect("mounts").len() - 1;
    world.config["mounts"][last] = json!({"destination": "/mnt", "options": ["remount", "bind", "nosuid", "noexec"]});
    let out = world.run().good();
    assert!(out.contains("size=64k") && out.contains(" rw,nosuid,noexec"), "{out}");
    world.assert_gone();
}

#[test]
fn what_is_mounted_over_the_root_is_the_root() {
    let mut world = World::new(&["/data/cat", "/data/file"]);
    let data = world.path("data");
    std::fs::create_dir(&data).expect("mkdir");
    std::fs::copy("/bin/busybox", data.join("cat")).expect("copy");
    std::fs::write(data.join("file"), "from below\n").expect("write");
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    mounts.insert(0, json!({"destination": "/", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}));
    mounts.push(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro"]}));
    assert_eq!(world.run().good(), "from below\n");
    world.config["mounts"][0]["options"] = json!(["tmpcopyup"]);
    assert!(world.run().bad().contains("tmpcopyup on /"));
    world.assert_gone();
}

#[test]
fn a_user_namespace_without_maps_has_its_caller_as_root() {
    let mut world = shell("id -u; cat /proc/self/uid_map");
    namespace(&mut world, json!({"type": "user"}));
    // Ids that are not mapped cannot own the terminals.
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    for mount in mounts.iter_mut().filter(|mount| mount["type"] == "devpts") {
        mount["options"] = json!(["newinstance", "ptmxmode=0666"]);
    }
    let said = world.run();
    assert!(said.err.contains("the caller's id becomes root"), "{said:?}");
    let out = said.good();
    let words: Vec<_> = out.split_ascii_whitespace().take(4).collect();
    assert_eq!(words, ["0", "0", "0", "1"]);
}

#[test]
fn devices_of_a_user_namespace_are_as_they_were_asked_for() {
    let mut world = shell(
        "stat -c '%F %t:%T %a %u:%g' /dev/own; grep ' /dev/null ' /proc/self/mountinfo; echo x > /dev/own && echo works",
    );
    symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    namespace(&mut world, json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    world.config["linux"]["devices"] =
        json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 3, "uid": 10, "gid": 11, "fileMode": 0o642}]);
    world.config["process"]["capabilities"] = json!({});
    world.config["process"]["user"] = json!({"uid": 10, "gid": 11});
    let out = world.run().good();
    assert!(out.starts_with("character special file 1:3 642 10:11\n"), "{out}");
    assert!(out.contains("nosuid,noexec") && out.ends_with("works\n"), "{out}");
    world.assert_gone();
}

/// A sysfs belongs to the network namespace's owner; the host's is seen, and nothing of it can be written (CVE-2023-25809).
#[test]
fn the_hosts_sysfs_stands_in_read_only() {
    let mut world = shell("ls /sys/class > /dev/null && echo there; grep ' /sys' /proc/self/mountinfo");
    symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    world.config["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}, {"type": "user"}]);
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "cgroup");
    mounts.iter_mut().filter(|mount| mount["type"] == "sysfs").for_each(|mount| mount["options"] = json!(["nosuid"]));
    let out = world.run().good();
    let (first, table) = out.split_once('\n').expect("lines");
    assert_eq!(first, "there");
    assert!(table.lines().count() > 0 && table.lines().all(|line| line.contains(" ro,")), "{table}");
    world.assert_gone();
}

/// The mount table has the order of the configuration, whoever opened the sources. (Before kernel 6.8 it is in the order of attaching.)
#[test]
fn the_mount_table_is_in_order() {
    let mut world = shell("grep -o ' /mnt/[a-z]*' /proc/self/mountinfo");
    symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    let source = world.path("source");
    std::fs::create_dir(&source).expect("mkdir");
    for (name, options) in [
        ("a", None),
        ("b", Some(json!(["rbind"]))),
        ("c", None),
        ("d", Some(json!(["bind", "rprivate", "ro"]))),
        ("e", None),
    ] {
        let destination = format!("/mnt/{name}");
        let entry = match options {
            None => json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}),
            Some(options) => json!({"destination": destination, "type": "bind", "source": source, "options": options}),
        };
        mount(&mut world, entry);
    }
    assert_eq!(world.run().good(), " /mnt/a\n /mnt/b\n /mnt/c\n /mnt/d\n /mnt/e\n");
    world.config["mounts"][0]["source"] = json!("proc");
    let last = world.config["mounts"].as_array().expect("mounts").len() - 1;
    world.config["mounts"][last] =
        json!({"destination": "/mnt/e", "type": "bind", "source": "/no/such", "options": ["bind"]});
    let err = world.run().bad();
    assert!(err.contains("/no/such") && err.contains("no such file"), "{err}");
    world.assert_gone();
}

/// runtime-spec 1.3, "Namespaces": what is not listed is inherited. The mounts are on the host then, and gone with the container.
#[test]
fn without_a_mount_namespace_mounts_end_with_the_container() {
    let mut world = shell("readlink /proc/self/ns/mnt; ls /data; test -c /dev/zero && echo device");
    symlink("busybox", world.rootfs().join("bin/test")).expect("symlink");
    let data = world.path("data");
    std::fs::create_dir(&data).expect("mkdir");
    std::fs::write(data.join("file"), "").expect("write");
    world.config["linux"]["namespaces"] = json!([{"type": "pid"}]);
    for field in ["maskedPaths", "readonlyPaths"] {
        world.config["linux"].as_object_mut().expect("linux").remove(field);
    }
    world.config.as_object_mut().expect("object").remove("hostname");
    world.config["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]},
    ]);
    let own = std::fs::read_link("/proc/self/ns/mnt").expect("readlink");
    let said = world.run();
    assert!(said.err.contains("lie on the host"), "{said:?}");
    assert_eq!(said.good(), format!("{}\nfile\ndevice\n", own.display()));
    world.assert_gone();
    // Nor does anything stay of one that fails half-way.
    world.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": "/x", "type": "nofs", "source": "x"}));
    assert!(world.run().bad().contains("nofs"));
    world.assert_gone();
    world.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    assert!(world.run().bad().contains("need a mount namespace"));
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_hides_or_its_own() {
    let mut world = shell("stat -c %a /hidden /made/below");
    let hidden = world.rootfs().join("hidden");
    std::fs::create_dir(&hidden).expect("mkdir");
    std::fs::set_permissions(&hidden, std::os::unix::fs::PermissionsExt::from_mode(0o750)).expect("chmod");
    for destination in ["/hidden", "/made/below"] {
        mount(&mut world, json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
    }
    assert_eq!(world.run().good(), "750\n1777\n");
}

#[test]
fn a_read_only_tmpfs_is_so_when_everything_is_in_it() {
    let script = "echo x > /dev/null && echo null; touch /dev/x || echo refused; touch /deep/x || echo refused; touch /deep/own/x && echo made";
    let mut world = shell(script);
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    for entry in mounts.iter_mut().filter(|entry| entry["destination"] == "/dev") {
        entry["options"].as_array_mut().expect("options").push(json!("ro"));
    }
    mount(&mut world, json!({"destination": "/deep", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}));
    mount(&mut world, json!({"destination": "/deep/own", "type": "tmpfs", "source": "tmpfs"}));
    assert_eq!(world.run().good(), "null\nrefused\nrefused\nmade\n");
    world.assert_gone();
}

/// A source in the container's root has what earlier entries mounted there, and a destination there is the same place as inside.
#[test]
fn a_source_in_the_root_is_as_the_container_has_it_by_then() {
    for (user, idmap) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = shell("cat /copy/inner/file; stat -c %u /copy/inner/file");
        for name in ["outer", "inner"] {
            let dir = world.path(name);
            std::fs::create_dir(&dir).expect("mkdir");
            std::fs::write(dir.join("file"), name).expect("write");
            // By the maps both come to be the host's 100007, the one by the mount.
            let owner = if idmap { 7 } else { 100_007 };
            std::os::unix::fs::chown(dir.join("file"), Some(owner), None).expect("chown");
        }
        let (mnt, copy) = (world.rootfs().join("mnt"), world.rootfs().join("copy"));
        for dir in [&world.path("outer/inner"), &mnt, &copy] {
            std::fs::create_dir(dir).expect("mkdir");
        }
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let mut copy = json!({"destination": copy, "source": mnt, "options": ["rbind"]});
        if user {
            namespace(&mut world, json!({"type": "user"}));
            world.config["linux"]["uidMappings"] = map.clone();
            world.config["linux"]["gidMappings"] = map.clone();
        }
        if idmap {
            copy["options"] = json!(["rbind", "ridmap"]);
            copy["uidMappings"] = map.clone();
            copy["gidMappings"] = map;
        }
        for (name, destination) in [("outer", "/mnt"), ("inner", "/mnt/inner")] {
            let source = world.path(name);
            mount(&mut world, json!({"destination": destination, "source": source, "options": ["rbind"]}));
        }
        mount(&mut world, copy);
        let owner = if user { "7" } else { "100007" };
        assert_eq!(world.run().good(), format!("inner{owner}\n"), "user namespace: {user}, id map: {idmap}");
        world.assert_gone();
    }
}

/// With options a bind has just those, as with runc and crun; without any, those of its source. In a user namespace what could be locked stays.
#[test]
fn a_bind_has_the_options_that_it_asks_for() {
    for (source, options, is_mapped, there, not_there) in [
        ("ro,noexec,nodev", json!(["rbind", "rprivate"]), false, "ro,nodev,noexec", "nosuid"),
        ("ro,noexec,nodev,noatime", json!(["bind", "nosuid"]), false, "rw,nosuid,noatime", "noexec nodev"),
        ("nosuid,nodev,noexec", json!(["bind", "ro"]), false, "ro,relatime", "nosuid nodev noexec"),
        ("noexec", json!(["bind", "ro"]), true, "ro,noexec", "nosuid"),
        ("ro,nosymfollow", json!(["bind", "nosuid"]), true, "ro,nosuid", "nosymfollow"),
        ("ro,noexec", json!(["bind", "rw"]), true, "rw,noexec", "nosuid"),
        ("noatime", json!(["bind", "relatime"]), false, "rw,relatime", "noatime"),
    ] {
        let mut world = shell("grep ' /tmp ' /proc/self/mountinfo");
        symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
        let dir = world.path("source");
        std::fs::create_dir(&dir).expect("mkdir");
        mount(&mut world, json!({"destination": "/tmp", "type": "bind", "source": dir, "options": options}));
        if is_mapped {
            namespace(&mut world, json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            world.config["linux"]["uidMappings"] = map.clone();
            world.config["linux"]["gidMappings"] = map;
        }
        let dir = dir.display();
        let out = world
            .on_a_shared_host(&format!("mount -t tmpfs t {dir} && mount -o remount,bind,{source} {dir} && $RUN"))
            .good();
        let found: Vec<&str> = out.split(' ').nth(5).expect("options").split(',').collect();
        let case = format!("{source} with {options}, in a user namespace: {is_mapped}: {out}");
        assert!(there.split(',').all(|option| found.contains(&option)), "{case}");
        assert!(not_there.split(' ').all(|option| !found.contains(&option)), "{case}");
    }
}
