//! The part of the table that does not depend on Services: base chains, sets, and what a distributing chain holds.

use std::net::IpAddr;

use cni_netlink::nft::{
    ChainKind, Compare, CtKey, CtTuple, DataKind, Dynset, Expression, FibAddress, Hook, Meta, Payload, Policy,
    Register, Reject, Set, SetData, Transaction, Verdict,
};

use super::Settings;
use super::elements::{Chain, SetKind};

/// client . address . protocol . port -> endpoint, with a time after which it is forgotten.
pub(super) const AFFINITY: &str = "affinity";
/// Behind destination NAT, before source NAT at 95: client and endpoint are both seen as they are.
const LEARN: [(&str, Hook); 2] = [("learn-postrouting", Hook::Postrouting), ("learn-input", Hook::Input)];
/// What came from elsewhere and leaves to elsewhere, translated.
const THROUGH: &str = "through";
const FRONT: [DataKind; 3] = [DataKind::Ipv4, DataKind::Protocol, DataKind::Port];
const ENDPOINT: [DataKind; 2] = [DataKind::Ipv4, DataKind::Port];
const RTN_LOCAL: u32 = 2;
const STATE_NEW: u32 = 1 << 3;
const STATUS_DNAT: u32 = 1 << 5;
const TCP: u8 = 6;

/// What [`add_table`] makes of chains that the kernel calls, and how many rules each has.
pub(super) const BASE_CHAINS: [(&str, u32); 9] = [
    (LEARN[0].0, 2),
    (LEARN[1].0, 2),
    ("nat-prerouting", 2),
    ("nat-output", 2),
    ("nat-postrouting", 3),
    ("filter-forward", 2),
    ("filter-output", 3),
    ("filter-input", 2),
    ("guard", 2),
];

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
    for (chain, hook) in LEARN {
        transaction.add_base_chain(table, chain, ChainKind::Nat, (hook, 94, Policy::Accept), &[]);
        let dnat = || [ipv4(), masked(CtKey::Status, STATUS_DNAT)].concat();
        let mut by_address = dnat();
        by_address.extend(original_front(false, 0));
        by_address.push(Expression::VerdictMap { map: SetKind::Affine.name().into(), key: Register(0) });
        let mut by_port = dnat();
        by_port.extend(original_front(true, 0));
        by_port.push(Expression::VerdictMap { map: SetKind::AffineNodePorts.name().into(), key: Register(1) });
        transaction.add_rule(table, chain, &by_address).add_rule(table, chain, &by_port);
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
            SetKind::Services | SetKind::Refused | SetKind::Affine => (&FRONT, SetData::Verdict),
            SetKind::NodePorts | SetKind::RefusedNodePorts | SetKind::AffineNodePorts => {
                (&FRONT[1..], SetData::Verdict)
            }
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

/// A chain that sends a new connection to one of `count` endpoints, or remembers which one it was sent to.
///
/// What is remembered is read from the packet behind the translation, not from the map that chose: `nft` before 1.0.7 ends
/// with an assertion when it lists a rule that hands a map's value on, and with it every listing of the machine's rules.
pub(super) fn add_chain(transaction: &mut Transaction, table: &str, chain: &Chain) {
    let name = chain.to_string();
    transaction.add_chain(table, &name);
    if chain.count == 0 {
        for rule in remember(chain) {
            transaction.add_rule(table, &name, &rule);
        }
        return;
    }
    if chain.affinity_seconds.is_some() {
        let mut known = vec![Expression::Payload { field: Payload::Ip4Source, to: Register(0) }];
        known.extend(load_front(chain, 1));
        known.push(Expression::Map { map: AFFINITY.into(), key: Register(0), to: Register(8) });
        known.push(Expression::Dnat4 { address: Register(8), port: Register(9) });
        transaction.add_rule(table, &name, &known);
    }
    let mut choose = load_front(chain, 0);
    choose.push(Expression::Random { modulus: chain.count, to: Register(3) });
    choose.push(Expression::Map { map: SetKind::Endpoints.name().into(), key: Register(0), to: Register(8) });
    choose.push(Expression::Dnat4 { address: Register(8), port: Register(9) });
    transaction.add_rule(table, &name, &choose);
}

/// A client's endpoint is remembered as long as it is one, and forgotten otherwise: who left between the choice and now is
/// nobody's endpoint for the next three hours.
fn remember(chain: &Chain) -> [Vec<Expression>; 2] {
    let load = || {
        let mut rule = vec![Expression::Payload { field: Payload::Ip4Source, to: Register(0) }];
        rule.extend(original_front(chain.is_node_port, 1));
        rule.push(Expression::Payload { field: Payload::Ip4Destination, to: Register(4) });
        rule.push(Expression::Payload { field: Payload::DestinationPort, to: Register(5) });
        rule
    };
    let change = |operation| Expression::Dynset {
        operation,
        set: AFFINITY.into(),
        key: Register(0),
        value: Some(Register(4)),
        timeout_milliseconds: chain.affinity_seconds.map(|seconds| u64::from(seconds).saturating_mul(1000)),
    };
    let live = SetKind::AffinityLive.name().into();
    let mut keep = load();
    keep.push(Expression::InSet { set: live, key: Register(1), inverted: false });
    // An update keeps an old value: a client that chose anew is forgotten first.
    keep.extend([change(Dynset::Delete), change(Dynset::Update), Expression::Verdict(Verdict::Accept)]);
    let mut forget = load();
    forget.push(change(Dynset::Delete));
    [keep, forget]
}

/// Like [`load_front`], of the first packet as it was sent.
fn original_front(is_node_port: bool, first: u8) -> Vec<Expression> {
    let address = if is_node_port {
        Expression::Value { value: vec![0; 4], to: Register(first) }
    } else {
        Expression::CtOriginal { key: CtTuple::Ip4Destination, to: Register(first) }
    };
    let port = Expression::CtOriginal { key: CtTuple::DestinationPort, to: Register(first + 2) };
    [vec![address], load_protocol(first + 1), vec![port]].concat()
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
