//! Namespaces that are joined, alone and with a user namespace; time namespaces.

use serde_json::{Value, json};

use crate::harness::World;

/// A container in a user namespace of its own.
fn mapped(args: &[&str]) -> World {
    let mut world = World::new(args);
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    world
}

/// `world`'s container joins what `chosen` says of the other's namespaces.
fn join(world: &mut World, other: &World, chosen: &[&str]) {
    let pid = other.pid();
    let linux = world.config["linux"].as_object_mut().expect("linux");
    for field in ["uidMappings", "gidMappings", "timeOffsets"] {
        linux.remove(field);
    }
    for namespace in linux["namespaces"].as_array_mut().expect("namespaces") {
        let name = namespace["type"].as_str().expect("type").to_owned();
        if chosen.contains(&name.as_str()) {
            let file = if name == "network" { "net" } else { &name };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
}

fn namespace(world: &mut World, namespace: Value) {
    world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(namespace);
}

#[test]
fn a_time_namespace_of_a_user_namespace_has_its_offsets() {
    let mut world = mapped(&["cat", "/proc/self/timens_offsets"]);
    namespace(&mut world, json!({"type": "time"}));
    world.config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 7881, "nanosecs": 2_718_281}});
    let out = world.run().good();
    let words: Vec<_> = out.split_ascii_whitespace().take(3).collect();
    assert_eq!(words, ["monotonic", "7881", "2718281"]);
}

#[test]
fn all_namespaces_of_another_container_are_joined() {
    let mut first = mapped(&["sleep", "600"]);
    namespace(&mut first, json!({"type": "time"}));
    first.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1337}});
    first.start_all();
    let kinds = ["user", "pid", "network", "ipc", "uts", "cgroup", "time"];
    let script = "for kind in user pid net ipc uts cgroup time; do readlink /proc/self/ns/$kind; done; cat /proc/self/timens_offsets";
    let mut second = mapped(&["sh", "-c", script]);
    namespace(&mut second, json!({"type": "time"}));
    join(&mut second, &first, &kinds);
    let out = second.run().good();
    let of_first = |kind: &str| std::fs::read_link(format!("/proc/{}/ns/{kind}", first.pid())).expect("readlink");
    let names: Vec<_> = out.lines().take(7).collect();
    let expect: Vec<_> = ["user", "pid", "net", "ipc", "uts", "cgroup", "time"]
        .iter()
        .map(|kind| of_first(kind).display().to_string())
        .collect();
    assert_eq!(names, expect);
    assert!(out.contains("1337"), "{out}");
}

/// The user namespace owns nothing of what is joined beside it, so that has to be joined first.
#[test]
fn namespaces_of_the_host_are_joined_with_a_user_namespace() {
    let first = mapped(&["sleep", "600"]);
    first.start_all();
    let host = World::new(&["sleep", "600"]);
    host.start_all();
    let mut second =
        mapped(&["sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net; readlink /proc/self/ns/pid"]);
    join(&mut second, &first, &["user"]);
    join(&mut second, &host, &["network", "pid"]);
    // Who owns neither the network nor the processes may mount no sysfs and no procfs of its own.
    second.config["mounts"] = json!([
        {"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]);
    for field in ["maskedPaths", "readonlyPaths"] {
        second.config["linux"].as_object_mut().expect("linux").remove(field);
    }
    second.config.as_object_mut().expect("object").remove("hostname");
    second.config["process"]["args"] = json!(["sleep", "600"]);
    second.start_all();
    let link =
        |world: &World, kind: &str| std::fs::read_link(format!("/proc/{}/ns/{kind}", world.pid())).expect("link");
    assert_eq!(link(&second, "user"), link(&first, "user"));
    assert_eq!(link(&second, "net"), link(&host, "net"));
    assert_eq!(link(&second, "pid"), link(&host, "pid"));
    assert_eq!(second.oci(&["exec"], &["readlink", "/proc/self/root"]).good(), "/\n");
}
