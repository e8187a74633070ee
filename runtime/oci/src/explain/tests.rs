//! Every step has words, and the order told is the order done.

use serde_json::json;

use super::*;

fn told() -> Vec<Explained> {
    let dir = tempfile::tempdir().expect("tempdir");
    let spec = serde_json::from_value(json!({
        "ociVersion": "1.2.0", "root": { "path": "rootfs" },
        "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "cgroupsPath": "/told",
            "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "user" }],
            "uidMappings": [{ "containerID": 0, "hostID": 1000, "size": 1 }],
            "gidMappings": [{ "containerID": 0, "hostID": 1000, "size": 1 }],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
    }))
    .expect("spec");
    let bundle = Bundle::from_spec(dir.path(), spec).expect("bundle");
    let root = StateRoot::new(dir.path().join("state"));
    let id = ContainerId::parse("told").expect("id");
    let (steps, _) = explain(&root, &id, &bundle, &CreateOptions::default()).expect("explain");
    assert!(!root.dir().exists(), "telling a plan touches nothing");
    steps
}

#[test]
fn all_sides_are_told_in_order() {
    let steps = told();
    let numbers: Vec<_> = steps.iter().map(|step| step.number).collect();
    assert_eq!(numbers, (1..=steps.len()).collect::<Vec<_>>());
    let at = |words: &str| steps.iter().position(|step| step.step.contains(words)).unwrap_or_else(|| panic!("{words}"));
    let order = [
        "take the id",
        "make cgroup /told",
        "clone into new namespaces",
        "id maps",
        "mount proc",
        "pivot_root",
        "wait for start",
        "seccomp",
    ];
    let places: Vec<_> = order.iter().map(|words| at(words)).collect();
    assert!(places.is_sorted(), "{order:?} are at {places:?}");
    assert_eq!(steps.last().map(|step| (step.side, step.step.as_str())), Some((Side::Start, "exec")));
}

#[test]
fn each_step_says_its_call_and_why() {
    for step in told() {
        assert!(step.call.contains("(2)") && !step.why.is_empty(), "{step:?}");
        assert!(!step.look(Some(7)).contains("PID"), "{step:?}");
    }
}
