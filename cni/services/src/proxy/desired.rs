//! What all Services together want, what the kernel has, and the difference. Pure.
//!
//! Several Services may want the same element (a pod behind two Services, two Services with one external address);
//! every claim is kept and the oldest Service wins, by name among those of one second: the outcome does not depend on the
//! order of events, and nobody takes an address from who had it before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use super::elements::{Chain, Item, Key, SetKind, Target};
use crate::catalog::ServiceName;

/// When the Service was made, in seconds since 1970, and its name: the smallest wins.
type Claim = (i64, ServiceName);

/// Claims and what is installed.
#[derive(Debug, Default)]
pub struct Desired {
    claims: HashMap<Key, BTreeMap<Claim, Target>>,
    by_owner: HashMap<ServiceName, (i64, Vec<Key>)>,
    installed: HashMap<Key, Target>,
    /// How many installed elements lead to each chain.
    installed_chains: HashMap<Chain, usize>,
    touched: HashSet<Key>,
}

/// Steps from the installed to the wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// With their old targets; a change of target is a removal and an addition.
    pub removed: Vec<Item>,
    /// With their new targets.
    pub added: Vec<Item>,
    /// Used by what is added and not before.
    pub new_chains: BTreeSet<Chain>,
    /// Not used any more.
    pub old_chains: BTreeSet<Chain>,
}

impl Changes {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// Keys of endpoints that changed.
    #[must_use]
    pub fn targets(&self) -> HashSet<Key> {
        let all = self.removed.iter().chain(&self.added).map(|(key, _)| key);
        all.filter(|key| !is_note(key.set)).cloned().collect()
    }
}

impl Desired {
    /// Replaces all that one Service, made at `created`, wants.
    pub fn replace(&mut self, owner: &ServiceName, created: i64, items: Vec<Item>) {
        if let Some((created, keys)) = self.by_owner.remove(owner) {
            let claim = (created, owner.clone());
            for key in keys {
                if let Some(claims) = self.claims.get_mut(&key) {
                    claims.remove(&claim);
                    if claims.is_empty() {
                        self.claims.remove(&key);
                    }
                }
                self.touched.insert(key);
            }
        }
        let mut keys = Vec::with_capacity(items.len());
        for (key, target) in items {
            self.touched.insert(key.clone());
            keys.push(key.clone());
            self.claims.entry(key).or_default().insert((created, owner.clone()), target);
        }
        if !keys.is_empty() {
            self.by_owner.insert(owner.clone(), (created, keys));
        }
    }

    /// Whether anything was claimed or let go since the last [`Desired::commit`].
    #[must_use]
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Whether a client of a Service with affinity may stay with this endpoint.
    #[must_use]
    pub fn is_live(&self, front_and_endpoint: &[u8]) -> bool {
        self.claims.contains_key(&Key { set: SetKind::AffinityLive, bytes: front_and_endpoint.to_vec() })
    }

    /// Whether a node port leads anywhere.
    #[must_use]
    pub fn has_node_ports(&self) -> bool {
        self.installed_chains.iter().any(|(chain, count)| chain.is_node_port && *count > 0)
    }

    /// The difference since the last [`Desired::commit`].
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for key in &self.touched {
            let (have, want) = (self.installed.get(key), self.effective(key));
            if have == want {
                continue;
            }
            changes.removed.extend(have.map(|target| (key.clone(), target.clone())));
            changes.added.extend(want.map(|target| (key.clone(), target.clone())));
        }
        let (lost, won) = (chain_counts(&changes.removed), chain_counts(&changes.added));
        for chain in lost.keys().chain(won.keys()) {
            let count = |counts: &HashMap<Chain, usize>| counts.get(chain).copied().unwrap_or_default();
            let before = count(&self.installed_chains);
            let after = (before + count(&won)).saturating_sub(count(&lost));
            if before == 0 && after > 0 {
                changes.new_chains.insert(*chain);
            } else if before > 0 && after == 0 {
                changes.old_chains.insert(*chain);
            }
        }
        changes
    }

    /// The kernel has all of it now.
    pub fn commit(&mut self) {
        for key in std::mem::take(&mut self.touched) {
            let want = self.effective(&key).cloned();
            if let Some(Target::Chain(chain)) = &want {
                *self.installed_chains.entry(*chain).or_default() += 1;
            }
            let old = match want {
                Some(target) => self.installed.insert(key, target),
                None => self.installed.remove(&key),
            };
            if let Some(Target::Chain(chain)) = old
                && let Some(count) = self.installed_chains.get_mut(&chain)
            {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// All elements wanted.
    pub fn wanted(&self) -> impl Iterator<Item = Item> {
        self.claims.iter().filter_map(|(key, claims)| Some((key.clone(), claims.values().next()?.clone())))
    }

    /// All chains wanted.
    #[must_use]
    pub fn wanted_chains(&self) -> BTreeSet<Chain> {
        let targets = self.claims.values().filter_map(|claims| claims.values().next());
        targets
            .filter_map(|target| match target {
                Target::Chain(chain) => Some(*chain),
                _ => None,
            })
            .collect()
    }

    /// Keys of all ways in, and of those without endpoints.
    #[must_use]
    pub fn wanted_targets(&self) -> HashSet<Key> {
        let is_front = |key: &&Key| !is_note(key.set) && key.set != SetKind::Endpoints;
        self.claims.keys().filter(is_front).cloned().collect()
    }

    /// The endpoints behind the way in that a key belongs to.
    #[must_use]
    pub fn endpoints_of(&self, key: &Key) -> Vec<(Ipv4Addr, u16)> {
        let front = match key.set {
            SetKind::NodePorts | SetKind::RefusedNodePorts => [&[0; 4][..], &key.bytes].concat(),
            _ => key.bytes.get(..12).unwrap_or_default().to_vec(),
        };
        let at = |index: u32| {
            let bytes = [&front[..], &index.to_ne_bytes()].concat();
            match self.effective(&Key { set: SetKind::Endpoints, bytes }) {
                Some(Target::Endpoint(address, port)) => Some((*address, *port)),
                _ => None,
            }
        };
        (0..).map_while(at).collect()
    }

    fn effective(&self, key: &Key) -> Option<&Target> {
        self.claims.get(key)?.values().next()
    }
}

/// Sets that say something about connections and lead none.
fn is_note(set: SetKind) -> bool {
    matches!(
        set,
        SetKind::Hairpin
            | SetKind::AffinityLive
            | SetKind::External
            | SetKind::NodePortFronts
            | SetKind::Affine
            | SetKind::AffineNodePorts
    )
}

fn chain_counts(items: &[Item]) -> HashMap<Chain, usize> {
    let mut counts = HashMap::new();
    for (_, target) in items {
        if let Target::Chain(chain) = target {
            *counts.entry(*chain).or_default() += 1;
        }
    }
    counts
}
