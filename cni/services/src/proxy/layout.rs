//! The part of the table that does not depend on Services: base chains, sets, and what a distributing chain holds.

use std::net::IpAddr;

use cni_netlink::nft::{
    ChainKind, Compare, CtKey, CtTuple, DataKind, Dynset, Expression, FibAddress, Hook, Meta, Payload, Policy,
    Register, Reject, Set, SetData, Transaction, Verdict,
};

use super::Settings;
use super::elements::{Chain, SetKind};

const AFFINITY: &str = "affinity";
/// What came from elsewhere and leaves to elsewhere, translated.
const THROUGH: &str = "through";
const FRONT: [DataKind; 3] = [DataKind::Ipv4, DataKind::Protocol, DataKind::Port];
const ENDPOINT: [DataKind; 2] = [DataKind::Ipv4, DataKind::Port];
const RTN_LOCAL: u32 = 2;
const STATE_NEW: u32 = 1 << 3;
const STATUS_DNAT: u32 = 1 << 5;
const TCP: u8 = 6;

/// Everything but elements and distributing chains.
pub(super) fn add_table(transaction: &mut Transaction, settings: &Settings) {
    let table = settings.table.as_str();
    transaction.add_table(table);
    add_sets(transaction, table);
    transaction.add_chain(table, "refuse");
    let tcp =
        [load_protocol(0), vec![Expression::equals(Register(0), [TCP])], vec![Expression::Reject(Reject::TcpReset)]];
    transaction.add_rule(table, "refuse", &tcp.concat());
    transaction.add_rule(table, "refuse", &[Expression::Reject(Reject::PortUnreachable)]);

    for (chain, hook) in [("nat-prerouting", Hook::Prerouting), ("nat-output", Hook::Output)] {
        transaction.add_base_chain(table, chain, ChainKind::Nat, (hook, -100, Policy::Accept), &[]);
        transaction.add_rule(table, chain, &by_address(SetKind::Services));
        transaction.add_rule(table, chain, &by_node_port(SetKind::NodePorts));
    }
    // Before the usual source NAT at 100: what Services need is decided first.
    transaction.add_base_chain(table, "nat-postrouting", ChainKind::Nat, (Hook::Postrouting, 95, Policy::Accept), &[]);
    transaction.add_chain(table, THROUGH);
    for rule in through(settings) {
        transaction.add_rule(table, THROUGH, &rule);
    }
    for rule in source_nat(&settings.bridge) {
        transaction.add_rule(table, "nat-postrouting", &rule);
    }
    for (chain, hook) in
        [("filter-forward", Hook::Forward), ("filter-output", Hook::Output), ("filter-input", Hook::Input)]
    {
        transaction.add_base_chain(table, chain, ChainKind::Filter, (hook, -5, Policy::Accept), &[]);
        transaction.add_rule(table, chain, &[is_new(), by_address(SetKind::Refused)].concat());
        if hook == Hook::Forward {
            transaction.add_rule(table, chain, &[is_new(), unknown_service(settings)].concat());
        } else {
            transaction.add_rule(table, chain, &[is_new(), by_node_port(SetKind::RefusedNodePorts)].concat());
        }
        if hook == Hook::Output {
            transaction.add_rule(table, chain, &[is_new(), unknown_service(settings)].concat());
        }
    }
    // 127.0.0.1 is reachable through the bridge for answers only (route_localnet, see `proxy.rs`): CVE-2020-8558. Nobody
    // outside this machine speaks to or as 127.0.0.0/8.
    transaction.add_base_chain(table, "guard", ChainKind::Filter, (Hook::Prerouting, -110, Policy::Accept), &[]);
    for field in [Payload::Ip4Destination, Payload::Ip4Source] {
        let mut guard = ipv4();
        guard.extend(link(Meta::IifName, Compare::NotEqual, "lo"));
        guard.extend([Expression::Payload { field, to: Register(0) }, Expression::equals(Register(0), [127])]);
        guard.push(Expression::Verdict(Verdict::Drop));
        transaction.add_rule(table, "guard", &guard);
    }
}

/// Whether the packet came or goes by this link.
fn link(key: Meta, how: Compare, name: &str) -> [Expression; 2] {
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    [Expression::Meta { key, to: Register(0) }, Expression::Compare { register: Register(0), how, value }]
}

