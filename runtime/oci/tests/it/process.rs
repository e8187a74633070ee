//! What the program finds when it begins: its home, its working directory, its capabilities.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::harness::World;

fn with_passwd(args: &[&str]) -> World {
    let world = World::new(args);
    let text = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n";
    std::fs::write(world.rootfs().join("etc/passwd"), text).expect("passwd");
    world
}

#[test]
fn an_empty_home_is_none() {
    let mut world = with_passwd(&[
        "sh",
        "-c",
        "echo $HOME; env | while read line; do case $line in HOME=*) echo $line;; esac; done",
    ]);
    world.config["process"]["env"] = json!(["PATH=/bin", "HOME="]);
    assert_eq!(world.run().good(), "/root\nHOME=/root\n");
    world.config["process"]["env"] = json!(["PATH=/bin", "HOME=/own"]);
    assert_eq!(world.run().good(), "/own\nHOME=/own\n");
    world.config["process"]["env"] = json!(["PATH=/bin", "HOME=/own", "HOME="]);
    assert_eq!(world.run().good(), "/root\nHOME=/root\n");
    world.config["process"]["env"] = json!(["PATH=/bin"]);
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    world.config["hooks"]["startContainer"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo hook $HOME"] }]);
    assert_eq!(world.run().good(), "hook /home/user\n/home/user\nHOME=/home/user\n");
}

#[test]
fn a_directory_that_only_root_may_enter_is_begun_in() {
    let mut world = with_passwd(&["sh", "-c", "readlink /proc/self/cwd"]);
    let private = world.rootfs().join("private");
    std::fs::create_dir(&private).expect("mkdir");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    world.config["process"]["cwd"] = json!("/private");
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(world.run().good(), "/private\n");
    // And one that only its user may enter, without capabilities of root's.
    std::os::unix::fs::chown(&private, Some(1000), Some(1000)).expect("chown");
    assert_eq!(world.run().good(), "/private\n");
}

#[test]
fn an_ambient_capability_that_cannot_be_is_told_of() {
    let mut world = World::new(&["true"]);
    world.config["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
    world.config["process"]["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    let said = world.run();
    assert_eq!(said.code, 0);
    assert!(
        said.err.contains("can't raise ambient capability CAP_CHOWN: ") && !said.err.contains("CAP_KILL"),
        "{said:?}"
    );
}

#[test]
fn a_program_runs_by_capability_where_its_mode_forbids_it() {
    let mut world = World::new(&["/bin/busybox", "true"]);
    let program = world.rootfs().join("bin/busybox");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o744)).expect("chmod");
    world.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert!(world.run().bad().contains("permission denied"));
    for set in ["bounding", "effective", "inheritable", "ambient", "permitted"] {
        world.config["process"]["capabilities"][set] = json!(["CAP_DAC_OVERRIDE"]);
    }
    world.run().good();
}

/// It may be the image's own program.
#[test]
fn a_hook_in_the_container_is_under_its_filter() {
    let mut world = World::new(&["echo", "program"]);
    let profile = |action: &str| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}],
        })
    };
    world.config["hooks"]["startContainer"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "mkdir /tmp/made"] }]);
    world.config["linux"]["seccomp"] = profile("SCMP_ACT_KILL");
    world.config["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    // Whether or not it takes CAP_SYS_ADMIN to load it.
    for no_new_privileges in [true, false] {
        world.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let err = world.run().bad();
        assert!(err.contains("error running startContainer hook") && err.contains("bad system call"), "{err}");
        assert!(!world.rootfs().join("tmp/made").exists());
    }
    world.config["hooks"]["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "mkdir /tmp/made || echo refused"], "timeout": 60 }]);
    world.config["linux"]["seccomp"] = profile("SCMP_ACT_ERRNO");
    assert_eq!(world.run().good(), "refused\nprogram\n");
    world.assert_gone();
}
