//! Images that try to lead the runtime out of the root file system, by symlinks in the way of mounts, masks and files.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::{Canary, core_pattern, mount, without_mount};
use crate::harness::World;

/// CVE-2019-18837.
#[test]
fn mount_points_follow_symlinks_only_inside() {
    for up in [false, true] {
        for (kind, source) in [("tmpfs", "x"), ("bind", "/tmp")] {
            let mut world = World::new(&["ls", "/x/y"]);
            let canary = Canary::new(&world);
            let target = if up { canary.upwards() } else { canary.dir.clone() };
            symlink(target, world.rootfs().join("x")).expect("symlink");
            let options = if kind == "bind" { json!(["bind"]) } else { json!([]) };
            mount(&mut world, json!({"destination": "/x/y", "type": kind, "source": source, "options": options}));
            world.run().good();
            canary.assert_unchanged();
            assert!(canary.inside(&world).join("y").is_dir());
        }
    }
}

/// A mount point that is a file, reached by a symlink, dangling or not: made inside, never on the host.
#[test]
fn files_as_mount_points_stay_inside() {
    for (link, name) in [("dangling", "new"), ("there", "file")] {
        let mut world = World::new(&["cat", &format!("/{link}")]);
        let canary = Canary::new(&world);
        let source = world.path("source");
        std::fs::write(&source, "bound\n").expect("write");
        symlink(canary.dir.join(name), world.rootfs().join(link)).expect("symlink");
        let destination = format!("/{link}");
        mount(&mut world, json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]}));
        let said = world.run();
        canary.assert_unchanged();
        assert!(said.code != 0 || said.out == "bound\n", "{said:?}");
        world.assert_gone();
    }
}

/// CVE-2019-16884, CVE-2019-19921: something else than a procfs where one is expected.
#[test]
fn proc_is_a_procfs() {
    for destination in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/../proc/self", "//proc/self"] {
        for kind in ["tmpfs", "bind"] {
            let mut world = World::new(&["true"]);
            let canary = Canary::new(&world);
            let options = if kind == "bind" { json!(["rbind"]) } else { json!([]) };
            let bad = json!({"destination": destination, "type": kind, "source": canary.dir, "options": options});
            mount(&mut world, bad);
            world.run().bad();
            canary.assert_unchanged();
        }
    }
    // A part of the host's procfs would pass for one, and has no `self/attr` to write labels to.
    let mut world = World::new(&["true"]);
    without_mount(&mut world, "/proc");
    let part = json!({"destination": "/proc", "type": "bind", "source": "/proc/sys", "options": ["rbind"]});
    mount(&mut world, part);
    world.run().bad();
    // By a symlink into the mounted procfs.
    let mut world = World::new(&["true"]);
    symlink("/proc/sys", world.rootfs().join("x")).expect("symlink");
    mount(&mut world, json!({"destination": "/x/kernel", "type": "tmpfs", "source": "x"}));
    world.run().bad();
    world.assert_gone();
}

/// CVE-2023-27561, CVE-2023-28642, CVE-2025-54867: /proc or /sys is a symlink of the image.
#[test]
fn proc_and_sys_are_plain_directories() {
    for name in ["proc", "sys"] {
        for bound in [false, true] {
            for outside in [false, true] {
                let mut world = World::new(&["true"]);
                let canary = Canary::new(&world);
                std::fs::remove_dir(world.rootfs().join(name)).expect("rmdir");
                std::fs::create_dir(world.rootfs().join("elsewhere")).expect("mkdir");
                let target = if outside { canary.dir.clone() } else { "/elsewhere".into() };
                symlink(target, world.rootfs().join(name)).expect("symlink");
                let place = format!("/{name}");
                if bound {
                    without_mount(&mut world, &place);
                    let bind = json!({"destination": place, "type": "bind", "source": place, "options": ["rbind"]});
                    mount(&mut world, bind);
                }
                world.run().bad();
                canary.assert_unchanged();
                world.assert_gone();
            }
        }
    }
}

