//! Host ports.

use std::net::{Ipv4Addr, UdpSocket};

use cni_netlink::nft::{Family, Nftables};
use cni_spec::Attachment;
use serde_json::{Map, Value, json};

use crate::host::{HOST_OUTSIDE, Host, ask_tcp, ask_udp, say_udp, serve_tcp, serve_udp, serve_udp_as};

fn mappings(list: &Value) -> Map<String, Value> {
    json!({ "portMappings": list }).as_object().unwrap().clone()
}

#[test]
fn host_ports_lead_to_the_container_from_everywhere() {
    let host = Host::new();
    let list = host.list("1.0.0");
    let wanted = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
    ]);
    let pod = host.pod_with("p", mappings(&wanted));
    let result = host.add(&list, &pod).unwrap();
    serve_tcp(&pod.namespace, 80);
    serve_udp(&pod.namespace, 53);
    let node = HOST_OUTSIDE.into();
    assert_eq!(ask_tcp(&host.outside, (node, 8080)).unwrap(), "192.0.2.2", "the client's own address");
    assert_eq!(ask_udp(&host.outside, (node, 5353)).unwrap(), "192.0.2.2");
    assert_eq!(ask_tcp(&host.outside, (node, 9090)).unwrap(), "192.0.2.2");
    ask_tcp(&host.namespace, (node, 8080)).unwrap();
    assert_eq!(ask_tcp(&host.namespace, (Ipv4Addr::LOCALHOST.into(), 8080)).unwrap(), "10.42.0.1");
    ask_tcp(&host.namespace, (Ipv4Addr::LOCALHOST.into(), 9090)).unwrap_err();
    assert_eq!(ask_tcp(&pod.namespace, (node, 8080)).unwrap(), "10.42.0.1", "hairpin");
    let other = host.pod("q");
    host.add(&list, &other).unwrap();
    assert_eq!(ask_tcp(&other.namespace, (node, 8080)).unwrap(), "10.42.0.3");
    host.check(&list, &pod, &result).unwrap();

    let thief = host.pod_with("thief", mappings(&json!([{"hostPort": 8080, "containerPort": 1, "protocol": "tcp"}])));
    let error = format!("{:?}", host.add(&list, &thief).unwrap_err());
    assert!(error.contains("host port 8080 belongs to container p eth0"), "{error}");
    host.del(&list, &thief, None);
    ask_tcp(&host.outside, (node, 8080)).unwrap();
    // A port of all addresses clashes with that of one, and with that of another network of this node.
    for (port, network) in [(9090, "test"), (8080, "another")] {
        let wanted = json!([{"hostPort": port, "containerPort": 1, "protocol": "tcp"}]);
        let thief = host.pod_with(&format!("thief-{port}"), mappings(&wanted));
        let list = if network == "test" { list.clone() } else { host.another_list() };
        let error = format!("{:?}", host.add(&list, &thief).unwrap_err());
        assert!(error.contains(&format!("host port {port} belongs to container p eth0 (table sampan-cni)")), "{error}");
        host.del(&list, &thief, None);
    }

    host.del(&list, &pod, None);
    ask_tcp(&host.outside, (node, 8080)).unwrap_err();
    let mut nft = Nftables::open_in(&host.namespace).unwrap();
    for set in ["ports", "ports-at", "ports-hairpin"] {
        assert!(nft.elements(Family::Inet, "sampan-cni", set).unwrap().is_empty());
    }
}

#[test]
fn datagrams_follow_the_holder() {
    let host = Host::new();
    let list = host.list("1.0.0");
    let wanted = mappings(&json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]));
    let node = (HOST_OUTSIDE.into(), 5353);
    // One socket, so one connection to the kernel: it must not remember that nobody was there, nor who was.
    let socket = host.outside.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    say_udp(&socket, node).unwrap_err();
    for name in ["first", "second"] {
        let pod = host.pod_with(name, wanted.clone());
        let result = host.add(&list, &pod).unwrap();
        serve_udp_as(&pod.namespace, 53, name);
        assert_eq!(say_udp(&socket, node).unwrap(), name);
        host.del(&list, &pod, Some(&result));
        say_udp(&socket, node).unwrap_err();
    }
}

