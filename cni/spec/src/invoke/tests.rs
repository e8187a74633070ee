//! Chains of real processes (shell scripts) called through the public functions.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::Code;

fn script(directory: &Path, name: &str, body: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn runtime(directory: &Path) -> Runtime {
    Runtime {
        container_id: "c1".into(),
        netns: Some("/run/netns/c1".into()),
        if_name: "eth0".into(),
        args: vec![("K8S_POD_NAME".into(), "web".into())],
        capabilities: json!({"mac": "02:00:00:00:00:01", "other": 1}).as_object().unwrap().clone(),
        bin_dirs: vec!["/nonexistent".into(), directory.to_owned()],
        timeout: Duration::from_secs(20),
    }
}

fn list(version: &str) -> ConfigList {
    let text = json!({"cniVersion": version, "name": "net", "plugins": [
        {"type": "first", "capabilities": {"mac": true}}, {"type": "second"}]});
    ConfigList::parse(text.to_string().as_bytes()).unwrap()
}

/// A plugin that records its input and environment and answers with a fixed result.
fn recorder(directory: &Path, name: &str, answer: &str) {
    let log = directory.join(format!("{name}.log"));
    let log = log.display();
    script(
        directory,
        name,
        &format!(
            "echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\" >>{log}; cat >>{log}; echo >>{log}\necho '{answer}'"
        ),
    );
}

#[test]
fn add_passes_results_along_and_del_goes_backwards() {
    let directory = tempfile::tempdir().unwrap();
    recorder(directory.path(), "first", r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}]}"#);
    recorder(
        directory.path(),
        "second",
        r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"},{"address":"fd00::5/64"}]}"#,
    );
    let result = add(&list("1.0.0"), &runtime(directory.path())).unwrap();
    assert_eq!(addresses(&result).len(), 2);
    check(&list("1.0.0"), &runtime(directory.path()), &result).unwrap();
    del(&list("1.0.0"), &runtime(directory.path()), Some(&result)).unwrap();

    let first = fs::read_to_string(directory.path().join("first.log")).unwrap();
    let second = fs::read_to_string(directory.path().join("second.log")).unwrap();
    assert!(first.starts_with("ADD c1 /run/netns/c1 eth0 K8S_POD_NAME=web\n"), "{first}");
    assert!(first.contains(r#""runtimeConfig":{"mac":"02:00:00:00:00:01"}"#), "{first}");
    assert!(!second.contains("runtimeConfig"), "{second}");
    let add_input: Value = serde_json::from_str(second.lines().nth(1).unwrap()).unwrap();
    assert_eq!(add_input["prevResult"]["ips"][0]["address"], "10.0.0.5/24");
    let del_input: Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
    assert_eq!(del_input["prevResult"]["ips"][1]["address"], "fd00::5/64");
}

#[test]
fn errors_say_which_plugin_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime(directory.path());
    assert!(matches!(add(&list("1.0.0"), &runtime), Err(InvokeError::NotFound { .. })));
    script(directory.path(), "first", r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"full"}'; exit 1"#);
    match add(&list("1.0.0"), &runtime) {
        Err(InvokeError::Plugin { plugin, source, .. }) => {
            assert_eq!((plugin.as_str(), source.code), ("first", Code::TryAgainLater));
        }
        other => panic!("{other:?}"),
    }
    script(directory.path(), "first", "echo oh no >&2; exit 3");
    match add(&list("1.0.0"), &runtime) {
        Err(InvokeError::Crashed { output, .. }) => assert_eq!(output, "oh no"),
        other => panic!("{other:?}"),
    }
    script(directory.path(), "first", "echo hello");
    assert!(matches!(add(&list("1.0.0"), &runtime), Err(InvokeError::Output { .. })));
}

#[test]
fn a_hanging_plugin_and_its_child_are_killed() {
    let directory = tempfile::tempdir().unwrap();
    script(directory.path(), "first", "sleep 600 & echo $! >$(dirname $0)/child; wait");
    let child = directory.path().join("child");
    // On a busy machine the shell may need longer to start its child than the plugin is given: then it gets more.
    let pid = (1..=6).find_map(|attempt| {
        let quick = Runtime { timeout: Duration::from_millis(500 << attempt), ..runtime(directory.path()) };
        assert!(matches!(add(&list("1.0.0"), &quick), Err(InvokeError::Timeout { .. })));
        fs::read_to_string(&child).ok().filter(|text| text.ends_with('\n'))
    });
    let pid = pid.expect("a shell starts a child within half a minute");
    // Killed is not dead: the kernel ends it when it runs next.
    let is_dead = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
    };
    let began = std::time::Instant::now();
    while !is_dead() {
        assert!(began.elapsed() < Duration::from_secs(60), "the grandchild lives on");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn what_a_plugin_prints_is_bounded_and_who_keeps_its_pipes_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime(directory.path());
    for stream in ["", ">&2"] {
        script(directory.path(), "first", &format!("head -c 3000000 /dev/zero {stream}; sleep 600"));
        let error = format!("{:?}", add(&list("1.0.0"), &runtime).unwrap_err());
        assert!(error.contains("more than 1 MiB"), "{error}");
    }
    // Input longer than a pipe holds, that nobody reads.
    script(directory.path(), "first", "exec >/dev/null; exit 0");
    let long =
        Runtime { capabilities: json!({"mac": "x".repeat(200_000)}).as_object().unwrap().clone(), ..runtime.clone() };
    assert!(matches!(add(&list("1.0.0"), &long), Err(InvokeError::Output { .. })));
    script(directory.path(), "first", "setsid sleep 20 & exit 0");
    let quick = Runtime { timeout: Duration::from_millis(300), ..runtime };
    assert!(matches!(add(&list("1.0.0"), &quick), Err(InvokeError::Timeout { .. })));
}

#[test]
fn gc_and_status_need_1_1() {
    let directory = tempfile::tempdir().unwrap();
    recorder(directory.path(), "first", "");
    recorder(directory.path(), "second", "");
    let dirs = [directory.path().to_owned()];
    let valid = [Attachment { container_id: "c1".into(), if_name: "eth0".into() }];
    let timeout = Duration::from_secs(20);
    gc(&list("1.0.0"), &valid, &dirs, timeout).unwrap();
    status(&list("1.0.0"), &dirs, timeout).unwrap();
    assert!(!directory.path().join("first.log").exists());
    gc(&list("1.1.0"), &valid, &dirs, timeout).unwrap();
    status(&list("1.1.0"), &dirs, timeout).unwrap();
    let log = fs::read_to_string(directory.path().join("first.log")).unwrap();
    assert!(log.contains(r#""cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#), "{log}");
    assert!(log.contains("STATUS"), "{log}");
}
