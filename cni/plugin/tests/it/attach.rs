//! ADD, CHECK, DEL, STATUS, VERSION, and what packets look like afterwards.

use std::time::Duration;

use cni_netlink::{Batch, Rtnetlink};
use cni_spec::invoke::{self, InvokeError};
use cni_spec::{Code, SpecVersion};
use serde_json::json;

use crate::host::{HOST_OUTSIDE, Host, OUTSIDE, address, ask_tcp, ask_udp, serve_tcp, serve_udp};

#[test]
fn pods_see_each_other_and_the_outside_sees_the_node() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let (a, b) = (host.pod("a"), host.pod("b"));
    let (at_a, at_b) = (host.add(&list, &a).unwrap(), host.add(&list, &b).unwrap());
    assert_eq!((address(&at_a).to_string(), address(&at_b).to_string()), ("10.42.0.2".into(), "10.42.0.3".into()));
    assert_eq!(at_a.interfaces[2].mac, "0a:58:0a:2a:00:02");
    assert_eq!((at_a.interfaces[2].mtu, at_a.interfaces[2].name.as_str()), (1450, "eth0"));

    serve_tcp(&b.namespace, 80);
    serve_udp(&b.namespace, 53);
    assert_eq!(ask_tcp(&a.namespace, (address(&at_b), 80)).unwrap(), "10.42.0.2", "no NAT between pods");
    assert_eq!(ask_udp(&a.namespace, (address(&at_b), 53)).unwrap(), "10.42.0.2");
    assert_eq!(ask_tcp(&host.namespace, (address(&at_b), 80)).unwrap(), "10.42.0.1", "the node reaches pods");

    serve_tcp(&host.outside, 8080);
    assert_eq!(ask_tcp(&a.namespace, (OUTSIDE.into(), 8080)).unwrap(), HOST_OUTSIDE.to_string(), "masqueraded");
    assert_eq!(ask_tcp(&host.namespace, (OUTSIDE.into(), 8080)).unwrap(), HOST_OUTSIDE.to_string());

    host.check(&list, &a, &at_a).unwrap();
    host.del(&list, &a, Some(&at_a));
    host.del(&list, &b, None);
    assert!(host.veths().is_empty() && host.leases().is_empty());
}

#[test]
fn every_version_answers_in_its_own_shape() {
    let host = Host::new();
    for version in SpecVersion::ALL {
        let list = host.list(version.as_str());
        let pod = host.pod(&format!("v{version}"));
        let result = host.add(&list, &pod).unwrap();
        assert!(address(&result).to_string().starts_with("10.42.0."), "{version}");
        assert_eq!(result.interfaces.is_empty(), version < SpecVersion::V0_3_0);
        host.check(&list, &pod, &result).unwrap();
        host.del(&list, &pod, Some(&result));
        host.del(&list, &pod, Some(&result));
    }
    let info = invoke::version("bridge", &host.bin_dirs(), Duration::from_secs(30)).unwrap();
    assert_eq!(info.supported_versions.len(), SpecVersion::ALL.len());
    assert!(host.veths().is_empty() && host.leases().is_empty());
}

#[test]
fn check_finds_what_is_missing() {
    let host = Host::new();
    let list = host.list("1.0.0");
    let pod = host.pod("p");
    let result = host.add(&list, &pod).unwrap();
    host.check(&list, &pod, &result).unwrap();
    let mut inside = Rtnetlink::open_in(&pod.namespace).unwrap();
    let index = inside.link("eth0").unwrap().unwrap().index;
    inside.apply(Batch::default().delete_address(index, address(&result), 24)).unwrap();
    let error = host.check(&list, &pod, &result).unwrap_err();
    assert!(format!("{error:?}").contains("no address 10.42.0.2/24"), "{error:?}");
    inside.apply(Batch::default().delete_link("eth0")).unwrap();
    assert!(host.check(&list, &pod, &result).is_err());
    host.del(&list, &pod, Some(&result));
}

