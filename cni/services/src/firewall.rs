//! A way through other programs' firewalls for exactly the pods' traffic.
//!
//! A verdict of our own chains cannot overrule a later DROP of somebody else's: what lets pods through must stand in the
//! chain that drops, as the firewall plugin of CNI and flannel do it. Where a base chain drops what no rule decides (Docker
//! sets FORWARD so, ufw both), or ends with a rule that refuses everything, accepting rules are put at its head. Others'
//! rules stay as they are; ours carry a remark, are put back when a reload took them, and go by [`remove`].
//!
//!     forward   from the bridge with a pod's address; to the bridge: answers, translated (Services, host ports), pods
//!     input     from the bridge: answers; with a pod's address: the DNS server, the API server, the kubelet
//!
//! In tables of `iptables` rules are written as `iptables` itself writes them: it refuses tables that hold others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use cni_netlink::legacy;
use cni_netlink::nft::{
    BaseChain, Compare, CtKey, Expression, Family, FoundRule, Meta, NftError, Nftables, Payload, Register, Transaction,
    Verdict,
};
use cni_spec::Cidr;
use tracing::{info, warn};

use crate::counts;
use crate::proxy::Settings;

const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const ESTABLISHED_RELATED: u32 = 0b110;
const STATUS_DNAT: u32 = 1 << 5;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Chains below a base chain that are looked at for a rule that refuses everything.
const CHAINS_MAX: usize = 64;

/// Who is let through where.
#[derive(Debug)]
pub(crate) struct Firewall {
    own_tables: [String; 2],
    comment: String,
    bridge: String,
    pods: Cidr,
    sockets: Vec<SocketAddr>,
    told: HashSet<String>,
}

/// A rule as others are to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    expressions: Vec<Expression>,
    protocol: Option<u8>,
}

