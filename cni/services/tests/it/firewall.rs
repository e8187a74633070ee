//! Hosts whose own firewall drops what it does not know: with the real `iptables` of nf_tables, with tables of `nft`, and
//! what those programs say of our tables. Where a program is not installed, its part is not tested.

use std::net::Ipv4Addr;
use std::process::Command;

use cni_netlink::Namespace;
use cni_netlink::nft::{ChainKind, Expression, Family, Hook, Nftables, Policy, Reject, Transaction};
use cni_services::cleanup;
use serde_json::json;

use crate::daemon::{Daemon, FakeApi, eventually, resolve};
use crate::node::{DNS, NODE, Node, ask_tcp, serve_tcp};
use crate::objects::{endpoint, service, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 1, 1);

/// Standard output of a program in a namespace; `None` when it is not installed.
fn run(namespace: &Namespace, program: &str, args: &[&str]) -> Option<String> {
    let ended = namespace.within(|| Command::new(program).args(args).output()).unwrap();
    let output = match ended {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        other => other.unwrap(),
    };
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {} {err}", output.status);
    Some(out.into_owned())
}

fn api() -> FakeApi {
    let api = FakeApi::new();
    let spec = json!({"clusterIP": VIP, "clusterIPs": [VIP], "type": "NodePort", "sessionAffinity": "ClientIP",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    api.put("services", service("web", &spec));
    api.put("endpointslices", slice("web", &[("http", 8080, "TCP")], &[endpoint("10.42.0.2")]));
    api
}

struct Host {
    node: Node,
    web: Namespace,
    client: Namespace,
}

impl Host {
    fn new() -> Self {
        let node = Node::new();
        let (web, client) = (node.pod(2), node.pod(4));
        serve_tcp(&web, 8080, "web");
        serve_tcp(&web, 8081, "private");
        serve_tcp(&node.outside, 8080, "outside");
        serve_tcp(&node.namespace, 6443, "api");
        serve_tcp(&node.namespace, 9999, "not for pods");
        // The outside knows the way back: nothing is masqueraded here, so that only the firewall decides.
        Self { node, web, client }
    }

    /// All that pods are to reach and nothing else.
    fn check_open(&self) {
        let Self { node, web, client } = self;
        eventually(|| ask_tcp(client, (VIP, 80)).ok());
        eventually(|| ask_tcp(&node.outside, (NODE, 30080)).ok());
        eventually(|| ask_tcp(web, (crate::node::OUTSIDE, 8080)).ok());
        eventually(|| ask_tcp(client, (NODE, 6443)).ok());
        assert_eq!(resolve(client), [10, 43, 1, 1]);
        ask_tcp(client, (NODE, 9999)).unwrap_err();
        ask_tcp(&node.outside, (Ipv4Addr::new(10, 42, 0, 2), 8081)).unwrap_err();
    }

    fn clean(&self) {
        let clean = || {
            cleanup("sampan", "sampan0", "10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap(), DNS.into())
        };
        self.node.namespace.within(clean).unwrap().unwrap();
    }
}

#[test]
fn pods_pass_an_iptables_that_drops() {
    let host = Host::new();
    let space = &host.node.namespace;
    // As Docker and ufw leave it: policies, and chains of their own.
    for line in [
        "-P FORWARD DROP",
        "-P INPUT DROP",
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ] {
        if run(space, "iptables", &line.split(' ').collect::<Vec<_>>()).is_none() {
            return;
        }
    }
    let before = run(space, "iptables-save", &["-t", "filter"]).unwrap();
    if !run(space, "iptables", &["--version"]).unwrap().contains("nf_tables") {
        return;
    }
    let daemon = Daemon::start(space, &api());
    host.check_open();
    let listed = run(space, "iptables", &["-S"]).unwrap();
    for part in
        ["-i sampan0", "-o sampan0", "RELATED,ESTABLISHED,DNAT", "-d 10.43.0.10/32", "--dport 53", "--dport 6443"]
    {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    run(space, "iptables", &["-L", "-n", "-v"]).unwrap();
    // `iptables` itself can still change the chain, and a flush of it is mended.
    run(space, "iptables", &["-A", "FORWARD", "-s", "203.0.113.9", "-j", "DROP"]).unwrap();
    run(space, "iptables", &["-F", "FORWARD"]).unwrap();
    eventually(|| run(space, "iptables", &["-S", "FORWARD"]).filter(|text| text.contains("-i sampan0")));
    host.check_open();
    run(space, "iptables", &["-A", "FORWARD", "-j", "DOCKER-USER"]).unwrap();
    // What does not drop any more needs no rules.
    run(space, "iptables", &["-P", "INPUT", "ACCEPT"]).unwrap();
    eventually(|| run(space, "iptables", &["-S", "INPUT"]).filter(|text| !text.contains("sampan0")));
    run(space, "iptables", &["-P", "INPUT", "DROP"]).unwrap();
    eventually(|| run(space, "iptables", &["-S", "INPUT"]).filter(|text| text.contains("sampan0")));
    daemon.stop();
    host.clean();
    let after = run(space, "iptables-save", &["-t", "filter"]).unwrap();
    let rules =
        |text: &str| -> Vec<String> { text.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect() };
    let (mut before, mut after) = (rules(&before), rules(&after));
    before.sort();
    after.sort();
    assert_eq!(after, before, "others' rules are as they were");
}

#[test]
fn pods_pass_tables_of_nft_that_drop() {
    let host = Host::new();
    let mut nft = Nftables::open_in(&host.node.namespace).unwrap();
    // A server's usual /etc/nftables.conf, and firewalld's way of refusing at the end.
    let firewall = || {
        let mut transaction = Transaction::new(Family::Inet);
        transaction.add_table("filter");
        transaction.add_base_chain("filter", "forward", ChainKind::Filter, (Hook::Forward, 0, Policy::Drop), &[]);
        transaction.add_base_chain("filter", "input", ChainKind::Filter, (Hook::Input, 10, Policy::Accept), &[]);
        transaction.add_rule("filter", "input", &[Expression::Counter, Expression::Reject(Reject::PortUnreachable)]);
        transaction
    };
    nft.apply(firewall()).unwrap();
    let daemon = Daemon::start(&host.node.namespace, &api());
    host.check_open();
    // A reload: everything of everybody goes, theirs comes back.
    let mut reload = Transaction::new(Family::Inet);
    reload.remove_table("filter");
    nft.apply(reload).unwrap();
    nft.apply(firewall()).unwrap();
    host.check_open();
    daemon.stop();
    host.clean();
    let left = nft.rules(Family::Inet, "filter").unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(nft.tables(Family::Inet).unwrap(), ["filter"]);
}

#[test]
fn nft_can_list_our_tables() {
    let host = Host::new();
    let daemon = Daemon::start(&host.node.namespace, &api());
    eventually(|| ask_tcp(&host.client, (VIP, 80)).ok());
    ask_tcp(&host.client, (NODE, 30080)).unwrap();
    if let Some(text) = run(&host.node.namespace, "nft", &["list", "ruleset"]) {
        assert!(text.contains("table inet sampan"), "{text}");
        run(&host.node.namespace, "nft", &["-j", "list", "ruleset"]).unwrap();
    }
    daemon.stop();
}