#[test]
fn requested_addresses_are_honoured_or_refused() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let wanted = json!({"mac": "02:00:00:00:00:07", "ips": ["10.42.0.77"]});
    let pod = host.pod_with("p", wanted.as_object().unwrap().clone());
    let result = host.add(&list, &pod).unwrap();
    assert_eq!(
        (address(&result).to_string(), result.interfaces[2].mac.as_str()),
        ("10.42.0.77".into(), "02:00:00:00:00:07")
    );
    let twin = host.pod_with("q", wanted.as_object().unwrap().clone());
    assert_eq!(code(host.add(&list, &twin)), Code::TryAgainLater);
    let outside = json!({"ips": ["10.99.0.1"]});
    let lost = host.pod_with("r", outside.as_object().unwrap().clone());
    assert_eq!(code(host.add(&list, &lost)), Code::InvalidConfig);
    assert_eq!(host.leases().len(), 1, "failed ADDs keep nothing");
    assert_eq!(host.veths().len(), 1);
}

#[test]
fn bad_requests_have_their_codes() {
    let host = Host::new();
    let pod = host.pod("p");
    for (changes, expected) in [
        (json!({"vlan": 7}), Code::UnsupportedField),
        (json!({"bridge": "a-name-that-is-too-long"}), Code::InvalidConfig),
        (json!({"bridge": "up0"}), Code::InvalidConfig),
        (json!({"mtu": 7}), Code::InvalidConfig),
        (json!({"ipam": {"type": "host-local"}}), Code::InvalidConfig),
        (json!({"ipam": {"type": "../evil"}}), Code::InvalidConfig),
    ] {
        assert_eq!(code(host.add(&host.list_with("1.0.0", &changes), &pod)), expected, "{changes}");
    }
    let list = host.list("1.0.0");
    host.add(&list, &pod).unwrap();
    assert_eq!(code(host.add(&list, &pod)), Code::InvalidEnvironment, "eth0 exists");
    let mut gone = host.pod("gone");
    gone.runtime.netns = Some("/nonexistent/netns".into());
    assert_eq!(code(host.add(&list, &gone)), Code::UnknownContainer);
    gone.runtime.netns = Some("/proc/self/ns/net".into());
    assert_eq!(code(host.add(&list, &gone)), Code::InvalidEnvironment, "the host's own namespace");
    assert_eq!(host.leases().len(), 1);
    assert_eq!(host.veths().len(), 1);
}

#[test]
fn status_is_good_here_and_names_an_exhausted_range() {
    let host = Host::new();
    let tiny = json!({"ipam": {"type": "host-local", "dataDir": host.directory.path().join("leases"),
        "ranges": [[{"subnet": "10.42.0.0/30"}]]}});
    let list = host.list_with("1.1.0", &tiny);
    let dirs = host.bin_dirs();
    let status = || host.namespace.within(|| invoke::status(&list, &dirs, Duration::from_secs(30))).unwrap();
    status().unwrap();
    let (a, b) = (host.pod("a"), host.pod("b"));
    let result = host.add(&list, &a).unwrap();
    assert_eq!(code(status()), Code::NotAvailable);
    assert_eq!(code(host.add(&list, &b)), Code::TryAgainLater);
    host.del(&list, &a, Some(&result));
    status().unwrap();
    host.add(&list, &b).unwrap();
}

#[test]
fn two_families_and_another_ipam_program() {
    let host = Host::new();
    let both = json!({"ipam": {"type": "host-local", "dataDir": host.directory.path().join("leases"),
        "ranges": [[{"subnet": "10.42.0.0/24"}], [{"subnet": "fd42::/64"}]]}});
    let list = host.list_with("1.1.0", &both);
    let (a, b) = (host.pod("a"), host.pod("b"));
    host.add(&list, &a).unwrap();
    let at_b = host.add(&list, &b).unwrap();
    assert_eq!(at_b.ips[1].address.to_string(), "fd42::3/64");
    let listener = b.namespace.within(|| std::net::TcpListener::bind("[::]:90")).unwrap().unwrap();
    let connected = a.namespace.within(|| std::net::TcpStream::connect((at_b.ips[1].address.address(), 90))).unwrap();
    connected.unwrap();
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), "fd42::2");

    let program = host.directory.path().join("bin/fixed");
    std::fs::write(&program, "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.42.0.200/24\",\"gateway\":\"10.42.0.1\"}]}'\ntrue\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let list = host.list_with("1.1.0", &json!({"ipam": {"type": "fixed"}}));
    let pod = host.pod("c");
    assert_eq!(address(&host.add(&list, &pod).unwrap()).to_string(), "10.42.0.200");
    host.del(&list, &pod, None);
}