#[test]
fn gc_frees_host_ports() {
    let host = Host::new();
    let list = host.list("1.1.0");
    let port = |number: u16| mappings(&json!([{"hostPort": number, "containerPort": 80, "protocol": "tcp"}]));
    let (kept, lost) = (host.pod_with("kept", port(81)), host.pod_with("lost", port(82)));
    host.add(&list, &kept).unwrap();
    host.add(&list, &lost).unwrap();
    host.gc(&list, &[Attachment { container_id: "kept".into(), if_name: "eth0".into() }]);
    let mut nft = Nftables::open_in(&host.namespace).unwrap();
    let found = nft.elements(Family::Inet, "sampan-cni", "ports").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].comment.as_deref(), Some("kept eth0"));
}

#[test]
fn a_port_that_the_node_listens_on_is_refused() {
    let host = Host::new();
    let reserved = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [
        host.list("1.0.0").plugins[0].object(),
        {"type": "portmap", "capabilities": {"portMappings": true}, "reserved": ["0.0.0.0:10250", "10.43.0.10:53"]}]});
    let list = cni_spec::ConfigList::parse(reserved.to_string().as_bytes()).unwrap();
    serve_tcp(&host.namespace, 6443);
    let bind = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 5432)).unwrap();
    let _local = host.namespace.within(bind).unwrap();
    serve_udp(&host.namespace, 53);
    let node = HOST_OUTSIDE.to_string();
    let mut number = 0;
    let mut check = |mapping: Value, refused: bool| {
        number += 1;
        let pod = host.pod_with(&format!("p{number}"), mappings(&json!([mapping])));
        let outcome = host.add(&list, &pod);
        assert_eq!(outcome.is_err(), refused, "{mapping}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(format!("{error:?}").contains("this node itself listens on"), "{error:?}");
        }
        host.del(&list, &pod, None);
    };
    check(json!({"hostPort": 6443, "containerPort": 80, "protocol": "tcp"}), true);
    check(json!({"hostPort": 6443, "containerPort": 80, "protocol": "tcp", "hostIP": node}), true);
    check(json!({"hostPort": 6443, "containerPort": 80, "protocol": "udp"}), false);
    check(json!({"hostPort": 5432, "containerPort": 80, "protocol": "tcp"}), true);
    check(json!({"hostPort": 5432, "containerPort": 80, "protocol": "tcp", "hostIP": node}), false);
    check(json!({"hostPort": 53, "containerPort": 80, "protocol": "udp"}), true);
    check(json!({"hostPort": 53, "containerPort": 80, "protocol": "tcp"}), true);
    check(json!({"hostPort": 53, "containerPort": 80, "protocol": "tcp", "hostIP": node}), false);
    check(json!({"hostPort": 10250, "containerPort": 80, "protocol": "tcp"}), true);
    check(json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}), false);
    assert_eq!(ask_tcp(&host.outside, (HOST_OUTSIDE.into(), 6443)).unwrap(), "192.0.2.2", "the node still answers");
    assert!(host.leases().is_empty());
}

#[test]
fn a_flushed_table_is_filled_again_by_the_next_pod() {
    let host = Host::new();
    let list = host.list("1.0.0");
    let port = |number: u16| mappings(&json!([{"hostPort": number, "containerPort": 80, "protocol": "tcp"}]));
    let (first, second) = (host.pod_with("first", port(81)), host.pod_with("second", port(82)));
    host.add(&list, &first).unwrap();
    serve_tcp(&first.namespace, 80);
    let mut transaction = cni_netlink::nft::Transaction::new(Family::Inet);
    for chain in ["ports-in", "ports-out", "ports-post", "ports-loopback", "masquerade-test"] {
        transaction.flush_chain("sampan-cni", chain);
    }
    Nftables::open_in(&host.namespace).unwrap().apply(transaction).unwrap();
    host.add(&list, &second).unwrap();
    serve_tcp(&second.namespace, 80);
    for port in [81, 82] {
        ask_tcp(&host.outside, (HOST_OUTSIDE.into(), port)).unwrap();
    }
}
