//! The fixed part of the port mappings' rules: made once per node, no container adds a rule.
//!
//!     prerouting, output: to a local address -> map (address . ) protocol . port -> container
//!     postrouting: a container reaching itself, and the node's own 127.0.0.1, get the node's address
//!     raw: packets to or as 127.0.0.0/8 from elsewhere are dropped, because route_localnet would let them in

use cni_netlink::nft::{
    ChainKind, Compare, CtKey, DataKind, Expression, Family, FibAddress, FoundChain, Hook, Meta, NftError, Nftables,
    Payload, Policy, Register, Set, SetData, Transaction, Verdict,
};

pub(super) const PORTS: &str = "ports";
pub(super) const AT: &str = "ports-at";
pub(super) const HAIRPIN: &str = "ports-hairpin";
const CHAINS: [(&str, Hook, i32); 2] = [("ports-in", Hook::Prerouting, -95), ("ports-out", Hook::Output, -95)];
const POST: &str = "ports-post";
/// An earlier version's is called `ports-guard`: where only that is, the layout is made anew.
const GUARD: &str = "ports-loopback";
const GUARD_RULES: u32 = 2;
const TARGET: [DataKind; 2] = [DataKind::Ipv4, DataKind::Port];
const RTN_LOCAL: u32 = 2;
const STATUS_DNAT: u32 = 1 << 5;

/// Adds the layout to the transaction unless it is there.
pub(super) fn ensure(nft: &mut Nftables, transaction: &mut Transaction, table: &str) -> Result<(), NftError> {
    // Somebody may have flushed the table: chains without rules lead nowhere.
    let has_rules = |found: Option<FoundChain>, rules| found.is_some_and(|chain| chain.uses == rules);
    if has_rules(nft.chain(Family::Inet, table, GUARD)?, GUARD_RULES)
        && has_rules(nft.chain(Family::Inet, table, CHAINS[0].0)?, 2)
    {
        return Ok(());
    }
    let set = |name, key, data| Set { name, key, data, is_dynamic: false };
    transaction
        .add_table(table)
        .add_set(table, &set(PORTS, &[DataKind::Protocol, DataKind::Port], SetData::Fields(&TARGET)))
        .add_set(table, &set(AT, &[DataKind::Ipv4, DataKind::Protocol, DataKind::Port], SetData::Fields(&TARGET)))
        .add_set(table, &set(HAIRPIN, &[DataKind::Ipv4, DataKind::Ipv4], SetData::Nothing));
    for (chain, hook, priority) in CHAINS {
        transaction.add_base_chain(table, chain, ChainKind::Nat, (hook, priority, Policy::Accept), &[]);
        transaction.flush_chain(table, chain);
        transaction.add_rule(table, chain, &at_address());
        transaction.add_rule(table, chain, &at_any());
    }
    transaction.add_base_chain(table, POST, ChainKind::Nat, (Hook::Postrouting, 95, Policy::Accept), &[]);
    let [own, local] = post();
    transaction.flush_chain(table, POST);
    transaction.add_rule(table, POST, &own).add_rule(table, POST, &local);
    transaction.add_base_chain(table, GUARD, ChainKind::Filter, (Hook::Prerouting, -110, Policy::Accept), &[]);
    transaction.flush_chain(table, GUARD);
    for field in [Payload::Ip4Destination, Payload::Ip4Source] {
        transaction.add_rule(table, GUARD, &guard(field));
    }
    Ok(())
}

fn ipv4() -> [Expression; 2] {
    [Expression::Meta { key: Meta::NfProto, to: Register(0) }, Expression::equals(Register(0), [2])]
}

fn to_local() -> [Expression; 2] {
    [
        Expression::FibType { address: FibAddress::Destination, to: Register(0) },
        Expression::equals(Register(0), RTN_LOCAL.to_ne_bytes()),
    ]
}

fn at_address() -> Vec<Expression> {
    let mut rule = ipv4().to_vec();
    rule.extend(to_local());
    rule.extend([
        Expression::Payload { field: Payload::Ip4Destination, to: Register(0) },
        Expression::Meta { key: Meta::L4Proto, to: Register(1) },
        Expression::Payload { field: Payload::DestinationPort, to: Register(2) },
        Expression::Map { map: AT.into(), key: Register(0), to: Register(8) },
        Expression::Dnat4 { address: Register(8), port: Register(9) },
    ]);
    rule
}

fn at_any() -> Vec<Expression> {
    let mut rule = ipv4().to_vec();
    rule.extend(to_local());
    rule.extend([
        Expression::Meta { key: Meta::L4Proto, to: Register(0) },
        Expression::Payload { field: Payload::DestinationPort, to: Register(1) },
        Expression::Map { map: PORTS.into(), key: Register(0), to: Register(8) },
        Expression::Dnat4 { address: Register(8), port: Register(9) },
    ]);
    rule
}

fn loopback(field: Payload, how: Compare) -> [Expression; 2] {
    [
        Expression::Payload { field, to: Register(0) },
        // A prefix comparison: the first byte is 127.
        Expression::Compare { register: Register(0), how, value: vec![127] },
    ]
}

fn translated(how: Compare) -> [Expression; 3] {
    [
        Expression::Ct { key: CtKey::Status, to: Register(0) },
        Expression::Bitwise {
            from: Register(0),
            to: Register(0),
            mask: STATUS_DNAT.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expression::Compare { register: Register(0), how, value: vec![0; 4] },
    ]
}

fn post() -> [Vec<Expression>; 2] {
    let mut own = ipv4().to_vec();
    own.extend([
        Expression::Payload { field: Payload::Ip4Source, to: Register(0) },
        Expression::Payload { field: Payload::Ip4Destination, to: Register(1) },
        Expression::InSet { set: HAIRPIN.into(), key: Register(0), inverted: false },
    ]);
    own.extend(translated(Compare::NotEqual));
    own.push(Expression::Masquerade);
    let mut local = ipv4().to_vec();
    local.extend(loopback(Payload::Ip4Source, Compare::Equal));
    local.extend(loopback(Payload::Ip4Destination, Compare::NotEqual));
    local.extend(translated(Compare::NotEqual));
    local.push(Expression::Masquerade);
    [own, local]
}

/// Before NAT, so an answer to the node's own connection still carries the node's address here.
fn guard(field: Payload) -> Vec<Expression> {
    let mut own = b"lo".to_vec();
    own.resize(16, 0);
    let mut rule = ipv4().to_vec();
    rule.push(Expression::Meta { key: Meta::IifName, to: Register(0) });
    rule.push(Expression::Compare { register: Register(0), how: Compare::NotEqual, value: own });
    rule.extend(loopback(field, Compare::Equal));
    rule.push(Expression::Verdict(Verdict::Drop));
    rule
}
