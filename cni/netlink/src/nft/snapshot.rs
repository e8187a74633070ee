//! A table as it is now, and the transaction that makes what went missing of it again.
//!
//! Works on the kernel's own attributes, so that it knows nothing of what the rules mean. What the kernel adds for itself
//! (handles, use counts) is left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::attributes::{self, Attributes, read_text};

use super::transaction::Transaction;
use super::{Family, NftError, Nftables};

const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const SET_NAME: u16 = 2;
const RULE_CHAIN: u16 = 2;
/// Name, hook, policy, type, note.
const CHAIN_KEPT: [u16; 5] = [CHAIN_NAME, 4, 5, 7, 12];
/// Expressions and note.
const RULE_KEPT: [u16; 2] = [4, 7];
/// Name, flags, types and lengths of key and data, timeout, note.
const SET_KEPT: [u16; 8] = [SET_NAME, 3, 4, 5, 6, 7, 11, 13];

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    family: Family,
    table: String,
    /// Attributes by name, and the rules in order.
    chains: BTreeMap<String, (Vec<u8>, Vec<Vec<u8>>)>,
    /// Attributes by name, and the elements.
    sets: BTreeMap<String, (Vec<u8>, Vec<Vec<u8>>)>,
}

impl Nftables {
    /// The table as it is; `None` when there is none.
    ///
    /// # Errors
    /// Transport errors.
    pub fn snapshot(&mut self, family: Family, table: &str) -> Result<Option<Snapshot>, NftError> {
        if !self.tables(family)?.iter().any(|found| found == table) {
            return Ok(None);
        }
        let mut snapshot = Snapshot::empty(family, table);
        for body in self.list_chains(family)? {
            snapshot.take_chain(&body);
        }
        for body in self.list_rules(family, table)? {
            snapshot.take_rule(&body);
        }
        for body in self.list_sets(family, table)? {
            snapshot.take_set(&body);
        }
        for (name, (_, elements)) in &mut snapshot.sets {
            elements.extend(self.raw_elements(family, table, name)?);
        }
        Ok(Some(snapshot))
    }
}

impl Snapshot {
    fn empty(family: Family, table: &str) -> Self {
        Self { family, table: table.to_owned(), chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    fn is_of_table(&self, body: &[u8]) -> bool {
        attributes::find(body, TABLE).map(read_text).as_deref() == Some(self.table.as_str())
    }

    fn take_chain(&mut self, body: &[u8]) {
        if let Some(name) = attributes::find(body, CHAIN_NAME).map(read_text).filter(|_| self.is_of_table(body)) {
            self.chains.insert(name, (keep(body, &CHAIN_KEPT), Vec::new()));
        }
    }

    fn take_rule(&mut self, body: &[u8]) {
        let chain = attributes::find(body, RULE_CHAIN).map(read_text).filter(|_| self.is_of_table(body));
        if let Some((_, rules)) = chain.and_then(|chain| self.chains.get_mut(&chain)) {
            rules.push(keep(body, &RULE_KEPT));
        }
    }

    fn take_set(&mut self, body: &[u8]) {
        if let Some(name) = attributes::find(body, SET_NAME).map(read_text).filter(|_| self.is_of_table(body)) {
            self.sets.insert(name, (keep(body, &SET_KEPT), Vec::new()));
        }
    }

    /// Whether chains, all rules of a chain, or sets of this are missing in `now`. Elements come and go; that is no damage.
    #[must_use]
    pub fn is_damaged(&self, now: Option<&Self>) -> bool {
        let Some(now) = now else { return true };
        let is_bare = |(name, (_, rules)): (&String, &(Vec<u8>, Vec<Vec<u8>>))| match now.chains.get(name) {
            None => true,
            Some((_, left)) => left.is_empty() && !rules.is_empty(),
        };
        self.chains.iter().any(is_bare) || self.sets.keys().any(|name| !now.sets.contains_key(name))
    }

    /// Makes what `now` lacks: chains with their rules, rules of chains that have none, sets with their elements.
    #[must_use]
    pub fn restore(&self, now: Option<&Self>) -> Transaction {
        let mut transaction = Transaction::new(self.family);
        transaction.add_table(&self.table);
        let known_chains = now.map(|now| &now.chains);
        let known_sets: BTreeSet<&String> = now.into_iter().flat_map(|now| now.sets.keys()).collect();
        for (name, (body, elements)) in self.sets.iter().filter(|(name, _)| !known_sets.contains(name)) {
            transaction.add_raw_set(&self.table, name, body);
            transaction.add_raw_elements(&self.table, name, elements);
        }
        // All chains before the first rule, which may jump to any.
        for (name, (body, _)) in &self.chains {
            if known_chains.is_none_or(|known| !known.contains_key(name)) {
                transaction.add_raw_chain(&self.table, name, body);
            }
        }
        for (name, (_, rules)) in &self.chains {
            let has_rules = known_chains.and_then(|known| known.get(name)).is_some_and(|(_, left)| !left.is_empty());
            for rule in rules.iter().filter(|_| !has_rules) {
                transaction.add_raw_rule(&self.table, name, rule);
            }
        }
        transaction
    }
}

/// The attributes of these types, as they are.
fn keep(body: &[u8], kept: &[u16]) -> Vec<u8> {
    let mut bytes = Attributes::default();
    for (kind, flags, payload) in attributes::iterate_raw(body) {
        if kept.contains(&kind) {
            bytes.put_flagged(kind, flags, payload);
        }
    }
    bytes.as_bytes().to_vec()
}

/// What a fuzzer calls: any bytes as the kernel's description of a chain, a rule, a set.
#[doc(hidden)]
pub fn read_any(bytes: &[u8]) {
    let mut snapshot = Snapshot::empty(Family::Inet, "t");
    snapshot.take_chain(bytes);
    snapshot.take_rule(bytes);
    snapshot.take_set(bytes);
    let _ = snapshot.restore(None);
}