/// Masks and read-only paths that go by symlinks of the image: they act inside, or not at all.
#[test]
fn masks_act_inside() {
    let pattern = core_pattern();
    let mut world = World::new(&["sh", "-c", "touch /rw/x; cat /masked; cat /self/exe > /dev/null; true"]);
    let canary = Canary::new(&world);
    symlink(&canary.dir, world.rootfs().join("rw")).expect("symlink");
    symlink(canary.dir.join("file"), world.rootfs().join("masked")).expect("symlink");
    symlink("/proc/self", world.rootfs().join("self")).expect("symlink");
    world.config["linux"]["readonlyPaths"] = json!(["/rw", "/proc/sys"]);
    world.config["linux"]["maskedPaths"] = json!(["/masked", "/proc/keys", "/../../../../etc/passwd"]);
    world.run().good();
    canary.assert_unchanged();
    // Nothing of the host is masked or read-only by then.
    std::fs::write(canary.dir.join("file"), "canary").expect("the host's file can be written");
    assert_eq!(core_pattern(), pattern);
    world.assert_gone();
}

/// CVE-2025-24965: a file that the runtime writes into the root goes by a symlink to the host.
#[test]
fn no_file_is_written_through_the_image() {
    let mut world = World::new(&["true"]);
    let canary = Canary::new(&world);
    for name in [".krun_config.json", ".krun_vm.json", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"] {
        symlink(canary.dir.join("file"), world.rootfs().join(name)).expect("symlink");
    }
    world.config["annotations"] = json!({"run.oci.handler": "krun", "krun.use_passt": "1"});
    // A handler that is not there may be an error.
    let _any = world.run();
    canary.assert_unchanged();
}

/// A tmpfs that starts with what it hides: the image's symlinks are copied, not followed.
#[test]
fn copied_up_symlinks_stay_symlinks() {
    let mut world = World::new(&["sh", "-c", "readlink /data/link; readlink /data/dir/up; echo x > /data/link; true"]);
    let canary = Canary::new(&world);
    std::fs::create_dir_all(world.rootfs().join("data/dir")).expect("mkdir");
    symlink(canary.dir.join("file"), world.rootfs().join("data/link")).expect("symlink");
    symlink(canary.upwards(), world.rootfs().join("data/dir/up")).expect("symlink");
    let mut options = vec!["tmpcopyup"];
    options.push("mode=755");
    mount(&mut world, json!({"destination": "/data", "type": "tmpfs", "source": "x", "options": options}));
    let out = world.run().good();
    assert_eq!(out, format!("{}\n{}\n", canary.dir.join("file").display(), canary.upwards().display()));
    canary.assert_unchanged();
}

/// A cgroup mount, whose aliases are symlinks that the runtime makes, on a path that leads out.
#[test]
fn cgroup_mounts_stay_inside() {
    let mut world = World::new(&["true"]);
    let canary = Canary::new(&world);
    symlink(&canary.dir, world.rootfs().join("out")).expect("symlink");
    mount(&mut world, json!({"destination": "/out/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    let _any = world.run();
    canary.assert_unchanged();
    world.assert_gone();
}

/// The bundle's root is a symlink that is turned to the host's root after the container was made: what was made stays.
#[test]
fn a_root_that_is_a_symlink_is_looked_at_once() {
    let mut world = World::new(&["sh", "-c", "ls /only-here"]);
    let canary = Canary::new(&world);
    std::fs::write(world.rootfs().join("only-here"), "").expect("write");
    let link = world.path("link");
    symlink(world.rootfs(), &link).expect("symlink");
    world.config["root"]["path"] = json!(link);
    world.create().good();
    std::fs::remove_file(&link).expect("rm");
    symlink("/", &link).expect("symlink");
    world.oci(&["start"], &[]).good();
    crate::harness::eventually("stopped", || world.status() == "stopped");
    world.oci(&["delete"], &[]).good();
    canary.assert_unchanged();
    assert!(world.rootfs().join("only-here").exists());
}

/// CVE-2024-21626 and like it: the working directory, by the image's symlinks and by descriptors.
#[test]
fn the_working_directory_is_inside() {
    for target in ["/proc/self/fd/7", "/proc/self/cwd", "/proc/1/root", "/proc/thread-self/fd/8/../.."] {
        let mut world = World::new(&["sh", "-c", "/bin/busybox pwd; cat /proc/self/cwd/canary-of-the-host"]);
        let canary = Canary::new(&world);
        std::fs::write(world.path("canary-of-the-host"), "stolen").expect("write");
        symlink(target, world.rootfs().join("cwd")).expect("symlink");
        world.config["process"]["cwd"] = json!("/cwd");
        let said = world.run();
        assert!(!said.out.contains("stolen") && !said.out.contains("unreachable"), "{said:?}");
        canary.assert_unchanged();
        world.assert_gone();
    }
}
