//! Plans as they are printed, and what holds for all of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn plan(config: Value) -> Result<Plan, Error> {
    let spec: Spec = serde_json::from_value(config).expect("spec");
    let context = Context {
        bundle: std::path::Path::new("/bundle"),
        rootfs: None,
        root_change: RootChange::Pivot,
        keyring: Some("_ses.x".to_owned()),
        cgroup: CgroupView::V2 { own: "/sys/fs/cgroup/x".into(), may_show_all: false },
        preserve_fds: &[],
        default_maps: Maps::default(),
        mount_label: None,
    };
    Plan::new(&spec, &context)
}

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "args": ["sh"], "cwd": "/", "user": { "uid": 7, "gid": 8 }, "noNewPrivileges": true,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2, "soft": 1 }],
        },
        "hostname": "h",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
        ],
        "linux": {
            "namespaces": [
                { "type": "mount" }, { "type": "uts" }, { "type": "network", "path": "/run/ns" }, { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/keys"], "readonlyPaths": ["/proc/sys"],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
    })
}

#[test]
fn a_plan_is_printed_in_order() {
    insta::assert_snapshot!(plan(base()).expect("plan"), @r"
    clone into new namespaces: mnt uts cgroup
    join net namespace /run/ns
    start a new session
    join new session keyring _ses.x
    unshare the cgroup namespace
    cut mount propagation to the host
    bind the root file system
    mount proc at /proc
    bind mount at /data
    mount cgroup at /sys/fs/cgroup
    create device /dev/null
    create device /dev/zero
    create device /dev/full
    create device /dev/random
    create device /dev/urandom
    create device /dev/tty
    link /dev/fd to /proc/self/fd
    link /dev/stdin to /proc/self/fd/0
    link /dev/stdout to /proc/self/fd/1
    link /dev/stderr to /proc/self/fd/2
    link /dev/core to /proc/kcore
    link /dev/ptmx to pts/ptmx
    make /proc/sys read-only
    mask /proc/keys
    pivot_root
    make / read-only
    set hostname h
    set RLIMIT_NOFILE to 1:2
    give the standard streams to 7:8
    close descriptors from 3 on at exec
    set umask 0022
    set capabilities and become uid 7 gid 8
    set no_new_privs
    chdir to working directory /
    exec
    wait for start
    load seccomp filter of 7 instructions
    exec
    ");
}

#[test]
fn destinations_and_nodes_are_cleaned_as_runc_cleans_them() {
    for (given, expect) in
        [("/a/../c", "/c"), ("/q/../z/", "/z"), ("../../x", "/x"), ("/a/./b//c/..", "/a/b"), ("relative", "/relative")]
    {
        let mut config = base();
        config["mounts"] = json!([{ "destination": given, "type": "tmpfs", "source": "x" }]);
        config["linux"]["devices"] = json!([{ "path": given, "type": "c", "major": 1, "minor": 3 }]);
        let plan = plan(config).expect(given);
        let mounted: Vec<_> = plan
            .setup
            .iter()
            .filter_map(|step| match step {
                Step::Mount { destination, .. } => Some(destination.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(mounted, [std::path::PathBuf::from(expect)], "{given}");
        let is_node = |step: &Step| matches!(step, Step::Device(node) if node.path == std::path::Path::new(expect));
        assert!(plan.setup.iter().any(is_node), "{given}");
    }
}

#[test]
fn what_would_change_the_host_is_refused() {
    for (pointer, value, words) in [
        ("/linux/namespaces", json!([{"type": "mount"}]), "hostname"),
        ("/linux/namespaces", json!([{"type": "uts"}]), "need a mount namespace"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}, {"type": "uts"}]), "twice"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts", "path": "relative"}]), "absolute"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts"}, {"type": "user"}]), "uidMappings"),
        ("/mounts/0/destination", json!("/proc/../etc/../proc/sys"), "/proc"),
        ("/mounts/1/options", json!(["ro"]), "mounts[1]"),
    ] {
        let mut config = base();
        *config.pointer_mut(pointer).expect("pointer") = value;
        if words == "mounts[1]" {
            config["mounts"][1].as_object_mut().expect("object").remove("type");
        }
        let error = plan(config).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

proptest! {
    /// Any words as options: no panic, and a mount of its own kind is still one step.
    #[test]
    fn options_of_any_kind(options in proptest::collection::vec("[a-z]{0,12}(=[a-z0-9]{0,4})?", 0..8)) {
        let mut config = base();
        config["mounts"] = json!([{ "destination": "/x", "type": "tmpfs", "source": "x", "options": options }]);
        if let Ok(plan) = plan(config) {
            let mounts = plan.setup.iter().filter(|step| matches!(step, Step::Mount { .. })).count();
            prop_assert_eq!(mounts, 1);
        }
    }

    /// Nothing is done to the process before the root has changed, and the program comes last.
    #[test]
    fn the_order_holds(readonly: bool, uid in 0u32..3, terminal: bool) {
        let mut config = base();
        config["root"]["readonly"] = json!(readonly);
        config["process"]["user"]["uid"] = json!(uid);
        config["process"]["terminal"] = json!(terminal);
        let plan = plan(config).expect("plan");
        let at = |wanted: fn(&Step) -> bool| plan.setup.iter().position(wanted);
        let pivot = at(|step| matches!(step, Step::PivotRoot)).expect("pivot");
        let identity = at(|step| matches!(step, Step::Identity { .. })).expect("identity");
        let close = at(|step| matches!(step, Step::CloseDescriptors)).expect("close");
        let directory = at(|step| matches!(step, Step::WorkingDirectory(_))).expect("directory");
        prop_assert!(pivot < close && close < identity && identity < directory);
        prop_assert!(matches!(plan.start.last(), Some(Step::Exec)));
    }
}
