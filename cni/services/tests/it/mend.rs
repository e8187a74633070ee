//! What others take away comes back by itself: tables, rules, the bridge, addresses; and one bad object spoils nothing.

use std::net::Ipv4Addr;

use cni_netlink::nft::{Family, Nftables, Transaction};
use cni_netlink::rtnetlink::PortChange;
use cni_netlink::{Batch, Rtnetlink};
use serde_json::{Value, json};

use crate::daemon::{Daemon, FakeApi, eventually, resolve};
use crate::node::{DNS, GATEWAY, NODE, Node, ask_tcp, serve_tcp};
use crate::objects::{endpoint, service, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 1, 1);
const PORTS: [(&str, u16, &str); 1] = [("http", 8080, "TCP")];

fn api() -> FakeApi {
    let api = FakeApi::new();
    let spec = json!({"clusterIP": VIP, "clusterIPs": [VIP], "type": "NodePort",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    api.put("services", service("web", &spec));
    api.put("endpointslices", slice("web", &PORTS, &[endpoint("10.42.0.2")]));
    api
}

/// As a firewall's reload does it.
fn flush_ruleset(node: &Node) {
    let mut nft = Nftables::open_in(&node.namespace).unwrap();
    for family in [Family::Inet, Family::Ip] {
        for table in nft.tables(family).unwrap() {
            let mut transaction = Transaction::new(family);
            transaction.remove_table(&table);
            nft.apply(transaction).unwrap();
        }
    }
}

/// As `nft flush table` does it: chains stay, rules go.
fn flush_table(node: &Node, table: &str) {
    let mut nft = Nftables::open_in(&node.namespace).unwrap();
    let mut transaction = Transaction::new(Family::Inet);
    for chain in nft.base_chains(Family::Inet).unwrap().iter().filter(|chain| chain.table == table) {
        transaction.flush_chain(table, &chain.name);
    }
    nft.apply(transaction).unwrap();
}

#[test]
fn tables_that_are_flushed_or_deleted_come_back() {
    let node = Node::new();
    let (web, client) = (node.pod(2), node.pod(4));
    serve_tcp(&web, 8080, "web");
    let daemon = Daemon::start(&node.namespace, &api());
    let is_served = || ask_tcp(&client, (VIP, 80)).ok().filter(|_| ask_tcp(&node.outside, (NODE, 30080)).is_ok());
    eventually(is_served);
    // What the plugins would have: a table of their own, with a rule, a map and an element.
    let mut nft = Nftables::open_in(&node.namespace).unwrap();
    let mut plugins = Transaction::new(Family::Inet);
    {
        use cni_netlink::nft::{
            ChainKind, DataKind, Element, Expression, Hook, Meta, Policy, Register, Set, SetData, Value,
        };
        plugins.add_table("sampan-cni");
        let key = [DataKind::Protocol, DataKind::Port];
        let data = SetData::Fields(&[DataKind::Ipv4, DataKind::Port]);
        plugins.add_set("sampan-cni", &Set { name: "ports", key: &key, data, is_dynamic: false });
        let hook = (Hook::Postrouting, 105, Policy::Accept);
        plugins.add_base_chain("sampan-cni", "masquerade-x", ChainKind::Nat, hook, b"a note");
        let rule = [
            Expression::Meta { key: Meta::L4Proto, to: Register(0) },
            Expression::equals(Register(0), [250]),
            Expression::Counter,
            Expression::Masquerade,
        ];
        plugins.add_rule("sampan-cni", "masquerade-x", &rule);
        let element = Element::new(vec![6, 0, 0, 0, 0, 80, 0, 0], Value::Bytes(vec![10, 42, 0, 2, 0, 80, 0, 0]));
        let element = Element { comment: Some("p eth0".into()), ..element };
        plugins.add_elements("sampan-cni", "ports", [element]);
    }
    nft.apply(plugins).unwrap();
    let known = nft.snapshot(Family::Inet, "sampan-cni").unwrap().unwrap();
    // The table of Services changes with the plugins' one once the daemon has looked at that: both are its to keep.
    let mut look = || nft.snapshot(Family::Inet, "sampan-cni").unwrap();
    // A marker behind it: once the daemon has made the table of Services anew, it has looked at the other one as well.
    flush_table(&node, "sampan");
    eventually(is_served);
    for (how, harm) in [
        ("flush ruleset", &flush_ruleset as &dyn Fn(&Node)),
        ("flush table", &|node| flush_table(node, "sampan")),
        ("flush the plugins' table", &|node| flush_table(node, "sampan-cni")),
        ("again", &flush_ruleset),
    ] {
        harm(&node);
        eventually(|| look().filter(|now| *now == known));
        eventually(is_served);
        assert!(!how.is_empty());
    }
    daemon.stop();
}

#[test]
fn a_deleted_bridge_comes_back_with_its_pods() {
    let node = Node::new();
    let (web, client) = (node.pod(2), node.pod(4));
    serve_tcp(&web, 8080, "web");
    let mut host = Rtnetlink::open_in(&node.namespace).unwrap();
    // The plugin's remark.
    for veth in ["veth2", "veth4"] {
        let alias = format!("sampan0 {GATEWAY}/24 test {veth} eth0");
        let port = PortChange { hairpin: Some(true), isolated: None };
        host.apply(Batch::default().set_labelled_port(veth, port, Some(&alias))).unwrap();
    }
    let daemon = Daemon::start(&node.namespace, &api());
    let is_served = || {
        let by_service = ask_tcp(&client, (VIP, 80)).ok()?;
        ask_tcp(&node.namespace, (Ipv4Addr::LOCALHOST, 30080)).ok()?;
        Some(by_service)
    };
    eventually(is_served);
    host.apply(Batch::default().delete_link("sampan0")).unwrap();
    eventually(|| host.link("sampan0").unwrap());
    eventually(is_served);
    // A datagram may go to where the bridge was.
    eventually(|| std::panic::catch_unwind(|| resolve(&client)).ok());
    for veth in ["veth2", "veth4"] {
        let link = host.link(veth).unwrap().unwrap();
        assert!(link.controller.is_some() && link.hairpin == Some(true), "{link:?}");
    }
    // The DNS server's address and the way to cluster IPs.
    host.apply(Batch::default().delete_address(1, DNS.into(), 32)).unwrap();
    eventually(|| host.addresses(1).unwrap().contains(&(DNS.into(), 32)).then_some(()));
    eventually(|| std::panic::catch_unwind(|| resolve(&client)).ok());
    daemon.stop();

    // Deleted while nobody was there.
    host.apply(Batch::default().delete_link("sampan0")).unwrap();
    let daemon = Daemon::start(&node.namespace, &api());
    eventually(is_served);
    daemon.stop();
}

#[test]
fn an_unreadable_object_is_left_out_and_the_rest_is_served() {
    let node = Node::new();
    let (web, client) = (node.pod(2), node.pod(4));
    serve_tcp(&web, 8080, "web");
    let api = api();
    let bad = |name: &str| -> Value {
        json!({"metadata": {"namespace": "default", "name": name, "finalizers": [null],
            "labels": {"kubernetes.io/service-name": "web"}}, "spec": {"ports": [null]},
            "addressType": "IPv4", "endpoints": [null]})
    };
    api.put("services", bad("bad"));
    api.put("endpointslices", bad("bad-1"));
    let daemon = Daemon::start(&node.namespace, &api);
    eventually(|| ask_tcp(&client, (VIP, 80)).ok());
    // One that comes later, and one that was good before.
    api.put("endpointslices", bad("bad-2"));
    api.put("services", bad("web"));
    let other = json!({"clusterIP": "10.43.1.2", "clusterIPs": ["10.43.1.2"], "ports": [{"name": "http", "port": 80}]});
    api.put("services", service("other", &other));
    api.put("endpointslices", slice("other", &PORTS, &[endpoint("10.42.0.2")]));
    eventually(|| ask_tcp(&client, (Ipv4Addr::new(10, 43, 1, 2), 80)).ok());
    ask_tcp(&client, (VIP, 80)).unwrap();
    assert!(cni_services::counts::text().contains("sampan_services_unreadable_objects_total"));
    daemon.stop();
}
