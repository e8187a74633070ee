//! Past mistakes of container runtimes, each as an attack that must fail. "Host unchanged": a canary directory's fingerprint.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::json;

use crate::harness::{World, fingerprint};

struct Canary {
    dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    fn new(world: &World) -> Self {
        let dir = world.path("canary");
        std::fs::create_dir_all(dir.join("dir")).expect("mkdir");
        std::fs::write(dir.join("file"), "canary").expect("write");
        let before = fingerprint(&dir);
        Self { dir, before }
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert_eq!(fingerprint(&self.dir), self.before, "the host was changed");
    }
}

fn without_dev(world: &mut World) {
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| !mount["destination"].as_str().expect("destination").starts_with("/dev"));
}

/// CVE-2019-18837: a symlink of the image in the way of a mount point.
#[test]
fn mount_points_follow_symlinks_only_inside() {
    for up in [false, true] {
        let mut world = World::new(&["ls", "/x/y"]);
        let canary = Canary::new(&world);
        let target = if up {
            PathBuf::from("../../../../../../../..").join(canary.dir.strip_prefix("/").expect("absolute"))
        } else {
            canary.dir.clone()
        };
        symlink(target, world.rootfs().join("x")).expect("symlink");
        let mount = json!({"destination": "/x/y", "type": "tmpfs", "source": "x"});
        world.config["mounts"].as_array_mut().expect("mounts").push(mount);
        world.run().good();
        canary.assert_unchanged();
        assert!(world.rootfs().join(canary.dir.strip_prefix("/").expect("absolute")).join("y").is_dir());
    }
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561: something else than a procfs where one is expected.
#[test]
fn proc_is_a_procfs_on_a_directory() {
    for destination in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/../proc/self", "//proc/self"] {
        for kind in ["tmpfs", "bind"] {
            let mut world = World::new(&["true"]);
            let canary = Canary::new(&world);
            let mount = json!({"destination": destination, "type": kind, "source": canary.dir, "options": if kind == "bind" { vec!["rbind"] } else { vec![] }});
            world.config["mounts"].as_array_mut().expect("mounts").push(mount);
            world.run().bad();
            canary.assert_unchanged();
        }
    }
    for name in ["proc", "sys"] {
        let world = World::new(&["true"]);
        std::fs::remove_dir(world.rootfs().join(name)).expect("rmdir");
        std::fs::create_dir(world.rootfs().join("elsewhere")).expect("mkdir");
        symlink("/elsewhere", world.rootfs().join(name)).expect("symlink");
        assert!(world.run().bad().contains("ordinary directory"));
        world.assert_gone();
    }
    // Through a symlink into the mounted procfs.
    let mut world = World::new(&["true"]);
    symlink("/proc/sys", world.rootfs().join("x")).expect("symlink");
    let mount = json!({"destination": "/x/kernel", "type": "tmpfs", "source": "x"});
    world.config["mounts"].as_array_mut().expect("mounts").push(mount);
    assert!(world.run().bad().contains("leads into /proc"));
}

/// CVE-2024-21626: a working directory through a leaked descriptor of the host's.
#[test]
fn no_working_directory_outside_and_no_leaked_descriptors() {
    let mut world = World::new(&["ls", "/proc/self/fd"]);
    let leaked: Vec<_> = (0..12).map(|_| std::fs::File::open("/").expect("open")).collect();
    for file in &leaked {
        let flags = nix::fcntl::FdFlag::empty();
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFD(flags)).expect("leak");
    }
    // 3 is what ls itself opens.
    assert_eq!(world.run().good(), "0\n1\n2\n3\n");
    let last = leaked.iter().map(AsRawFd::as_raw_fd).max().expect("some").max(30);
    for number in 3..=last {
        for up in ["", "/..", "/../.."] {
            world.config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}{up}"));
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

/// CVE-2025-31133, CVE-2026-41579, CVE-2026-47766, CVE-2026-88264: an image's own /dev with symlinks to the host.
#[test]
fn an_images_dev_leads_nowhere() {
    type Prepare = fn(&World, &Canary);
    let whole: Prepare = |world, canary| {
        std::fs::remove_dir(world.rootfs().join("dev")).expect("rmdir");
        symlink(&canary.dir, world.rootfs().join("dev")).expect("symlink");
    };
    let console: Prepare =
        |world, canary| symlink(canary.dir.join("new"), world.rootfs().join("dev/console")).expect("symlink");
    let null: Prepare =
        |world, canary| symlink(canary.dir.join("file"), world.rootfs().join("dev/null")).expect("symlink");
    let kernel: Prepare =
        |world, _| symlink("/proc/sys/kernel/core_pattern", world.rootfs().join("dev/null")).expect("symlink");
    let pattern = std::fs::read("/proc/sys/kernel/core_pattern").expect("core_pattern");
    for (prepare, must_fail) in [(whole, true), (console, false), (null, true), (kernel, true)] {
        let mut world = World::new(&["true"]);
        let canary = Canary::new(&world);
        prepare(&world, &canary);
        without_dev(&mut world);
        world.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
        let said = world.run();
        assert_eq!(said.code != 0, must_fail, "{said:?}");
        canary.assert_unchanged();
        assert_eq!(std::fs::read("/proc/sys/kernel/core_pattern").expect("core_pattern"), pattern);
        world.assert_gone();
    }
}

/// CVE-2019-5736: the runtime's own file through /proc/self/exe.
#[test]
fn the_runtime_cannot_be_written_from_inside() {
    let before = std::fs::read(env!("CARGO_BIN_EXE_sampan-oci")).expect("read");
    let mut world = World::new(&["/evil"]);
    std::fs::write(world.rootfs().join("evil"), "#!/proc/self/exe\n").expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.rootfs().join("evil"), mode).expect("chmod");
    world.run();
    // A waiting process of ours, seen by another container's root in the same PID namespace, with every right.
    world.config["process"]["args"] = json!(["sleep", "1000"]);
    world.create().good();
    let mut attacker = World::new(&["sh", "-c", "echo x > /proc/1/exe && echo written; true"]);
    attacker.config["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{}/ns/pid", world.pid())}]);
    attacker.config.as_object_mut().expect("object").remove("hostname");
    let all = json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
    attacker.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let said = attacker.run();
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert!(std::fs::read(env!("CARGO_BIN_EXE_sampan-oci")).expect("read") == before, "the runtime was changed");
}

#[test]
fn bad_ids_touch_nothing() {
    let world = World::new(&["true"]);
    world.save();
    for id in ["..", ".", "a/b", "../x", "", "a\nb", &"x".repeat(1024)] {
        let output =
            world.command().args(["run", "--bundle"]).arg(world.bundle()).args(["--", id]).output().expect("run");
        assert_eq!(output.status.code(), Some(1));
        assert!(!world.state_root().exists(), "{id:?}");
    }
}

/// CVE-2022-29162 and its like.
#[test]
fn nothing_is_inheritable_unless_asked_for() {
    let world = World::new(&["cat", "/proc/self/status"]);
    let out = world.run().good();
    assert!(out.contains("CapInh:\t0000000000000000") && out.contains("CapAmb:\t0000000000000000"), "{out}");
}
