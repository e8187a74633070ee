//! Real connections through the rules.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Instant;

use cni_services::proxy::Proxy;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use crate::node::{
    GATEWAY, NODE, Node, ask_tcp, ask_udp, connect, echo, greeting, serve_tcp, serve_udp, settings, udp_client,
};
use crate::objects::{catalog, endpoint, name, service, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 1, 1);

fn web(extra: &Value) -> Value {
    let mut spec = json!({"clusterIP": VIP, "clusterIPs": [VIP], "type": "NodePort", "externalIPs": ["198.51.100.7"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP"},
                  {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

const PORTS: [(&str, u16, &str); 2] = [("http", 8080, "TCP"), ("dns", 5353, "UDP")];

#[test]
fn every_way_in_reaches_every_endpoint() {
    let node = Node::new();
    node.prepare();
    let (a, b, client) = (node.pod(2), node.pod(3), node.pod(4));
    for (pod, label) in [(&a, "a"), (&b, "b")] {
        serve_tcp(pod, 8080, label);
        serve_udp(pod, 5353, label);
    }
    let endpoints = [endpoint("10.42.0.2"), endpoint("10.42.0.3")];
    let catalog = catalog(vec![(service("web", &web(&json!({}))), vec![slice("web", &PORTS, &endpoints)])]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &catalog, &[name("web")]);

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        *seen.entry(ask_tcp(&client, (VIP, 80)).unwrap()).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "both endpoints: {seen:?}");
    assert!(seen.keys().all(|text| text.ends_with(" 10.42.0.4")), "the client's own address: {seen:?}");
    ask_udp(&udp_client(&client, (VIP, 53))).unwrap();
    let external = Ipv4Addr::new(198, 51, 100, 7);
    for target in [(VIP, 80), (NODE, 30080), (external, 80)] {
        ask_tcp(&client, target).unwrap_or_else(|error| panic!("pod to {target:?}: {error}"));
    }
    for target in [(VIP, 80), (NODE, 30080), (Ipv4Addr::LOCALHOST, 30080)] {
        ask_tcp(&node.namespace, target).unwrap_or_else(|error| panic!("node to {target:?}: {error}"));
    }
    for target in [(VIP, 80), (NODE, 30080)] {
        let answer = ask_tcp(&node.outside, target).unwrap_or_else(|error| panic!("outside to {target:?}: {error}"));
        assert!(answer.ends_with(" 192.0.2.2"), "a local endpoint sees the client: {answer}");
    }
    ask_udp(&udp_client(&node.outside, (NODE, 30053))).unwrap();
    // Hairpin: a pod reaches itself through its own Service.
    let own: HashSet<String> = (0..30).map(|_| ask_tcp(&a, (VIP, 80)).unwrap()).collect();
    assert!(own.contains("a 10.42.0.1") && own.contains("b 10.42.0.2"), "{own:?}");
}

#[test]
fn without_endpoints_clients_are_told_at_once() {
    let node = Node::new();
    node.prepare();
    let client = node.pod(4);
    let catalog = catalog(vec![(service("web", &web(&json!({}))), vec![])]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &catalog, &[name("web")]);
    let refused = |from, target| {
        let begin = Instant::now();
        let error = connect(from, target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target:?}");
        assert!(begin.elapsed().as_secs() < 3);
    };
    for from in [&client, &node.namespace, &node.outside] {
        refused(from, (VIP, 80));
        refused(from, (NODE, 30080));
        // A port the Service has not, an address nobody has.
        refused(from, (VIP, 81));
        refused(from, (Ipv4Addr::new(10, 43, 9, 9), 80));
    }
    let error = ask_udp(&udp_client(&client, (VIP, 53))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "ICMP port unreachable");
}

#[test]
fn changes_spare_connections_and_a_restart_spares_them_too() {
    let node = Node::new();
    node.prepare();
    let (a, b, client) = (node.pod(2), node.pod(3), node.pod(4));
    serve_tcp(&a, 8080, "a");
    serve_tcp(&b, 8080, "b");
    serve_udp(&a, 5353, "a");
    serve_udp(&b, 5353, "b");
    let spec = web(&json!({}));
    let mut objects = catalog(vec![(service("web", &spec), vec![slice("web", &PORTS, &[endpoint("10.42.0.2")])])]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &objects, &[name("web")]);
    let mut held = connect(&client, (VIP, 80)).unwrap();
    assert_eq!(greeting(&mut held).unwrap(), "a 10.42.0.4");
    let datagrams = udp_client(&client, (VIP, 53));
    assert_eq!(ask_udp(&datagrams).unwrap(), "a 10.42.0.4");

    // The endpoint is replaced: new connections go to b, the old one lives, UDP follows at once.
    objects.slice_event(Event::Apply(slice("web", &PORTS, &[endpoint("10.42.0.3")])));
    node.apply(&mut proxy, &objects, &[name("web")]);
    assert_eq!(ask_tcp(&client, (VIP, 80)).unwrap(), "b 10.42.0.4");
    assert!(echo(&mut held));
    assert_eq!(ask_udp(&datagrams).unwrap(), "b 10.42.0.4");

    // Another process takes over; meanwhile the endpoint changed back.
    objects.slice_event(Event::Apply(slice("web", &PORTS, &[endpoint("10.42.0.2")])));
    let mut successor = Proxy::new(settings());
    node.apply(&mut successor, &objects, &[name("web")]);
    assert_eq!(ask_tcp(&client, (VIP, 80)).unwrap(), "a 10.42.0.4");
    assert!(echo(&mut held));
    assert_eq!(ask_udp(&datagrams).unwrap(), "a 10.42.0.4");

    // Somebody removes the table: the next change puts all of it back.
    let remove = || {
        let mut transaction = cni_netlink::nft::Transaction::new(cni_netlink::nft::Family::Inet);
        transaction.remove_table("sampan");
        cni_netlink::nft::Nftables::open().unwrap().apply(transaction).unwrap();
    };
    node.namespace.within(remove).unwrap();
    objects.slice_event(Event::Apply(slice("web", &PORTS, &[endpoint("10.42.0.2"), endpoint("10.42.0.3")])));
    node.apply(&mut successor, &objects, &[name("web")]);
    ask_tcp(&client, (VIP, 80)).unwrap();

    objects.service_event(Event::Delete(service("web", &spec)));
    node.apply(&mut successor, &objects, &[name("web")]);
    assert_eq!(connect(&client, (VIP, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_client_with_affinity_stays_until_its_endpoint_goes() {
    let node = Node::new();
    node.prepare();
    let (a, b, client) = (node.pod(2), node.pod(3), node.pod(4));
    serve_tcp(&a, 8080, "a");
    serve_tcp(&b, 8080, "b");
    let both = [endpoint("10.42.0.2"), endpoint("10.42.0.3")];
    let sticky = web(&json!({"sessionAffinity": "ClientIP"}));
    let mut objects = catalog(vec![(service("web", &sticky), vec![slice("web", &PORTS, &both)])]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &objects, &[name("web")]);
    let ask = |port| -> HashSet<String> {
        let target = if port == 80 { (VIP, 80) } else { (NODE, port) };
        (0..20).map(|_| ask_tcp(&client, target).unwrap()).collect()
    };
    let first = ask(80);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(ask(30080).len(), 1);
    let (gone, left) = if first.contains("a 10.42.0.4") { (0, "b 10.42.0.4") } else { (1, "a 10.42.0.4") };
    let rest: Vec<Value> =
        both.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, e)| e.clone()).collect();
    objects.slice_event(Event::Apply(slice("web", &PORTS, &rest)));
    node.apply(&mut proxy, &objects, &[name("web")]);
    assert_eq!(ask(80), HashSet::from([left.to_owned()]));
    objects.slice_event(Event::Apply(slice("web", &PORTS, &both)));
    node.apply(&mut proxy, &objects, &[name("web")]);
    assert_eq!(ask(80), HashSet::from([left.to_owned()]), "stays with the new one");
    // Another process makes the table anew: who stayed with an endpoint stays.
    let mut successor = Proxy::new(settings());
    node.apply(&mut successor, &objects, &[name("web")]);
    assert_eq!(ask(80), HashSet::from([left.to_owned()]), "also over a restart");
}

#[test]
fn what_the_node_listens_on_stays_the_nodes() {
    let node = Node::new();
    node.prepare();
    let thief = node.pod(2);
    for port in [22, 30443, 6443] {
        serve_tcp(&thief, port, "thief");
    }
    serve_tcp(&node.namespace, 22, "node");
    serve_tcp(&node.namespace, 30443, "node");
    let spec = json!({"clusterIP": VIP, "type": "NodePort", "externalIPs": [NODE, "127.0.0.1"],
        "ports": [{"name": "a", "port": 22, "nodePort": 30443}]});
    let slices = vec![slice("web", &[("a", 22, "TCP")], &[endpoint("10.42.0.2")])];
    let catalog = catalog(vec![(service("web", &spec), slices)]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &catalog, &[name("web")]);
    for (from, target) in [
        (&node.outside, (NODE, 22)),
        (&node.outside, (NODE, 30443)),
        (&node.namespace, (Ipv4Addr::LOCALHOST, 22)),
        (&node.namespace, (Ipv4Addr::LOCALHOST, 30443)),
        (&thief, (NODE, 22)),
    ] {
        let answer = ask_tcp(from, target).unwrap();
        assert!(answer.starts_with("node "), "{target:?}: {answer}");
    }
    assert!(ask_tcp(&node.outside, (VIP, 22)).unwrap().starts_with("thief "), "its own address is its own");
    assert_eq!(proxy.conflicts()[&name("web")].len(), 3, "{:?}", proxy.conflicts());
    assert_eq!(proxy.passing_conflicts(), [name("web")]);
}

#[test]
fn nobody_outside_speaks_to_or_as_127_0_0_1() {
    let node = Node::new();
    node.prepare();
    let (web, evil) = (node.pod(2), node.pod(4));
    serve_tcp(&web, 8080, "web");
    let spec = web_spec_with_node_port();
    let catalog = catalog(vec![(service("web", &spec), vec![slice("web", &PORTS, &[endpoint("10.42.0.2")])])]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &catalog, &[name("web")]);
    ask_tcp(&node.namespace, (Ipv4Addr::LOCALHOST, 30080)).unwrap();
    let on = node.namespace.within(|| cni_netlink::sysctl::read("net/ipv4/conf/sampan0/route_localnet").unwrap());
    assert_eq!(on.unwrap(), "1", "the dangerous setting is on, so that the guard is what is tested");

    let bind = || std::net::UdpSocket::bind("127.0.0.1:5555").unwrap();
    let secret = node.namespace.within(bind).unwrap();
    secret.set_nonblocking(true).unwrap();
    // The pod's own 127.0.0.0/8 is taken away, and 127.0.0.9 is its address on the bridge.
    let mut inside = cni_netlink::Rtnetlink::open_in(&evil).unwrap();
    let eth0 = inside.link("eth0").unwrap().unwrap().index;
    let mut batch = cni_netlink::Batch::default();
    batch.set_down(1).add_address(eth0, [127, 0, 0, 9].into(), 32);
    let route = cni_netlink::rtnetlink::NewRoute::new([127, 0, 0, 1].into(), 32, Some(GATEWAY.into()), eth0);
    batch.add_route(&route);
    inside.apply(&batch).unwrap();
    let send = |from: &str| {
        cni_netlink::sysctl::ensure("net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"evil", "127.0.0.1:5555").unwrap();
        // Behind it on the same way: when this arrives, the other would have.
        let last = std::net::UdpSocket::bind("10.42.0.4:0").unwrap();
        last.send_to(b"last", "10.42.0.1:5556").unwrap();
    };
    let bind = || std::net::UdpSocket::bind("10.42.0.1:5556").unwrap();
    let arrived = node.namespace.within(bind).unwrap();
    for from in ["127.0.0.9", "10.42.0.4"] {
        evil.within(|| send(from)).unwrap();
        let mut buffer = [0; 8];
        arrived.recv_from(&mut buffer).unwrap();
        assert_eq!(secret.recv_from(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock, "as {from}");
    }
}

fn web_spec_with_node_port() -> Value {
    web(&json!({"externalIPs": []}))
}

#[test]
fn what_others_translate_keeps_its_clients_address() {
    use cni_netlink::nft::{
        ChainKind, Expression, Family, Hook, Meta, Nftables, Payload, Policy, Register, Transaction,
    };
    let node = Node::new();
    node.prepare();
    // A published port of another container engine: its own link, its own table.
    let theirs = cni_netlink::Namespace::create().unwrap();
    node.connect(&theirs, "docker0", None, Ipv4Addr::new(172, 17, 0, 2), Some(Ipv4Addr::new(172, 17, 0, 1)));
    let mut host = cni_netlink::Rtnetlink::open_in(&node.namespace).unwrap();
    let link = host.link("docker0").unwrap().unwrap();
    host.apply(cni_netlink::Batch::default().add_address(link.index, [172, 17, 0, 1].into(), 24)).unwrap();
    let mut transaction = Transaction::new(Family::Ip);
    transaction.add_table("theirs");
    transaction.add_base_chain("theirs", "in", ChainKind::Nat, (Hook::Prerouting, -100, Policy::Accept), &[]);
    let value = |value: &[u8], to| Expression::Value { value: value.to_vec(), to: Register(to) };
    let rule = [
        Expression::Meta { key: Meta::L4Proto, to: Register(0) },
        Expression::equals(Register(0), [6]),
        Expression::Payload { field: Payload::DestinationPort, to: Register(0) },
        Expression::equals(Register(0), 8088_u16.to_be_bytes()),
        value(&[172, 17, 0, 2], 8),
        value(&[0x1f, 0x90], 9),
        Expression::Dnat4 { address: Register(8), port: Register(9) },
    ];
    transaction.add_rule("theirs", "in", &rule);
    Nftables::open_in(&node.namespace).unwrap().apply(transaction).unwrap();
    serve_tcp(&theirs, 8080, "theirs");

    // A Service of ours leads to the same container: that one must come back through the node.
    let slices = vec![slice("web", &PORTS, &[endpoint("172.17.0.2")])];
    let catalog = catalog(vec![(service("web", &web(&json!({}))), slices)]);
    let mut proxy = Proxy::new(settings());
    node.apply(&mut proxy, &catalog, &[name("web")]);
    assert_eq!(ask_tcp(&node.outside, (NODE, 8088)).unwrap(), "theirs 192.0.2.2");
    for target in [(VIP, 80), (NODE, 30080)] {
        assert_eq!(ask_tcp(&node.outside, target).unwrap(), "theirs 172.17.0.1", "{target:?}");
    }
}
