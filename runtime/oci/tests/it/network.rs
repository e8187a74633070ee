//! Network namespaces: loopback, and devices of the host that are moved in.
//!
//! Devices are made in a network namespace of the test's own (unshare(1), ip(8)), never on the host.

use std::process::Command;

use serde_json::json;

use crate::harness::{Said, World};

#[test]
fn loopback_is_up() {
    let world = World::new(&["cat", "/sys/class/net/lo/flags"]);
    assert_eq!(world.run().good(), "0x9\n");
}

/// Runs the container from a network namespace that `prepare` (a shell script) has set up; `after` sees what is left there.
fn run_beside(world: &World, prepare: &str, after: &str) -> Said {
    world.save();
    let oci = env!("CARGO_BIN_EXE_sampan-oci");
    let script = format!(
        "set -e; {prepare}; set +e; {oci} --root {} run --bundle {} {}; code=$?; {after}; exit $code",
        world.state_root().display(),
        world.bundle().display(),
        world.id
    );
    Command::new("unshare").args(["--net", "sh", "-c", &script]).output().expect("unshare").into()
}

const PREPARE: &str = "ip link add eth7 type veth peer name peer7; ip address add 10.9.8.7/24 dev eth7; ip link set eth7 up; \
    ip -6 address add fd00:9::7/64 dev eth7; ip link add eth8 type veth peer name peer8";

#[test]
fn devices_are_moved_in_with_their_addresses() {
    let mut world = World::new(&[
        "sh",
        "-c",
        "ls /sys/class/net; cat /sys/class/net/inside/flags; cat /proc/net/fib_trie /proc/net/if_inet6",
    ]);
    world.config["linux"]["netDevices"] = json!({"eth7": {"name": "inside"}, "eth8": {"name": "net%d"}});
    let out = run_beside(&world, PREPARE, "ls /sys/class/net >&2").good();
    let (names, rest) = out.split_once("0x").expect("flags");
    assert_eq!(names.split_ascii_whitespace().collect::<Vec<_>>(), ["inside", "lo", "net0"]);
    // IFF_UP.
    assert!(rest.starts_with("1003\n"), "{rest}");
    assert!(rest.contains("10.9.8.7") && rest.contains("fd000009000000000000000000000007"), "{rest}");
    world.assert_gone();
}

#[test]
fn devices_that_cannot_be_moved_are_named() {
    let mut world = World::new(&["true"]);
    for (devices, words) in [
        (json!({"nope0": {}}), "there is no network device nope0"),
        (json!({"eth7": {"name": "lo"}}), "has a device lo already"),
        (json!({"eth7": {"name": "far/away"}}), "is not a name for a network device"),
    ] {
        world.config["linux"]["netDevices"] = devices;
        let said = run_beside(&world, PREPARE, "ip -brief address show dev eth7");
        assert!(said.err.contains(words), "{said:?}");
        assert!(said.out.contains("10.9.8.7/24"), "the device did not stay: {said:?}");
        world.assert_gone();
    }
    world.config["linux"]["netDevices"] = json!({"eth7": {}});
    world.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}, {"type": "pid"}]);
    assert!(world.run().bad().contains("needs a network namespace"));
}

/// What was moved comes back when the container is not made after all.
#[test]
fn devices_come_back_from_a_container_that_fails() {
    let mut world = World::new(&["true"]);
    world.config["linux"]["netDevices"] = json!({"eth7": {"name": "inside"}});
    let bad = json!({"destination": "/mnt", "type": "nofs", "source": "x"});
    world.config["mounts"].as_array_mut().expect("mounts").push(bad);
    let said = run_beside(&world, PREPARE, "ip -brief link show dev eth7");
    assert!(said.err.contains("mount nofs") && said.code == 1, "{said:?}");
    assert!(said.out.starts_with("eth7@"), "the device did not come back: {said:?}");
    world.assert_gone();
}
