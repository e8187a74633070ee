//! One masquerade rule per network and node, made once, whatever the number of containers.
//!
//! What comes from the network's subnets and goes neither there nor to the other nodes' containers nor to multicast
//! leaves with the node's address. Container-to-container traffic is never touched. The chain's note says for which
//! configuration it was made, so that the usual ADD only looks.

use cni_netlink::nft::{
    ChainKind, Compare, Expression, Family, Hook, Meta, NftError, Nftables, Payload, Policy, Register, Transaction,
};
use cni_spec::{AddResult, Cidr, Code, PluginError};

use crate::config::BridgeConfig;
use crate::{Request, failed};

/// Source NAT comes at 100 (`srcnat`); a little later lets Services decide first.
const PRIORITY: i32 = 105;

/// Appended to the configured table's name; Services own the table without it.
pub(crate) const TABLE_SUFFIX: &str = "-cni";

pub(super) fn ensure(request: &Request, config: &BridgeConfig, result: &AddResult) -> Result<(), PluginError> {
    let broken = |error: &NftError| failed(Code::Internal, "masquerade", error);
    let table = format!("{}{TABLE_SUFFIX}", config.table);
    let chain = format!("masquerade-{}", request.name);
    let subnets: Vec<Cidr> = result.ips.iter().map(|ip| ip.address.network()).collect();
    let rules = plan(&subnets, &config.cluster_cidr);
    let note = format!("{subnets:?} {:?}", config.cluster_cidr);
    let note = &note.as_bytes()[..note.len().min(250)];
    let mut nft = Nftables::open().map_err(|error| broken(&error))?;
    let found = nft.chain(Family::Inet, &table, &chain).map_err(|error| broken(&error))?;
    if found.is_some_and(|found| found.note == note && usize::try_from(found.uses) == Ok(rules.len())) {
        return Ok(());
    }
    let mut transaction = Transaction::new(Family::Inet);
    transaction.add_table(&table);
    // A base chain's note is fixed when it is made: make it anew, in the same transaction.
    transaction.add_base_chain(&table, &chain, ChainKind::Nat, (Hook::Postrouting, PRIORITY, Policy::Accept), &[]);
    transaction.flush_chain(&table, &chain).delete_chain(&table, &chain);
    transaction.add_base_chain(&table, &chain, ChainKind::Nat, (Hook::Postrouting, PRIORITY, Policy::Accept), note);
    for rule in rules {
        transaction.add_rule(&table, &chain, &rule);
    }
    nft.apply(transaction).map_err(|error| broken(&error))
}

/// The rules: per subnet, from it and to none of the others.
fn plan(subnets: &[Cidr], cluster: &[Cidr]) -> Vec<Vec<Expression>> {
    let multicast: [Cidr; 2] = ["224.0.0.0/4", "ff00::/8"].map(|text| text.parse().expect("a constant"));
    subnets
        .iter()
        .map(|subnet| {
            let v4 = subnet.is_ipv4();
            let (source, destination) = if v4 {
                (Payload::Ip4Source, Payload::Ip4Destination)
            } else {
                (Payload::Ip6Source, Payload::Ip6Destination)
            };
            let mut rule = vec![
                Expression::Meta { key: Meta::NfProto, to: Register(0) },
                Expression::equals(Register(0), [if v4 { 2 } else { 10 }]),
            ];
            rule.extend(within(source, subnet, Compare::Equal));
            let spared = [subnet].into_iter().chain(cluster).chain(&multicast);
            for other in spared.filter(|other| other.is_ipv4() == v4) {
                rule.extend(within(destination, other, Compare::NotEqual));
            }
            rule.extend([Expression::Counter, Expression::Masquerade]);
            rule
        })
        .collect()
}

/// Whether the address is in the network.
fn within(field: Payload, network: &Cidr, how: Compare) -> [Expression; 3] {
    let bytes = |address| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (first, last) = (bytes(network.first()), bytes(network.last()));
    let mask: Vec<u8> = first.iter().zip(&last).map(|(first, last)| !(first ^ last)).collect();
    let xor = vec![0; mask.len()];
    [
        Expression::Payload { field, to: Register(0) },
        Expression::Bitwise { from: Register(0), to: Register(0), mask, xor },
        Expression::Compare { register: Register(0), how, value: first },
    ]
}
