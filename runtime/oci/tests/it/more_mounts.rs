//! `mounts add` and `mounts remove`.

use serde_json::{Value, json};

use crate::harness::World;

fn running(is_mapped: bool) -> World {
    let mut world = World::new(&["sleep", "600"]);
    for name in ["data", "inside"] {
        std::fs::create_dir(world.rootfs().join(name)).expect("mkdir");
    }
    std::fs::write(world.rootfs().join("etc/file"), "image").expect("write");
    if is_mapped {
        world.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        world.config["linux"]["uidMappings"] = map.clone();
        world.config["linux"]["gidMappings"] = map;
    }
    world.start_all();
    world
}

/// `sampan-oci mounts CHANGE ID FILE`.
fn change(world: &World, change: &str, mounts: &Value) -> crate::harness::Said {
    let file = world.path("mounts.json");
    std::fs::write(&file, mounts.to_string()).expect("write");
    world.oci(&["mounts", change], &[file.to_str().expect("utf-8")])
}

fn table(world: &World) -> String {
    std::fs::read_to_string(format!("/proc/{}/mountinfo", world.pid())).expect("mountinfo")
}

#[test]
fn mounts_come_and_go_while_the_container_runs() {
    for is_mapped in [false, true] {
        let world = running(is_mapped);
        let before = table(&world);
        let source = world.path("source");
        std::fs::create_dir(&source).expect("mkdir");
        std::fs::write(source.join("file"), "host").expect("write");
        let file = source.join("file");
        let mounts = json!([
            {"destination": "/data", "type": "bind", "source": source, "options": ["bind", "ro"]},
            {"destination": "/inside", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700", "ro"]},
            {"destination": "/etc/file", "type": "bind", "source": file, "options": ["bind"]},
            {"destination": "/inside/again", "source": world.rootfs().join("data"), "options": ["rbind"]},
        ]);
        assert_eq!(change(&world, "add", &mounts).good(), "");
        let script = "cat /data/file /etc/file /inside/again/file; touch /data/x || touch /inside/x || echo refused";
        assert_eq!(world.oci(&["exec"], &["sh", "-c", script]).good(), "hosthosthostrefused\n");
        change(&world, "remove", &mounts).good();
        assert_eq!(table(&world), before);
        assert_eq!(world.oci(&["exec"], &["cat", "/etc/file"]).good(), "image");
    }
}

#[test]
fn of_several_mounts_all_are_made_or_none() {
    let world = running(false);
    let before = table(&world);
    let tmpfs = |destination: &str| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    for (mounts, words) in [
        (
            json!([tmpfs("/data"), tmpfs("/inside"), {"destination": "/x", "type": "nofs", "source": "x"}]),
            "mount nofs at /x",
        ),
        (json!([tmpfs("/data"), {"destination": "/x", "source": "/no/such", "options": ["bind"]}]), "/no/such"),
        (json!([tmpfs("/data"), tmpfs("/")]), "root stays what it is"),
        (json!([tmpfs("/proc/sys")]), "mounts[0].destination"),
        (json!([{"destination": "/sys/fs/cgroup", "type": "cgroup"}]), "when the container is made"),
    ] {
        let err = change(&world, "add", &mounts).bad();
        assert!(err.contains(words), "{err}");
        assert_eq!(table(&world), before, "{mounts}");
    }
    let err = change(&world, "remove", &json!([tmpfs("/data")])).bad();
    assert!(err.contains("unmount /data: nothing is mounted there"), "{err}");
    assert!(change(&world, "remove", &json!([tmpfs("/")])).bad().contains("keeps its root"));
    assert!(change(&world, "change", &json!([])).bad().contains("add, remove"));
    world.oci(&["kill"], &["KILL"]).good();
    crate::harness::eventually("stopped", || world.status() == "stopped");
    assert!(change(&world, "add", &json!([tmpfs("/data")])).bad().contains("stopped"));
}

/// The container may lay a symlink on the way: it leads nowhere but into the container.
#[test]
fn a_link_of_the_containers_leads_inside() {
    let world = running(false);
    let host = world.path("host");
    std::fs::create_dir(&host).expect("mkdir");
    std::os::unix::fs::symlink(&host, world.rootfs().join("link")).expect("symlink");
    let mounts = json!([{"destination": "/link/below", "type": "tmpfs", "source": "tmpfs"}]);
    change(&world, "add", &mounts).good();
    assert_eq!(std::fs::read_dir(&host).expect("read").count(), 0);
    let inside = format!(" {}/below ", host.display());
    assert!(table(&world).contains(&inside));
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").contains(&inside));
    change(&world, "remove", &mounts).good();
    assert!(!table(&world).contains(&inside));
}