fn add_sets(transaction: &mut Transaction, table: &str) {
    for kind in SetKind::ALL {
        let with_index = [FRONT.as_slice(), &[DataKind::Number]].concat();
        let with_endpoint = [FRONT.as_slice(), &ENDPOINT].concat();
        let (key, data): (&[DataKind], _) = match kind {
            SetKind::Services | SetKind::Refused => (&FRONT, SetData::Verdict),
            SetKind::NodePorts | SetKind::RefusedNodePorts => (&FRONT[1..], SetData::Verdict),
            SetKind::Endpoints => (&with_index, SetData::Fields(&ENDPOINT)),
            SetKind::AffinityLive => (&with_endpoint, SetData::Nothing),
            SetKind::Hairpin => (&[DataKind::Ipv4, DataKind::Ipv4], SetData::Nothing),
            SetKind::External => (&FRONT, SetData::Nothing),
            SetKind::NodePortFronts => (&FRONT[1..], SetData::Nothing),
        };
        transaction.add_set(table, &Set { name: kind.name(), key, data, is_dynamic: false });
    }
    let key = [&[DataKind::Ipv4], FRONT.as_slice()].concat();
    let data = SetData::Fields(&ENDPOINT);
    transaction.add_set(table, &Set { name: AFFINITY, key: &key, data, is_dynamic: true });
}

/// A chain that sends a new connection to one of `count` endpoints.
pub(super) fn add_chain(transaction: &mut Transaction, table: &str, chain: &Chain) {
    let name = chain.to_string();
    transaction.add_chain(table, &name);
    let Some(seconds) = chain.affinity_seconds else {
        let mut rule = load_front(chain, 0);
        rule.push(Expression::Random { modulus: chain.count, to: Register(3) });
        rule.push(Expression::Map { map: SetKind::Endpoints.name().into(), key: Register(0), to: Register(8) });
        rule.push(Expression::Dnat4 { address: Register(8), port: Register(9) });
        transaction.add_rule(table, &name, &rule);
        return;
    };
    let remember = |operation, value| Expression::Dynset {
        operation,
        set: AFFINITY.into(),
        key: Register(0),
        value: Some(value),
        timeout_milliseconds: Some(u64::from(seconds) * 1000),
    };
    let load = || {
        let mut rule = vec![Expression::Payload { field: Payload::Ip4Source, to: Register(0) }];
        rule.extend(load_front(chain, 1));
        rule
    };
    // A client that is known, and whose endpoint still lives.
    let mut known = load();
    known.push(Expression::Map { map: AFFINITY.into(), key: Register(0), to: Register(4) });
    let live = SetKind::AffinityLive.name().into();
    known.push(Expression::InSet { set: live, key: Register(1), inverted: false });
    known.push(remember(Dynset::Update, Register(4)));
    known.push(Expression::Dnat4 { address: Register(4), port: Register(5) });
    // An update keeps the old value, so a client whose endpoint is gone is forgotten first.
    let mut forget = load();
    forget.push(Expression::Value { value: vec![0; 8], to: Register(8) });
    forget.push(remember(Dynset::Delete, Register(8)));
    let mut choose = load();
    choose.push(Expression::Random { modulus: chain.count, to: Register(4) });
    choose.push(Expression::Map { map: SetKind::Endpoints.name().into(), key: Register(1), to: Register(8) });
    choose.push(remember(Dynset::Add, Register(8)));
    choose.push(Expression::Dnat4 { address: Register(8), port: Register(9) });
    transaction.add_rule(table, &name, &known).add_rule(table, &name, &forget).add_rule(table, &name, &choose);
}

/// Address, protocol and port of the way in, in three registers; node ports have no address.
fn load_front(chain: &Chain, first: u8) -> Vec<Expression> {
    let address = if chain.is_node_port {
        Expression::Value { value: vec![0; 4], to: Register(first) }
    } else {
        Expression::Payload { field: Payload::Ip4Destination, to: Register(first) }
    };
    let port = Expression::Payload { field: Payload::DestinationPort, to: Register(first + 2) };
    [vec![address], load_protocol(first + 1), vec![port]].concat()
}

fn load_protocol(register: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::L4Proto, to: Register(register) }]
}

fn ipv4() -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::NfProto, to: Register(0) }, Expression::equals(Register(0), [2])]
}

fn by_address(map: SetKind) -> Vec<Expression> {
    let mut rule = ipv4();
    rule.extend([
        Expression::Payload { field: Payload::Ip4Destination, to: Register(0) },
        Expression::Meta { key: Meta::L4Proto, to: Register(1) },
        Expression::Payload { field: Payload::DestinationPort, to: Register(2) },
        Expression::VerdictMap { map: map.name().into(), key: Register(0) },
    ]);
    rule
}

fn by_node_port(map: SetKind) -> Vec<Expression> {
    let mut rule = ipv4();
    rule.extend([
        Expression::FibType { address: FibAddress::Destination, to: Register(0) },
        Expression::equals(Register(0), RTN_LOCAL.to_ne_bytes()),
        Expression::Meta { key: Meta::L4Proto, to: Register(0) },
        Expression::Payload { field: Payload::DestinationPort, to: Register(1) },
        Expression::VerdictMap { map: map.name().into(), key: Register(0) },
    ]);
    rule
}

