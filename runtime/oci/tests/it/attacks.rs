//! Attacks on a container runtime that must fail: past mistakes of runtimes, and some that nobody has filed.
//!
//! Each is a bundle, an image or a caller that a vulnerable runtime is hurt by. They run against any runtime: `SAMPAN_RUNTIME=/usr/bin/crun
//! cargo test -p runtime-oci --test it attacks`. What must hold is about the host (a canary directory's fingerprint before and after)
//! and about what the container sees, never about words. `runtime/oci/SECURITY.md` says which test holds which attack.

mod caller;
mod devices;
mod identity;
mod image;
mod neighbours;
mod races;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{World, fingerprint};

/// A directory of the host that no attack may change.
struct Canary {
    dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    fn new(world: &World) -> Self {
        let dir = world.path("canary");
        std::fs::create_dir_all(dir.join("dir")).expect("mkdir");
        for name in ["file", "ptmx"] {
            std::fs::write(dir.join(name), "canary").expect("write");
        }
        let before = fingerprint(&dir);
        Self { dir, before }
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        assert_eq!(fingerprint(&self.dir), self.before, "the host was changed");
    }

    /// Where the canary's path leads inside the container's root.
    fn inside(&self, world: &World) -> PathBuf {
        world.rootfs().join(self.dir.strip_prefix("/").expect("absolute"))
    }

    /// The canary by more `..` than there are directories.
    fn upwards(&self) -> PathBuf {
        PathBuf::from("../../../../../../../..").join(self.dir.strip_prefix("/").expect("absolute"))
    }
}

fn mount(world: &mut World, mount: Value) {
    world.config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn without_mount(world: &mut World, destination: &str) {
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| !Path::new(mount["destination"].as_str().expect("destination")).starts_with(destination));
}

fn grant(world: &mut World, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        world.config["process"]["capabilities"][set] = json!(names);
    }
}

/// Ids of a user namespace that nobody on the host has.
fn in_user_namespace(world: &mut World) {
    world.config["linux"]["namespaces"].as_array_mut().expect("list").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
}

fn make_executable(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("chmod");
}

/// A file of the host's kernel that attacks like to write, and its value.
fn core_pattern() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/core_pattern").expect("core_pattern")
}
