//! Containers of a user without any rights: the process opens its own sources, maps are the user's own id or the set-uid helpers' work.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Said, World, give};

/// Everything of the world belongs to the user, and the binary is where the user can reach it.
fn run_as(world: &World, uid: u32, gid: u32) -> Said {
    world.save();
    let oci = world.path("oci");
    std::fs::copy(env!("CARGO_BIN_EXE_sampan-oci"), &oci).expect("copy");
    std::fs::create_dir_all(world.state_root()).expect("mkdir");
    give(&world.path(""), uid, gid);
    std::fs::set_permissions(&oci, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    command
        .arg(&oci)
        .arg("--root")
        .arg(world.state_root())
        .args(["run", "--bundle"])
        .arg(world.bundle())
        .arg(&world.id);
    command.output().expect("setpriv").into()
}

fn world(script: &str) -> World {
    let mut world = World::new(&["sh", "-c", script]);
    let namespaces = world.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.push(json!({"type": "user"}));
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "cgroup");
    // The terminals' group is an id that not everybody has.
    for mount in mounts.iter_mut().filter(|mount| mount["type"] == "devpts") {
        mount["options"] = json!(["newinstance", "ptmxmode=0666"]);
    }
    world.config["linux"].as_object_mut().expect("linux").remove("resources");
    world
}

#[test]
fn a_user_without_subordinate_ids_is_root_inside() {
    let world = world("id -u; cat /proc/self/uid_map; echo x > /dev/null && touch /made && echo works");
    let out = run_as(&world, 4242, 4242).good();
    assert_eq!(out.split_ascii_whitespace().collect::<Vec<_>>(), ["0", "0", "4242", "1", "works"]);
    let made = std::fs::metadata(world.rootfs().join("made")).expect("made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 4242);
    chown(world.path(""), Some(0), Some(0)).expect("chown");
}

#[test]
fn maps_that_a_user_may_not_write_are_the_helpers_work() {
    let mut world = world("true");
    let map = json!([{"containerID": 0, "hostID": 4242, "size": 1}, {"containerID": 1, "hostID": 1, "size": 10}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    // Not the user's ids: refused by the helper, or there is no helper; never by a container with other ids than asked for.
    assert!(run_as(&world, 4242, 4242).bad().contains("newuidmap"));
    chown(world.path(""), Some(0), Some(0)).expect("chown");
}

#[test]
fn a_users_time_namespace_has_its_offsets() {
    let mut world = world("cat /proc/self/timens_offsets");
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "time"}));
    world.config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 7881}});
    let out = run_as(&world, 4242, 4242).good();
    assert_eq!(out.split_ascii_whitespace().take(2).collect::<Vec<_>>(), ["monotonic", "7881"]);
    chown(world.path(""), Some(0), Some(0)).expect("chown");
}

/// Where the host has a user with subordinate ids, and the programs that hand them out.
#[test]
fn subordinate_ids_are_mapped_behind_the_users_own() {
    let text = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let name = text.lines().find_map(|line| line.split(':').next()).unwrap_or_default();
    let user = nix::unistd::User::from_name(name).ok().flatten().filter(|user| !user.uid.is_root());
    let Some(user) = user.filter(|_| Path::new("/usr/bin/newuidmap").exists()) else { return };
    let world = world("id -u; cat /proc/self/uid_map");
    let out = run_as(&world, user.uid.as_raw(), user.gid.as_raw()).good();
    let words: Vec<_> = out.split_ascii_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", &user.uid.to_string(), "1"]);
    assert!(words.len() >= 7 && words[4] == "1", "{out}");
    chown(world.path(""), Some(0), Some(0)).expect("chown");
}