fn is_new() -> Vec<Expression> {
    masked(CtKey::State, STATE_NEW)
}

fn masked(key: CtKey, bit: u32) -> Vec<Expression> {
    vec![
        Expression::Ct { key, to: Register(0) },
        Expression::Bitwise { from: Register(0), to: Register(0), mask: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expression::Compare { register: Register(0), how: Compare::NotEqual, value: vec![0; 4] },
    ]
}

/// A cluster IP or port nobody has: refused, where it would otherwise wander to the default route.
fn unknown_service(settings: &Settings) -> Vec<Expression> {
    let Some((mask, network)) = service_network(settings) else { return ipv4() };
    let mut rule = ipv4();
    rule.push(Expression::Payload { field: Payload::Ip4Destination, to: Register(0) });
    if let IpAddr::V4(dns) = settings.dns_address {
        rule.push(Expression::Compare { register: Register(0), how: Compare::NotEqual, value: dns.octets().to_vec() });
    }
    rule.push(Expression::Bitwise { from: Register(0), to: Register(0), mask, xor: vec![0; 4] });
    rule.push(Expression::equals(Register(0), network));
    rule.push(Expression::Verdict(Verdict::Goto("refuse".into())));
    rule
}

/// Who must come back through this node: a container reaching itself, the node's own 127.0.0.1, and what came from
/// outside the bridge and leaves elsewhere than by it (an endpoint on another node).
fn source_nat(bridge: &str) -> Vec<Vec<Expression>> {
    let dnat = || masked(CtKey::Status, STATUS_DNAT);
    let hairpin = [
        ipv4(),
        dnat(),
        vec![
            Expression::Payload { field: Payload::Ip4Source, to: Register(0) },
            Expression::Payload { field: Payload::Ip4Destination, to: Register(1) },
            Expression::InSet { set: SetKind::Hairpin.name().into(), key: Register(0), inverted: false },
            Expression::Masquerade,
        ],
    ];
    let first_byte = |field, how| {
        vec![
            Expression::Payload { field, to: Register(0) },
            Expression::Compare { register: Register(0), how, value: vec![127] },
        ]
    };
    let loopback = [
        ipv4(),
        dnat(),
        first_byte(Payload::Ip4Source, Compare::Equal),
        first_byte(Payload::Ip4Destination, Compare::NotEqual),
        vec![Expression::Masquerade],
    ];
    let through = [
        ipv4(),
        dnat(),
        link(Meta::IifName, Compare::NotEqual, bridge).to_vec(),
        link(Meta::OifName, Compare::NotEqual, bridge).to_vec(),
        vec![
            Expression::FibType { address: FibAddress::Source, to: Register(0) },
            Expression::Compare {
                register: Register(0),
                how: Compare::NotEqual,
                value: RTN_LOCAL.to_ne_bytes().to_vec(),
            },
            Expression::jump(THROUGH),
        ],
    ];
    vec![hairpin.concat(), loopback.concat(), through.concat()]
}

/// Others on this host translate too (published ports of other container engines, another instance): only what was sent to
/// a cluster IP, an external address or a node port of ours was translated here.
fn through(settings: &Settings) -> Vec<Vec<Expression>> {
    let original = |key, to| Expression::CtOriginal { key, to: Register(to) };
    let mut rules = Vec::new();
    if let Some((mask, network)) = service_network(settings) {
        rules.push(vec![
            original(CtTuple::Ip4Destination, 0),
            Expression::Bitwise { from: Register(0), to: Register(0), mask, xor: vec![0; 4] },
            Expression::equals(Register(0), network),
            Expression::Masquerade,
        ]);
    }
    let in_set = |kind: SetKind| Expression::InSet { set: kind.name().into(), key: Register(0), inverted: false };
    rules.push(vec![
        original(CtTuple::Ip4Destination, 0),
        Expression::Meta { key: Meta::L4Proto, to: Register(1) },
        original(CtTuple::DestinationPort, 2),
        in_set(SetKind::External),
        Expression::Masquerade,
    ]);
    rules.push(vec![
        Expression::Meta { key: Meta::L4Proto, to: Register(0) },
        original(CtTuple::DestinationPort, 1),
        in_set(SetKind::NodePortFronts),
        Expression::Masquerade,
    ]);
    rules
}

/// Mask and address of the network of cluster IPs.
fn service_network(settings: &Settings) -> Option<(Vec<u8>, [u8; 4])> {
    match (settings.service_cidr.first(), settings.service_cidr.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Some(((!(first.to_bits() ^ last.to_bits())).to_be_bytes().to_vec(), first.octets()))
        }
        // `network::ensure` refuses other families.
        _ => None,
    }
}
