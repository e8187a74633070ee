//! Mount propagation: what the host and a container see of each other's mounts. Each test has its own mount namespace, shared as a host's is.

use serde_json::json;

use crate::harness::World;

fn world(script: &str) -> World {
    let mut world = World::new(&["sh", "-c", script]);
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    std::fs::create_dir(world.path("source")).expect("mkdir");
    let capabilities = json!(["CAP_SYS_ADMIN"]);
    for set in ["bounding", "effective", "permitted"] {
        world.config["process"]["capabilities"][set] = capabilities.clone();
    }
    world
}

fn bind(world: &mut World, options: &[&str]) {
    let entry = json!({"destination": "/data", "type": "bind", "source": world.path("source"), "options": options});
    world.config["mounts"].as_array_mut().expect("mounts").push(entry);
}

/// What the kubelet asks for with `mountPropagation: Bidirectional`, with and without the root that it asks for beside it.
#[test]
fn what_a_container_mounts_on_a_shared_bind_is_on_the_host() {
    for root in [json!("rshared"), json!(null)] {
        let mut world = world("mkdir /data/inside && mount -t tmpfs from-inside /data/inside && ls /data");
        world.config["linux"]["rootfsPropagation"] = root;
        bind(&mut world, &["rbind", "rshared"]);
        let said = world.on_a_shared_host("$RUN && grep -c from-inside /proc/self/mountinfo");
        assert_eq!(said.good(), "inside\n1\n");
        // And on another bind that is not shared it is not.
        world.config["mounts"].as_array_mut().expect("mounts").pop();
        bind(&mut world, &["rbind", "rprivate"]);
        world.config["process"]["args"][2] = json!("mount -t tmpfs from-inside /data/inside && ls /data");
        let said = world.on_a_shared_host("$RUN; grep -c from-inside /proc/self/mountinfo");
        assert_eq!(said.out, "inside\n0\n");
    }
}

/// Nor does the root of a user namespace mount anything on the host, whatever is asked for.
#[test]
fn a_user_namespaces_shared_bind_does_not_reach_the_host() {
    let mut world = world("mount -t tmpfs from-inside /data && echo mounted");
    std::fs::create_dir(world.rootfs().join("data")).expect("mkdir");
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    bind(&mut world, &["rbind", "rshared"]);
    let said = world.on_a_shared_host("$RUN; grep -c from-inside /proc/self/mountinfo");
    assert_eq!(said.out, "mounted\n0\n", "{said:?}");
}

#[test]
fn a_shared_bind_stays_shared() {
    let mut world = world("grep ' /data ' /proc/self/mountinfo");
    bind(&mut world, &["rbind", "shared"]);
    let out = world.run().good();
    assert!(out.contains(" shared:"), "{out}");
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    let out = world.run().good();
    assert!(out.contains(" shared:"), "{out}");
}

#[test]
fn a_shared_root_is_shared_with_the_containers_own_only() {
    let mut world = world("grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo");
    world.config["linux"]["rootfsPropagation"] = json!("shared");
    let out = world.on_a_shared_host("$RUN").good();
    let root = out.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("the root's line");
    assert!(root.contains(" shared:") && !root.contains(" master:"), "{out}");
}

/// A mount of the container's own on its cgroups, its devices, or its root must not reach the host.
#[test]
fn nothing_else_is_shared_with_the_host() {
    let mut world = world("grep ' shared:' /proc/self/mountinfo || echo none");
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"});
    let mounts = world.config["mounts"].as_array_mut().expect("mounts");
    if !mounts.iter().any(|mount| mount["type"] == "cgroup") {
        mounts.push(cgroup);
    }
    // Without a cgroup namespace they are the host's directories, bound.
    world.config["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces")
        .retain(|namespace| namespace["type"] != "cgroup");
    assert_eq!(world.on_a_shared_host("$RUN").good(), "none\n");
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    world.config["linux"]["devices"] = json!([{"path": "/dev/own", "type": "c", "major": 1, "minor": 3}]);
    assert_eq!(world.on_a_shared_host("$RUN").good(), "none\n");
}
