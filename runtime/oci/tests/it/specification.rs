//! Properties of config.json that have no room of their own: versions, unknown names, hooks, working directory, HOME, labels.

use serde_json::{Value, json};

use crate::harness::World;

fn shell(script: &str) -> World {
    World::new(&["sh", "-c", script])
}

#[test]
fn unknown_properties_and_newer_versions_are_warned_about() {
    let mut world = World::new(&["true"]);
    world.config["ociVersion"] = json!("1.9.0-rc.1");
    world.config["linux"]["teleport"] = json!({"to": "mars"});
    world.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FUTURE"]);
    let said = world.run();
    assert_eq!(said.code, 0, "{said:?}");
    for words in ["linux.teleport", "1.9.0-rc.1 is newer", "CAP_FUTURE"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
    for version in ["", "1", "1.0", "one.two.three", "0.9.0"] {
        world.config["ociVersion"] = json!(version);
        assert!(world.run().bad().contains("ociVersion"), "{version}");
    }
}

#[test]
fn a_missing_working_directory_is_made_and_home_is_looked_up() {
    let mut world = shell("pwd; echo $HOME");
    std::fs::create_dir_all(world.rootfs().join("etc")).expect("mkdir");
    std::fs::write(world.rootfs().join("etc/passwd"), "root:x:0:0::/root:\nme:x:7:7::/home/me:\n").expect("write");
    world.config["process"]["cwd"] = json!("/new/deep");
    let environment = world.config["process"]["env"].as_array_mut().expect("env");
    environment.retain(|variable| !variable.as_str().is_some_and(|variable| variable.starts_with("HOME=")));
    assert_eq!(world.run().good(), "/new/deep\n/root\n");
    world.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    assert_eq!(world.run().good(), "/new/deep\n/home/me\n");
    world.config["process"]["user"] = json!({"uid": 8, "gid": 8});
    assert_eq!(world.run().good(), "/new/deep\n/\n");
    // What could block or never end is not read.
    std::fs::remove_file(world.rootfs().join("etc/passwd")).expect("rm");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::unistd::mkfifo(&world.rootfs().join("etc/passwd"), mode).expect("mkfifo");
    assert_eq!(world.run().good(), "/new/deep\n/\n");
    world.config["process"]["env"].as_array_mut().expect("env").push(json!("HOME=/given"));
    assert_eq!(world.run().good(), "/new/deep\n/given\n");
}

#[test]
fn labels_on_a_host_without_their_module_are_a_clear_error() {
    for (pointer, field, words) in [
        ("/process", "selinuxLabel", "SELinux"),
        ("/process", "apparmorProfile", "AppArmor"),
        ("/linux", "mountLabel", "context"),
    ] {
        let module = if words == "AppArmor" { "/sys/kernel/security/apparmor" } else { "/sys/fs/selinux/enforce" };
        if std::path::Path::new(module).exists() {
            continue;
        }
        let mut world = World::new(&["true"]);
        world.config.pointer_mut(pointer).expect("object")[field] = json!("some_label");
        let err = world.run().bad();
        assert!(err.contains(words), "{err}");
        world.assert_gone();
    }
}

#[test]
fn a_domain_name_that_contradicts_its_sysctl_is_refused() {
    let mut world = shell("cat /proc/sys/kernel/domainname");
    world.config["domainname"] = json!("one");
    world.config["linux"]["sysctl"] = json!({"kernel.domainname": "two"});
    assert!(world.run().bad().contains("contradicts domainname"));
    world.config["linux"]["sysctl"] = json!({"kernel.domainname": "one"});
    assert_eq!(world.run().good(), "one\n");
}

#[test]
fn hooks_have_their_surroundings() {
    let mut world = World::new(&["echo", "main"]);
    let trace = world.path("trace");
    let hook = |words: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {words} >> {}", trace.display())]}]);
    world.config["hooks"]["createRuntime"] = hook("$PWD $PATH");
    // The container's mounts are where the bundle has its root.
    world.config["hooks"]["createContainer"] = hook("$(test -e ./proc/self && test -e ./bin/busybox && cat)");
    world.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo $TERM,$CARGO_MANIFEST_DIR"]}]);
    assert_eq!(world.run().good(), "xterm,\nmain\n");
    let text = std::fs::read_to_string(&trace).expect("trace");
    let (first, second) = text.split_once('\n').expect("two lines");
    let path = std::env::var("PATH").expect("PATH");
    assert_eq!(first, format!("{} {path}", std::fs::canonicalize(world.bundle()).expect("bundle").display()));
    let state: Value = serde_json::from_str(second).expect("state");
    // runtime-spec 1.3, "State": the pid as the container sees it; and by then the environment has been made.
    assert_eq!(state["status"], json!("created"));
    assert_eq!(state["pid"], json!(1));
    world.config["hooks"] = json!({"prestart": [{"path": "bin/true"}]});
    assert!(world.run().bad().contains("not absolute"));
    world.assert_gone();
}

#[test]
fn hooks_say_where_their_output_goes() {
    let mut world = World::new(&["true"]);
    let (out, err) = (world.path("out"), world.path("err"));
    world.config["annotations"] = json!({"run.oci.hooks.stdout": out, "run.oci.hooks.stderr": err});
    world.config["hooks"] = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo one; echo two >&2"]}]});
    let said = world.run();
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert_eq!(std::fs::read_to_string(out).expect("read"), "one\n");
    assert_eq!(std::fs::read_to_string(err).expect("read"), "two\n");
}

#[test]
fn a_poststop_hook_that_fails_is_a_warning_and_a_poststart_hook_ends_the_container() {
    let mut world = World::new(&["true"]);
    let marker = world.path("marker");
    world.config["hooks"] =
        json!({"poststop": [{"path": "/bin/false"}, {"path": "/bin/touch", "args": ["touch", marker]}]});
    let said = world.run();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("poststop hook failed with exit code 1") && marker.exists(), "{said:?}");
    world.config["process"]["args"] = json!(["sleep", "1000"]);
    world.config["hooks"] = json!({"poststart": [{"path": "/bin/false"}]});
    world.create().good();
    assert!(world.oci(&["start"], &[]).bad().contains("poststart"));
    assert!(world.oci(&["state"], &[]).bad().contains("does not exist"));
    world.assert_gone();
}