impl Firewall {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            own_tables: [settings.table.clone(), format!("{}-cni", settings.table)],
            comment: comment(&settings.table),
            bridge: settings.bridge.clone(),
            pods: settings.cluster_cidr,
            sockets: settings.reserved.clone(),
            told: HashSet::new(),
        }
    }

    /// Rules where they are needed, none where they are not any more. Failures are told, once each.
    pub(crate) fn ensure(&mut self, nft: &mut Nftables) {
        for family in [Family::Ip, Family::Inet] {
            if let Err(error) = self.ensure_family(nft, family) {
                self.tell(&format!("pods may not pass a firewall of this host: {}", chain_of(&error)));
            }
        }
        if let Some(advice) = advice(&self.bridge) {
            self.tell(&advice);
        }
    }

    fn tell(&mut self, what: &str) {
        if self.told.insert(what.to_owned()) {
            warn!("{what}");
        }
    }

    fn ensure_family(&mut self, nft: &mut Nftables, family: Family) -> Result<(), NftError> {
        let chains = nft.base_chains(family)?;
        let mut tables: HashMap<String, Vec<FoundRule>> = HashMap::new();
        for chain in chains {
            if !self.concerns(&chain) {
                continue;
            }
            if !tables.contains_key(&chain.table) {
                tables.insert(chain.table.clone(), nft.rules(family, &chain.table)?);
            }
            let Some(rules) = tables.get(&chain.table) else { continue };
            let mut transaction = Transaction::new(family);
            let is_open = self.plan(&mut transaction, family, &chain, rules);
            if transaction.is_empty() {
                continue;
            }
            match nft.apply(transaction) {
                Err(error) => {
                    let what = format!(
                        "chain {} of table {} drops what pods send and cannot be changed: {}",
                        chain.name,
                        chain.table,
                        chain_of(&error)
                    );
                    self.tell(&what);
                }
                Ok(()) if is_open => {
                    info!(
                        table = chain.table,
                        chain = chain.name,
                        "rules that let pods through a firewall are in place"
                    );
                    counts::MENDED.add();
                }
                Ok(()) => info!(table = chain.table, chain = chain.name, "pods need no rules in a firewall any more"),
            }
        }
        Ok(())
    }

    fn concerns(&self, chain: &BaseChain) -> bool {
        chain.kind == "filter"
            && matches!(chain.hook, INPUT | FORWARD)
            && !self.own_tables.contains(&chain.table)
            // Another instance's or version's: it refuses what is its own business.
            && !chain.table.starts_with("sampan")
    }

    /// The steps for one chain; whether pods are let through after them.
    fn plan(&self, transaction: &mut Transaction, family: Family, chain: &BaseChain, rules: &[FoundRule]) -> bool {
        let ours: Vec<&FoundRule> = rules
            .iter()
            .filter(|rule| rule.chain == chain.name && rule.comment.as_deref() == Some(self.comment.as_str()))
            .collect();
        let foreign: Vec<&FoundRule> =
            rules.iter().filter(|rule| rule.comment.as_deref() != Some(&self.comment)).collect();
        let is_needed = chain.drops || refuses_all(&foreign, &chain.name);
        let wanted = if is_needed { self.rules(family, chain) } else { Vec::new() };
        if ours.len() != wanted.len() {
            for rule in ours {
                transaction.delete_rule(&chain.table, &chain.name, rule.handle);
            }
            // Each goes to the head, so the last one first.
            for rule in wanted.iter().rev() {
                let (table, name) = (&chain.table, &chain.name);
                transaction.insert_rule(table, name, &rule.expressions, &self.comment, rule.protocol);
            }
        }
        is_needed
    }

    fn rules(&self, family: Family, chain: &BaseChain) -> Vec<Rule> {
        let is_xtables = family == Family::Ip && matches!(chain.name.as_str(), "INPUT" | "FORWARD");
        let begin = |key| {
            let mut rule = Vec::new();
            if family == Family::Inet {
                rule.push(Expression::Meta { key: Meta::NfProto, to: Register(0) });
                rule.push(Expression::equals(Register(0), [2]));
            }
            let mut name = self.bridge.as_bytes().to_vec();
            name.resize(16, 0);
            rule.push(Expression::Meta { key, to: Register(0) });
            rule.push(Expression::equals(Register(0), name));
            rule
        };
        let accept = |mut rule: Vec<Expression>, more: Vec<Expression>| {
            rule.extend(more);
            rule.extend([Expression::Counter, Expression::Verdict(Verdict::Accept)]);
            Rule { expressions: rule, protocol: None }
        };
        let pods = || within(Payload::Ip4Source, self.pods);
        if chain.hook == FORWARD {
            let mut rules = vec![accept(begin(Meta::IifName), pods()), accept(begin(Meta::OifName), pods())];
            if is_xtables {
                let states = ct_match(ESTABLISHED_RELATED | XT_STATE_DNAT);
                rules.push(accept(begin(Meta::OifName), vec![states]));
            } else {
                rules.push(accept(begin(Meta::OifName), masked(CtKey::State, ESTABLISHED_RELATED)));
                rules.push(accept(begin(Meta::OifName), masked(CtKey::Status, STATUS_DNAT)));
            }
            return rules;
        }
        let answers =
            if is_xtables { vec![ct_match(ESTABLISHED_RELATED)] } else { masked(CtKey::State, ESTABLISHED_RELATED) };
        let mut rules = vec![accept(begin(Meta::IifName), answers)];
        for socket in &self.sockets {
            let mut to = pods();
            if let IpAddr::V4(address) = socket.ip()
                && !address.is_unspecified()
            {
                to.push(Expression::Payload { field: Payload::Ip4Destination, to: Register(0) });
                to.push(Expression::equals(Register(0), address.octets()));
            }
            // Only DNS is spoken by datagrams.
            let protocols: &[u8] = if socket.ip().is_unspecified() { &[TCP] } else { &[TCP, UDP] };
            for protocol in protocols {
                let mut more = to.clone();
                more.push(Expression::Meta { key: Meta::L4Proto, to: Register(0) });
                more.push(Expression::equals(Register(0), [*protocol]));
                more.push(Expression::Payload { field: Payload::DestinationPort, to: Register(0) });
                more.push(Expression::equals(Register(0), socket.port().to_be_bytes()));
                let rule = accept(begin(Meta::IifName), more);
                rules.push(Rule { protocol: is_xtables.then_some(*protocol), ..rule });
            }
        }
        rules
    }
}

/// The remark on the rules of the instance with this table.
fn comment(table: &str) -> String {
    format!("{table}: lets pods through")
}

/// Takes away the rules of the instance with this table from everybody's chains.
///
/// # Errors
/// The first failure; every chain is tried.
pub(crate) fn remove(table: &str) -> Result<(), NftError> {
    let mut nft = Nftables::open()?;
    let comment = comment(table);
    let mut outcome = Ok(());
    for family in [Family::Ip, Family::Inet] {
        let tables: BTreeSet<String> = nft.base_chains(family)?.into_iter().map(|chain| chain.table).collect();
        for table in tables {
            let mut transaction = Transaction::new(family);
            for rule in nft.rules(family, &table)? {
                if rule.comment.as_deref() == Some(comment.as_str()) {
                    transaction.delete_rule(&table, &rule.chain, rule.handle);
                }
            }
            outcome = outcome.and(nft.apply(transaction));
        }
    }
    outcome
}

