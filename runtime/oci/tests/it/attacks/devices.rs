//! /dev of the image, and device nodes that the configuration asks for.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::{Canary, core_pattern, in_user_namespace, without_mount};
use crate::harness::World;

/// CVE-2025-31133, CVE-2025-62161, CVE-2026-41579, CVE-2026-47766, CVE-2026-88264, CVE-2026-88265: an image's own /dev with symlinks to
/// the host.
#[test]
fn an_images_dev_leads_nowhere() {
    type Prepare = fn(&World, &Canary);
    let whole: Prepare = |world, canary| {
        std::fs::remove_dir(world.rootfs().join("dev")).expect("rmdir");
        symlink(&canary.dir, world.rootfs().join("dev")).expect("symlink");
    };
    let upwards: Prepare = |world, canary| {
        std::fs::remove_dir(world.rootfs().join("dev")).expect("rmdir");
        symlink(canary.upwards(), world.rootfs().join("dev")).expect("symlink");
    };
    let console: Prepare =
        |world, canary| symlink(canary.dir.join("new"), world.rootfs().join("dev/console")).expect("symlink");
    let null: Prepare =
        |world, canary| symlink(canary.dir.join("file"), world.rootfs().join("dev/null")).expect("symlink");
    let kernel: Prepare =
        |world, _| symlink("/proc/sys/kernel/core_pattern", world.rootfs().join("dev/null")).expect("symlink");
    let ptmx: Prepare = |world, canary| {
        symlink(canary.dir.join("ptmx"), world.rootfs().join("dev/ptmx")).expect("symlink");
        symlink(canary.dir.join("new"), world.rootfs().join("dev/fd")).expect("symlink");
    };
    let pts: Prepare = |world, canary| symlink(&canary.dir, world.rootfs().join("dev/pts")).expect("symlink");
    let pattern = core_pattern();
    for (index, prepare) in [whole, upwards, console, null, kernel, ptmx, pts].into_iter().enumerate() {
        for with_devices in [false, true] {
            let mut world = World::new(&["sh", "-c", "stat -c %t:%T /proc/keys; echo x > /proc/keys"]);
            let canary = Canary::new(&world);
            prepare(&world, &canary);
            without_mount(&mut world, "/dev");
            world.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
            if with_devices {
                world.config["linux"]["devices"] = json!([
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 7, "gid": 7},
                    {"path": "/dev/deeper/node", "type": "p"},
                ]);
            }
            let said = world.run();
            canary.assert_unchanged();
            assert_eq!(core_pattern(), pattern, "attack {index}");
            // Either it does not run, or the mask is the real /dev/null.
            assert!(!said.out.contains(':') || said.out.starts_with("1:3\n"), "attack {index}: {said:?}");
            world.assert_gone();
        }
    }
}

/// CVE-2025-52565, CVE-2026-88264: a terminal, while /dev/console, /dev/pts or its multiplexer lead elsewhere.
#[test]
fn a_terminal_comes_from_a_devpts_only() {
    for attack in ["console", "ptmx", "pts"] {
        let mut world = World::new(&["true"]);
        let canary = Canary::new(&world);
        let dev = world.rootfs().join("dev");
        match attack {
            "console" => symlink(canary.dir.join("file"), dev.join("console")).expect("symlink"),
            "ptmx" => {
                std::fs::create_dir(dev.join("pts")).expect("mkdir");
                symlink(canary.dir.join("ptmx"), dev.join("pts/ptmx")).expect("symlink");
            }
            _ => symlink(&canary.dir, dev.join("pts")).expect("symlink"),
        }
        let mounts = world.config["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| {
            let destination = mount["destination"].as_str().expect("destination");
            !destination.starts_with("/dev") || attack == "console" && destination == "/dev/pts"
        });
        world.config["process"]["terminal"] = json!(true);
        world.save();
        let socket = world.path("console.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let mut command = world.command();
        command.args(["create", "--console-socket"]).arg(&socket).arg("--bundle").arg(world.bundle()).arg(&world.id);
        let status = command.stderr(std::process::Stdio::null()).status().expect("create");
        canary.assert_unchanged();
        assert!(attack == "console" || !status.success(), "{attack}: a terminal out of nothing");
    }
}

/// In a user namespace nodes are bound from the host: what is bound is that device, or nothing.
#[test]
fn a_bound_device_is_that_device() {
    let mut world = World::new(&["sh", "-c", "cat $SECRET"]);
    let canary = Canary::new(&world);
    let secret = canary.dir.join("file");
    in_user_namespace(&mut world);
    // With a sysfs of a network namespace of its own.
    world.config["process"]["env"].as_array_mut().expect("env").push(json!(format!("SECRET={}", secret.display())));
    world.config["linux"]["devices"] = json!([{"path": secret, "type": "c", "major": 1, "minor": 3}]);
    let said = world.run();
    assert!(!said.out.contains("canary"), "the host's file is a device of the container: {said:?}");
    canary.assert_unchanged();
    world.assert_gone();
}

/// Nodes outside the root, or in the way of what is there.
#[test]
fn device_paths_stay_inside() {
    for path in ["../../../../../../../../CANARY/new", "/x/new", "/dev/../../../../../../../CANARY/new", "/x/file"] {
        let mut world = World::new(&["true"]);
        let canary = Canary::new(&world);
        symlink(&canary.dir, world.rootfs().join("x")).expect("symlink");
        let path = path.replace("/CANARY", canary.dir.to_str().expect("utf-8"));
        world.config["linux"]["devices"] = json!([
            {"path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 1, "gid": 1},
        ]);
        let _any = world.run();
        canary.assert_unchanged();
        world.assert_gone();
    }
}

/// A node in the image that passes for a harmless device and is another.
#[test]
fn an_images_node_is_no_other_device() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mut world = World::new(&["stat", "-c", "%t:%T", "/dev/null"]);
    without_mount(&mut world, "/dev");
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&world.rootfs().join("dev/null"), SFlag::S_IFCHR, mode, makedev(1, 1)).expect("mknod");
    let said = world.run();
    assert!(said.code != 0 || said.out == "1:3\n", "{said:?}");
}