#[test]
fn the_runtimes_own_groups_stay_where_that_is_asked_for() {
    let mut world = shell("grep ^Groups /proc/self/status");
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    world.config["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [5]});
    assert_eq!(world.run().good().split_ascii_whitespace().collect::<Vec<_>>(), ["Groups:", "5"]);
    world.config["annotations"] = json!({"run.oci.keep_original_groups": "1"});
    let own = std::fs::read_to_string("/proc/self/status").expect("status");
    let own = own.lines().find(|line| line.starts_with("Groups")).expect("groups");
    assert_eq!(world.run().good().trim(), own.trim());
}

#[test]
fn schedulers_of_the_specification_are_read() {
    let mut world = shell("cat /proc/self/sched | grep ^policy");
    std::os::unix::fs::symlink("busybox", world.rootfs().join("bin/grep")).expect("symlink");
    world.config["process"]["scheduler"] =
        json!({"policy": "SCHED_BATCH", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    let said = world.run();
    // A kernel without CONFIG_SCHED_DEBUG has no such file; that the policy was taken shows in the exit of the run alone.
    assert!(said.out.contains('3') || said.err.contains("sched"), "{said:?}");
    world.config["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000});
    assert!(world.run().bad().contains("must be <= deadline 4000"));
}

#[test]
fn an_rdt_class_needs_its_file_system() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    if mounts.contains(" - resctrl ") {
        return;
    }
    let mut world = World::new(&["true"]);
    world.config["linux"]["intelRdt"] = json!({"closID": "gold", "schemata": ["L3:0=f"]});
    assert!(world.run().bad().contains("no resctrl file system is mounted"));
    world.assert_gone();
}

#[test]
fn a_call_that_nobody_knows_is_an_error_where_that_is_asked_for() {
    let mut world = World::new(&["true"]);
    world.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}],
    });
    world.run().good();
    world.config["annotations"] = json!({"run.oci.seccomp_fail_unknown_syscall": "1"});
    assert!(world.run().bad().contains("no_such_call"));
    world.config["annotations"] = json!({});
    world.config["linux"]["seccomp"]["listenerMetadata"] = json!("for nobody");
    assert!(world.run().bad().contains("listenerMetadata"));
}

#[test]
fn the_last_of_two_values_of_a_variable_holds() {
    let mut world = shell("echo $TWICE");
    world.config["process"]["env"] = json!(["PATH=/bin", "TWICE=first", "TWICE=last"]);
    assert_eq!(world.run().good(), "last\n");
}

#[test]
fn a_container_without_a_process_is_created_but_not_started() {
    let mut world = World::new(&["true"]);
    world.config.as_object_mut().expect("object").remove("process");
    world.create().good();
    assert_eq!(world.status(), "created");
    assert!(world.oci(&["start"], &[]).bad().contains("there is no program to start"));
    assert_eq!(world.status(), "created");
    world.oci(&["delete"], &[]).good();
    world.assert_gone();
}
