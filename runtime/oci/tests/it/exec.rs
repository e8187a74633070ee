//! exec: joins everything, takes over nothing.

use serde_json::json;

use crate::harness::World;

#[test]
fn exec_is_inside_with_the_configured_rights() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let out = world
        .oci(&["exec"], &["sh", "-c", "for n in mnt pid net uts ipc cgroup; do readlink /proc/self/ns/$n; done"])
        .good();
    for (kind, line) in ["mnt", "pid", "net", "uts", "ipc", "cgroup"].iter().zip(out.lines()) {
        let theirs = std::fs::read_link(format!("/proc/{}/ns/{kind}", world.pid())).expect("readlink");
        assert_eq!(theirs.to_str(), Some(line));
    }
    assert_eq!(world.oci(&["exec"], &["sh", "-c", "exit 42"]).code, 42);
    let said = world.oci(&["exec"], &["nope"]);
    assert_eq!(said.code, 255);
    assert!(said.err.contains("executable file not found in $PATH"), "{said:?}");
    let out = world
        .oci(&["exec", "--user", "7:8", "--cwd", "/tmp", "--env", "A=b", "-g", "9"], &["sh", "-c", "id; pwd; echo $A"]);
    assert_eq!(out.good(), "uid=7 gid=8 groups=9\n/tmp\nb\n");
    for user in ["1:", ":1", "", "root", "-1", "4294967295", "0x1"] {
        assert!(world.oci(&["exec", "--user", user], &["id"]).bad().contains("--user"), "{user:?}");
    }
}

#[test]
fn added_capabilities_are_never_inheritable() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let status = |flags: &[&str]| {
        let mut verb = vec!["exec"];
        verb.extend(flags);
        world.oci(&verb, &["cat", "/proc/self/status"]).good()
    };
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned)
    };
    let text = status(&["--cap", "CAP_SYS_CHROOT"]);
    assert_eq!(field(&text, "CapInh:").as_deref(), Some("0000000000000000"));
    assert_eq!(field(&text, "CapAmb:").as_deref(), Some("0000000000000000"));
    assert_eq!(field(&text, "CapEff:").as_deref(), Some("0000000020040420"));
    assert_eq!(field(&status(&[]), "CapEff:").as_deref(), Some("0000000020000420"));
}

#[test]
fn exec_joins_a_user_namespace() {
    let mut world = World::new(&["sleep", "1000"]);
    world.config["linux"]["namespaces"].as_array_mut().expect("list").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    world.config["linux"]["uidMappings"] = map.clone();
    world.config["linux"]["gidMappings"] = map;
    world.start_all();
    let out = world.oci(&["exec"], &["sh", "-c", "id -u; readlink /proc/self/ns/user"]).good();
    let theirs = std::fs::read_link(format!("/proc/{}/ns/user", world.pid())).expect("readlink");
    assert_eq!(out, format!("0\n{}\n", theirs.display()));
}

#[test]
fn exec_in_a_created_container_and_in_none() {
    let world = World::new(&["sleep", "1000"]);
    assert!(world.oci(&["exec"], &["true"]).bad().contains("does not exist"));
    world.create().good();
    assert_eq!(world.oci(&["exec"], &["echo", "early"]).good(), "early\n");
}