#[test]
fn nobody_takes_an_end_of_the_same_name_for_his_own() {
    use std::os::fd::AsFd;
    let host = Host::new();
    let list = host.list("1.1.0");
    let pod = host.pod("p");
    let result = host.add(&list, &pod).unwrap();
    let name = result.interfaces[1].name.clone();
    let mut at_host = Rtnetlink::open_in(&host.namespace).unwrap();
    let remark = at_host.link(&name).unwrap().unwrap().alias.unwrap();
    assert_eq!(remark, "br0 10.42.0.1/24 test p eth0", "what services read when the bridge was deleted");
    host.del(&list, &pod, Some(&result));
    // The hash of another attachment is the same.
    let other = host.pod("other");
    let bridge = at_host.link("br0").unwrap().unwrap().index;
    let veth = cni_netlink::rtnetlink::Veth {
        name: &name,
        bridge: Some(bridge),
        peer_name: "eth0",
        peer_namespace: other.namespace.as_fd(),
        peer_mac: None,
        mtu: None,
    };
    let port = cni_netlink::rtnetlink::PortChange::default();
    let mut batch = Batch::default();
    batch.create_veth(&veth).set_labelled_port(&name, port, Some("br0 10.42.0.1/24 test other eth0"));
    at_host.apply(&batch).unwrap();

    let result = host.add(&list, &pod).unwrap();
    assert_ne!(result.interfaces[1].name, name);
    host.check(&list, &pod, &result).unwrap();
    let of = |id: &str| cni_spec::Attachment { container_id: id.into(), if_name: "eth0".into() };
    host.gc(&list, &[of("p"), of("other")]);
    assert_eq!(host.veths().len(), 2);
    host.del(&list, &pod, Some(&result));
    host.del(&list, &pod, None);
    assert_eq!(host.veths(), [name], "the other's end stays");
    host.gc(&list, &[]);
    assert!(host.veths().is_empty());
}

/// As containerd and the tools around it write them: keys as Go's fields are called, nulls, `CNI_ARGS=none`.
#[test]
fn what_other_runtimes_send_is_understood() {
    let host = Host::new();
    let ports = json!({"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]});
    let pod = host.pod_with("p", ports.as_object().unwrap().clone());
    let changes = json!({"ipam": {"type": "host-local", "DataDir": host.directory.path().join("leases"),
        "Ranges": [[{"Subnet": "10.42.0.0/24", "gateway": null}]], "routes": null}, "vlanTrunk": null, "MTU": null});
    let list = host.list_with("1.0.0", &changes);
    let result = host.add(&list, &pod).unwrap();
    serve_tcp(&pod.namespace, 80);
    assert_eq!(ask_tcp(&host.outside, (HOST_OUTSIDE.into(), 8080)).unwrap(), "192.0.2.2");
    host.del(&list, &pod, Some(&result));
    assert!(host.leases().is_empty(), "DEL understands them as well");

    let run = |plugin: &str, config: &serde_json::Value| {
        use std::io::Write;
        let spawn = || {
            std::process::Command::new(host.bin_dirs()[0].join(plugin))
                .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "x"), ("CNI_IFNAME", "lo"), ("CNI_ARGS", "none")])
                .env("CNI_NETNS", pod.runtime.netns.as_ref().unwrap())
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut child = host.namespace.within(spawn).unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let loopback = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback", "prevResult": null});
    let (is_good, text) = run("loopback", &loopback);
    assert!(is_good, "{text}");
    // Whoever reads them says so.
    let ipam = json!({"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}});
    let (is_good, text) = run("host-local", &ipam);
    assert!(!is_good && text.contains("CNI_ARGS: `none`"), "{text}");
}

fn code<T: std::fmt::Debug>(outcome: Result<T, InvokeError>) -> Code {
    match outcome {
        Err(InvokeError::Plugin { source, .. }) => source.code,
        other => panic!("expected a plugin's error, got {other:?}"),
    }
}
