//! Exchanges of a directory and a symlink, or of a device and a symlink, while the runtime works on that path. Bounded: a few seconds each.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use super::{Canary, core_pattern, mount, without_mount};
use crate::harness::World;

const RACE: Duration = Duration::from_secs(3);
const ROUNDS_MAX: usize = 300;

/// Exchanges two names as fast as it can until it is dropped.
struct Swapper {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Swapper {
    fn new(one: PathBuf, other: PathBuf) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let seen = end.clone();
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !seen.load(Ordering::Relaxed) {
                let swapped = renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE);
                // Busy while something is mounted on it.
                swaps += u64::from(swapped.is_ok());
            }
            swaps
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let swaps = self.thread.take().map(|thread| thread.join().unwrap_or(0));
        assert!(std::thread::panicking() || swaps > Some(0), "nothing was exchanged");
    }
}

/// Runs it again and again while the race lasts; says how often it came to run.
fn race(mut round: impl FnMut() -> bool) {
    let began = Instant::now();
    let (mut rounds, mut ran) = (0, 0);
    while rounds < ROUNDS_MAX && began.elapsed() < RACE {
        rounds += 1;
        ran += usize::from(round());
    }
    eprintln!("{rounds} rounds, {ran} ran");
}

/// A volume with `x`, a directory, and `y`, a symlink to `target`.
fn volume(world: &mut World, target: PathBuf) -> (PathBuf, PathBuf) {
    let volume = world.path("volume");
    std::fs::create_dir_all(volume.join("x")).expect("mkdir");
    symlink(target, volume.join("y")).expect("symlink");
    mount(world, json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
    (volume.join("x"), volume.join("y"))
}

/// CVE-2021-30465: the mount point turns into a symlink to the host while it is mounted on.
#[test]
fn a_mount_lands_inside_or_not_at_all() {
    for up in [false, true] {
        let mut world = World::new(&["cat", "/proc/self/mountinfo"]);
        let canary = Canary::new(&world);
        let target = if up { canary.upwards() } else { canary.dir.clone() };
        let (one, other) = volume(&mut world, target);
        let source = world.path("source");
        std::fs::create_dir(&source).expect("mkdir");
        mount(&mut world, json!({"destination": "/volume/x/made", "type": "tmpfs", "source": "attack"}));
        let bind = json!({"destination": "/volume/x", "type": "bind", "source": source, "options": ["bind"]});
        mount(&mut world, bind);
        let swapper = Swapper::new(one, other);
        race(|| {
            let said = world.run();
            canary.assert_unchanged();
            let here = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
            assert!(!here.contains(" attack "), "mounted on the host: {here}");
            // One that runs has both mounts where it can see them.
            let seen = said.out.lines().filter(|line| line.contains(" attack ") || line.contains("/source "));
            assert!(said.code != 0 || seen.count() == 2, "{said:?}");
            said.code == 0
        });
        drop(swapper);
        world.assert_gone();
    }
}

/// CVE-2025-31133, CVE-2025-62161: the image's /dev/null, with which a path would be masked, turns into a symlink to a file of the kernel.
#[test]
fn a_mask_is_the_real_null() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mut world = World::new(&["sh", "-c", "stat -c %t:%T /proc/keys; echo '|/bin/false' > /proc/keys"]);
    let canary = Canary::new(&world);
    without_mount(&mut world, "/dev");
    let dev = world.rootfs().join("dev");
    mknod(&dev.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).expect("mknod");
    symlink("/proc/sys/kernel/core_pattern", dev.join("other")).expect("symlink");
    world.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    let pattern = core_pattern();
    let swapper = Swapper::new(dev.join("null"), dev.join("other"));
    race(|| {
        let said = world.run();
        assert_eq!(core_pattern(), pattern);
        assert!(!said.out.contains(':') || said.out.starts_with("1:3\n"), "{said:?}");
        canary.assert_unchanged();
        said.code == 0
    });
    drop(swapper);
    world.assert_gone();
}

/// CVE-2025-52565: /dev/console, on which the terminal is bound, turns into a symlink to the host or to a file of the kernel.
#[test]
fn the_console_is_bound_inside() {
    let mut world = World::new(&["stat", "-c", "%t", "/dev/console"]);
    let canary = Canary::new(&world);
    without_mount(&mut world, "/dev");
    let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666", "mode=0620"]});
    mount(&mut world, pts);
    world.config["process"]["terminal"] = json!(true);
    let dev = world.rootfs().join("dev");
    std::fs::write(dev.join("console"), "").expect("write");
    symlink(canary.dir.join("file"), dev.join("other")).expect("symlink");
    let swapper = Swapper::new(dev.join("console"), dev.join("other"));
    race(|| {
        // In the foreground; its terminal's bytes come to our pipe.
        let said = world.run();
        canary.assert_unchanged();
        said.code == 0
    });
    drop(swapper);
    world.assert_gone();
}

/// CVE-2025-52881, CVE-2025-62596: something is mounted over a part of /proc by way of a symlink while sysctls are written below it.
#[test]
fn sysctls_land_in_a_procfs() {
    let mut world = World::new(&["sh", "-c", "cat /proc/sys/kernel/shmmni /proc/self/mountinfo"]);
    let canary = Canary::new(&world);
    let (one, other) = volume(&mut world, PathBuf::from("/proc/sys/kernel"));
    mount(&mut world, json!({"destination": "/volume/x", "type": "tmpfs", "source": "attack"}));
    world.config["linux"]["sysctl"] = json!({"kernel.shmmni": "1234"});
    let before = std::fs::read("/proc/sys/kernel/shmmni").expect("shmmni");
    let swapper = Swapper::new(one, other);
    race(|| {
        let said = world.run();
        assert_eq!(std::fs::read("/proc/sys/kernel/shmmni").expect("shmmni"), before);
        assert!(said.code != 0 || said.out.starts_with("1234\n"), "{said:?}");
        let over = said.out.lines().find(|line| line.contains(" attack ") && line.contains(" /proc/"));
        assert_eq!(over, None, "mounted over a part of /proc");
        canary.assert_unchanged();
        said.code == 0
    });
    drop(swapper);
    world.assert_gone();
}

/// The working directory turns from a directory of the container's into a link to what the runtime may have open.
#[test]
fn the_working_directory_stays_inside() {
    let mut world = World::new(&["/bin/busybox", "pwd"]);
    let canary = Canary::new(&world);
    let _leaked = super::caller::leak(&canary.dir);
    let root = world.rootfs();
    std::fs::create_dir(root.join("cwd")).expect("mkdir");
    symlink("/proc/self/fd/7", root.join("other")).expect("symlink");
    world.config["process"]["cwd"] = json!("/cwd");
    let swapper = Swapper::new(root.join("cwd"), root.join("other"));
    race(|| {
        let said = world.run();
        assert!(said.code != 0 || ["/cwd\n", "/other\n"].contains(&said.out.as_str()), "{said:?}");
        canary.assert_unchanged();
        said.code == 0
    });
    drop(swapper);
}

/// A device node's directory turns into a symlink to the host while nodes and links are made in it.
#[test]
fn devices_are_made_inside() {
    let mut world = World::new(&["true"]);
    let canary = Canary::new(&world);
    without_mount(&mut world, "/dev");
    let root = world.rootfs();
    symlink(&canary.dir, root.join("other")).expect("symlink");
    world.config["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    let swapper = Swapper::new(root.join("dev"), root.join("other"));
    race(|| {
        let said = world.run();
        canary.assert_unchanged();
        said.code == 0
    });
    drop(swapper);
    world.assert_gone();
}
