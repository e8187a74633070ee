//! Repetition, concurrency, kill -9 and garbage: nothing may leak.

use std::io::Write;
use std::process::{Command, Stdio};

use cni_netlink::nft::{Family, Nftables};
use cni_spec::Attachment;
use serde_json::json;

use crate::host::{Host, Pod, address};

#[test]
fn a_hundred_times_leaves_nothing_behind() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let pod = host.pod("p");
    for round in 0..100 {
        let result = host.add(&list, &pod).unwrap();
        assert_eq!(host.leases().len(), 1, "round {round}");
        host.del(&list, &pod, (round % 2 == 0).then_some(&result));
    }
    assert!(host.veths().is_empty() && host.leases().is_empty());
    let mut nft = Nftables::open_in(&host.namespace).unwrap();
    let chain = nft.chain(Family::Inet, "sampan-cni", "masquerade-test").unwrap().unwrap();
    assert_eq!(chain.uses, 1, "one rule, however many pods");
}

#[test]
fn many_at_once_get_different_addresses() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let pods: Vec<Pod> = (0..16).map(|n| host.pod(&format!("p{n}"))).collect();
    let mut given: Vec<String> = std::thread::scope(|scope| {
        let (host, list) = (&host, &list);
        let threads: Vec<_> =
            pods.iter().map(|pod| scope.spawn(move || address(&host.add(list, pod).unwrap()).to_string())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    given.sort();
    given.dedup();
    assert_eq!((given.len(), host.veths().len()), (16, 16));
    std::thread::scope(|scope| {
        for pod in &pods {
            let (host, list) = (&host, &list);
            scope.spawn(move || host.del(list, pod, None));
        }
    });
    assert!(host.veths().is_empty() && host.leases().is_empty());
}

/// Kills ADD after a growing delay; whatever it had done, ADD again, DEL and GC must cope.
#[test]
fn killed_in_the_middle() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let mut killed = 0;
    for step in 0..60_u32 {
        let pod = host.pod(&format!("k{step}"));
        killed += u32::from(run_and_kill(&host, &pod, step * 50));
        if step % 3 == 0 {
            // The runtime tries again for the same container, with a namespace that may hold the link already.
            host.del(&list, &pod, None);
            let result = host.add(&list, &pod).unwrap();
            host.check(&list, &pod, &result).unwrap();
            host.del(&list, &pod, Some(&result));
        } else if step % 3 == 1 {
            host.del(&list, &pod, None);
        }
    }
    assert!(killed > 0, "no ADD was slow enough to be killed");
    let living = host.pod("living");
    let result = host.add(&list, &living).unwrap();
    let valid = Attachment { container_id: "living".into(), if_name: "eth0".into() };
    host.gc(&list, &[valid]);
    assert_eq!(host.leases().len(), 1);
    assert_eq!(host.veths().len(), 1);
    host.check(&list, &living, &result).unwrap();
}

fn run_and_kill(host: &Host, pod: &Pod, spins: u32) -> bool {
    let list = host.list("1.1.0");
    let mut config = json!(list.plugins[0].object());
    config["name"] = json!("test");
    config["cniVersion"] = json!("1.1.0");
    let spawn = || {
        Command::new(host.bin_dirs()[0].join("bridge"))
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &pod.runtime.container_id)
            .env("CNI_NETNS", pod.runtime.netns.as_ref().unwrap())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &host.bin_dirs()[0])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut child = host.namespace.within(spawn).unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    for _ in 0..spins {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn garbage_input_is_an_error_object() {
    let host = Host::new();
    for (command, input) in
        [("ADD", "{"), ("ADD", "[]"), ("ADD", r#"{"cniVersion":"9.0.0"}"#), ("GC", r#"{"name":"n"}"#)]
    {
        let mut child = Command::new(host.bin_dirs()[0].join("bridge"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "x")
            .env("CNI_NETNS", "/proc/self/ns/net")
            .env("CNI_IFNAME", "eth0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{input}");
        let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(error["code"].as_u64().unwrap() > 0 && !error["msg"].as_str().unwrap().is_empty(), "{error}");
    }
}