/// What to type where pods are dropped by tables of `iptables-legacy`, which only `iptables-legacy` can change.
#[must_use]
pub fn advice(bridge: &str) -> Option<String> {
    let policies = legacy::policies(bridge).ok().flatten()?;
    let mut commands = Vec::new();
    if policies.drops_forward {
        commands.push(format!("iptables-legacy -I FORWARD -i {bridge} -j ACCEPT"));
        commands.push(format!("iptables-legacy -I FORWARD -o {bridge} -j ACCEPT"));
    }
    if policies.drops_input {
        commands.push(format!("iptables-legacy -I INPUT -i {bridge} -j ACCEPT"));
    }
    let what = "this host's iptables-legacy drops what pods send; let it pass with";
    (!commands.is_empty()).then(|| format!("{what} `{}`", commands.join(" && ")))
}

/// Whether a chain ends in a rule without conditions that drops or rejects; pure.
fn refuses_all(rules: &[&FoundRule], chain: &str) -> bool {
    let mut waiting = vec![chain.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(chain) = waiting.pop() {
        if seen.len() >= CHAINS_MAX || !seen.insert(chain.clone()) {
            continue;
        }
        for rule in rules.iter().filter(|rule| rule.chain == chain) {
            let mut words = rule.expressions.iter().filter(|word| !matches!(word.as_str(), "counter" | "log"));
            // Any other word before the verdict is a condition.
            let (Some(word), None) = (words.next(), words.next()) else { continue };
            match word.as_str() {
                "drop" | "reject" | "target:REJECT" | "target:DROP" => return true,
                "accept" | "return" => break,
                word => {
                    waiting
                        .extend(word.strip_prefix("jump:").or_else(|| word.strip_prefix("goto:")).map(str::to_owned));
                }
            }
        }
    }
    false
}

fn within(field: Payload, network: Cidr) -> Vec<Expression> {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (network.first(), network.last()) else { return Vec::new() };
    let mask = (!(first.to_bits() ^ last.to_bits())).to_be_bytes().to_vec();
    vec![
        Expression::Payload { field, to: Register(0) },
        Expression::Bitwise { from: Register(0), to: Register(0), mask, xor: vec![0; 4] },
        Expression::equals(Register(0), first.octets()),
    ]
}

fn masked(key: CtKey, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Ct { key, to: Register(0) },
        Expression::Bitwise { from: Register(0), to: Register(0), mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expression::Compare { register: Register(0), how: Compare::NotEqual, value: vec![0; 4] },
    ]
}

/// linux/netfilter/xt_conntrack.h: the bit behind those of conntrack's states and that of SNAT.
const XT_STATE_DNAT: u32 = 1 << 7;

/// `-m conntrack --ctstate ...`: struct xt_conntrack_mtinfo3, 164 bytes padded to eight. The same bits as `nft` uses for
/// states, so both forms are made from one number.
fn ct_match(states: u32) -> Expression {
    const MATCH_STATE: u16 = 1;
    let mut info = vec![0; 168];
    info[146..148].copy_from_slice(&MATCH_STATE.to_ne_bytes());
    info[150..152].copy_from_slice(&u16::try_from(states).unwrap_or_default().to_ne_bytes());
    Expression::XtMatch { name: "conntrack", revision: 3, info }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, words: &[&str]) -> FoundRule {
        let expressions = words.iter().map(|word| (*word).to_owned()).collect();
        FoundRule { chain: chain.into(), handle: 0, comment: None, expressions }
    }

    #[test]
    fn a_chain_that_refuses_everything_in_the_end_is_found() {
        let check = |rules: &[FoundRule], expect: bool| {
            let rules: Vec<&FoundRule> = rules.iter().collect();
            assert_eq!(refuses_all(&rules, "FORWARD"), expect, "{rules:?}");
        };
        check(&[], false);
        check(&[rule("FORWARD", &["counter", "target:REJECT"])], true);
        check(&[rule("FORWARD", &["meta", "cmp", "counter", "drop"])], false);
        check(&[rule("FORWARD", &["accept"]), rule("FORWARD", &["drop"])], false);
        check(&[rule("OTHER", &["drop"])], false);
        check(
            &[rule("FORWARD", &["counter", "jump:A"]), rule("A", &["jump:FORWARD"]), rule("A", &["log", "drop"])],
            true,
        );
        check(&[rule("FORWARD", &["meta", "cmp", "jump:A"]), rule("A", &["drop"])], false);
    }

    #[test]
    fn the_match_of_xtables_is_as_iptables_writes_it() {
        let Expression::XtMatch { info, .. } = ct_match(ESTABLISHED_RELATED | XT_STATE_DNAT) else { unreachable!() };
        assert_eq!(info.len() % 8, 0);
        let set: Vec<(usize, u8)> = info.iter().copied().enumerate().filter(|(_, byte)| *byte != 0).collect();
        assert_eq!(set, [(146, 1), (150, 0x86)], "match_flags and state_mask");
    }
}
