//! Who a process is: user strings, ids that mean something else to the kernel, capabilities.

use serde_json::{Value, json};

use crate::harness::World;

/// CVE-2026-30892: a user that is not exactly an id becomes an error, or just what it says; never root.
#[test]
fn users_are_exact() {
    let world = World::new(&["sleep", "1000"]);
    world.start_all();
    let users = [
        "1",
        "1:",
        ":1",
        "",
        "root",
        "1:2:3",
        "-1",
        "4294967295",
        "4294967296",
        " 0",
        "0x1",
        "nobody:nogroup",
        "+1",
        "1 ",
        "1:-1",
        "1:4294967295",
        "18446744073709551616",
        "0\n1",
        "١",
    ];
    for user in users {
        let said = world.oci(&["exec", "--user", user], &["id"]);
        let exact = match user {
            "1" => said.out.starts_with("uid=1 "),
            // Some take it for a uid alone.
            "1:" => said.out.starts_with("uid=1 gid=0"),
            _ => false,
        };
        assert!(said.code != 0 && !said.out.contains("uid=") || exact, "{user:?}: {said:?}");
    }
}

/// 2^32 - 1 is "no change" to setresuid(2) and setgroups(2): who runs as it would run as root.
#[test]
fn an_id_that_means_no_change_is_refused() {
    let no_change = u32::MAX;
    for user in [
        json!({"uid": no_change, "gid": 1000}),
        json!({"uid": 1000, "gid": no_change}),
        json!({"uid": 1000, "gid": 1000, "additionalGids": [no_change]}),
    ] {
        let mut world = World::new(&["id"]);
        world.config["process"]["user"] = user.clone();
        let said = world.run();
        let is_root = said.out.contains("uid=0") || said.out.contains("gid=0");
        assert!(!is_root, "{user}: {said:?}");
        world.assert_gone();
        // And by a process file for exec.
        world.config["process"]["user"] = json!({"uid": 0, "gid": 0});
        world.config["process"]["args"] = json!(["sleep", "1000"]);
        world.start_all();
        let mut process = world.config["process"].clone();
        process["user"] = user.clone();
        process["args"] = json!(["id"]);
        let file = world.path("process.json");
        std::fs::write(&file, process.to_string()).expect("write");
        let said = world.oci(&["exec", "--process", file.to_str().expect("utf-8")], &[]);
        let is_root = said.out.contains("uid=0") || said.out.contains("gid=0");
        assert!(!is_root, "{user}: {said:?}");
    }
}

/// Groups of the caller's are not the container's.
#[test]
fn no_group_of_the_callers_stays() {
    let mut world = World::new(&["id"]);
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]});
    world.save();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--groups", "4,27,42"]).arg(&world.runtime).arg("--root").arg(world.state_root());
    command.args(["run", "--bundle"]).arg(world.bundle()).arg(&world.id);
    let out = String::from_utf8(command.output().expect("setpriv").stdout).expect("utf-8");
    assert!(out.trim_end().ends_with("groups=7") || out.trim_end().ends_with("groups=1000,7"), "{out}");
}

/// CVE-2022-24769, CVE-2022-29162, CVE-2022-27650, CVE-2025-27612: nothing is inheritable or ambient unless it is asked for.
#[test]
fn nothing_is_inheritable_unless_asked_for() {
    let set = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a set");
        u64::from_str_radix(line.trim(), 16).expect("hexadecimal")
    };
    for user in [0, 1000] {
        let mut world = World::new(&["cat", "/proc/self/status"]);
        world.config["process"]["user"] = json!({"uid": user, "gid": user});
        let out = world.run().good();
        assert_eq!((set(&out, "CapInh:"), set(&out, "CapAmb:")), (0, 0), "{out}");
        world.config["process"]["args"] = json!(["sleep", "1000"]);
        world.start_all();
        let status = |flags: &[&str]| {
            let verb: Vec<&str> = [&["exec"], flags].concat();
            world.oci(&verb, &["cat", "/proc/self/status"]).good()
        };
        for flags in [&[][..], &["--cap", "CAP_SYS_CHROOT"]] {
            let out = status(flags);
            assert_eq!(set(&out, "CapInh:"), 0, "{flags:?}: {out}");
            // What `--cap` asks for may be ambient for a user that could not have it otherwise; nothing else.
            let chroot = if flags.is_empty() || user == 0 { 0 } else { 1 << 18 };
            assert_eq!(set(&out, "CapAmb:") & !chroot, 0, "{flags:?}: {out}");
        }
    }
    // Asked for, they are there.
    let mut world = World::new(&["cat", "/proc/self/status"]);
    for name in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        world.config["process"]["capabilities"][name] = json!(["CAP_KILL"]);
    }
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let out = world.run().good();
    assert_eq!((set(&out, "CapInh:"), set(&out, "CapAmb:"), set(&out, "CapBnd:")), (0x20, 0x20, 0x20), "{out}");
}

/// No `capabilities` at all is none, not all of the caller's.
#[test]
fn no_capabilities_are_none() {
    let mut world = World::new(&["cat", "/proc/self/status"]);
    world.config["process"]["capabilities"] = Value::Null;
    world.config["process"].as_object_mut().expect("object").remove("capabilities");
    let out = world.run().good();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{name}:\t0000000000000000")), "{name}: {out}");
    }
}

/// A whole procfs left somewhere in the mount namespace is what the kernel wants to see before it mounts another for a user namespace; that
/// one has no masks. Where the root changes without pivot_root the host's own would be left below the new root.
#[test]
fn a_user_namespace_inside_mounts_no_bare_procfs() {
    let script = "busybox unshare -mrpf sh -c 'mount -t proc none /proc && echo bare' || echo refused";
    let mut world = World::new(&["sh", "-c", script]);
    for set in ["bounding", "permitted", "effective"] {
        world.config["process"]["capabilities"][set] = json!(["CAP_SETFCAP", "CAP_SYS_ADMIN"]);
    }
    // Where a hook looks for the root at its own path, it is moved.
    for hooks in [json!({}), json!({"createContainer": [{"path": "/bin/true"}]})] {
        world.config["hooks"] = hooks;
        for flags in [&["run"][..], &["run", "--no-pivot"]] {
            world.save();
            let output = world.command().args(flags).arg("--bundle").arg(world.bundle()).arg(&world.id).output();
            let said = crate::harness::Said::from(output.expect("run"));
            assert_eq!(said.out, "refused\n", "{flags:?}: {said:?}");
        }
    }
    world.assert_gone();
}
