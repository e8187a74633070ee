//! Services as nf_tables: objects -> elements (pure) -> differences (pure) -> one transaction.
//!
//!     prerouting, output   daddr . proto . port -> chain by number of endpoints -> random index
//!                          -> daddr . proto . port . index -> endpoint -> DNAT
//!     forward, output      daddr . proto . port without endpoints -> refused at once
//!
//! Chains depend on the *number* of endpoints alone; a change of endpoints changes only elements, so a packet sees the
//! old set or the new one. Connections that exist are conntrack's and are not looked at again.
//!
//!     postrouting, input   client . daddr . proto . port of Services with affinity -> the endpoint that was chosen
//!
//! IPv4 only. `sessionAffinity: ClientIP` is kept in a map that rules write; when the table is made anew (a restart of the
//! daemon) it is carried over. `externalTrafficPolicy: Local` applies to clients inside the cluster as well.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;

use cni_netlink::Rtnetlink;
use cni_netlink::conntrack::Conntrack;
use cni_netlink::nft::{Element, Family, NftError, Nftables, SavedElement, Transaction, Value};
use cni_netlink::rtnetlink::RtnetlinkError;
use cni_netlink::socket::SocketError;
use cni_netlink::sysctl::{self, SysctlError};
use cni_spec::Cidr;

use tracing::{error, warn};

use crate::catalog::{Entry, ServiceName};
use crate::counts;

pub mod desired;
pub mod elements;
mod layout;
pub mod surroundings;

use desired::{Changes, Desired};
use elements::{Key, Plan, SetKind, Target, ports_of};
use surroundings::{Conflict, Surroundings};

const UDP: u8 = 17;
const FORGET_ATTEMPTS_MAX: usize = 5;

/// Why the table is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// nf_tables refused.
    #[error("program table {table}")]
    Nft { table: String, source: NftError },
    /// Stale connections could not be removed.
    #[error("remove connections to endpoints that are gone")]
    Conntrack(#[source] SocketError),
    /// Own addresses could not be read.
    #[error("list this node's addresses")]
    Addresses(#[source] RtnetlinkError),
    /// A kernel setting.
    #[error("let the node reach node ports at 127.0.0.1")]
    Setting(#[source] SysctlError),
}

/// What the rules depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the table.
    pub table: String,
    /// Name of the pod bridge.
    pub bridge: String,
    /// All cluster IPs.
    pub service_cidr: Cidr,
    /// All pods of all nodes.
    pub cluster_cidr: Cidr,
    /// The cluster IP that is served on this node itself.
    pub dns_address: IpAddr,
    /// This node's name.
    pub node_name: String,
    /// Addresses of this node that the kernel may not know.
    pub node_ips: Vec<IpAddr>,
    /// Where the node's own parts listen, or will: no Service takes traffic from there.
    pub reserved: Vec<SocketAddr>,
}

/// The table and what is wanted in it.
#[derive(Debug)]
pub struct Proxy {
    settings: Settings,
    desired: Desired,
    /// The kernel has what `desired` says it has.
    is_in_step: bool,
    /// Looked at once for all Services that are taken together.
    surroundings: Option<Surroundings>,
    conflicts: HashMap<ServiceName, Vec<Conflict>>,
}

impl Proxy {
    /// Nothing wanted yet, nothing known of the kernel.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, desired: Desired::default(), is_in_step: false, surroundings: None, conflicts: HashMap::new() }
    }

    /// Notes what one Service needs now. What it may not have is told once, as long as that stays so.
    pub fn set(&mut self, name: &ServiceName, entry: Option<&Entry>) {
        let nothing = Surroundings::default();
        let Plan { items, conflicts } = match entry {
            None => Plan::default(),
            Some(entry) => {
                let surroundings = if elements::looks_around(entry) {
                    self.surroundings.get_or_insert_with(Surroundings::look)
                } else {
                    &nothing
                };
                // One Service that cannot be planned keeps what it has, and ends nobody else's.
                let plan = || elements::plan(entry, &self.settings, surroundings);
                let Ok(plan) = std::panic::catch_unwind(AssertUnwindSafe(plan)) else {
                    let (namespace, name) = (&name.namespace, &name.name);
                    error!(namespace, name, "planning a Service panicked; its rules stay as they are");
                    counts::PANICS.add();
                    return;
                };
                plan
            }
        };
        self.tell(name, conflicts);
        let made = entry.and_then(|entry| entry.service.as_ref()?.metadata.creation_timestamp.as_ref());
        // Without a time it is the youngest.
        let created = made.map_or(i64::MAX, |time| time.0.as_second());
        self.desired.replace(name, created, items);
    }

    fn tell(&mut self, name: &ServiceName, conflicts: Vec<Conflict>) {
        let known = self.conflicts.remove(name).unwrap_or_default();
        for conflict in conflicts.iter().filter(|conflict| !known.contains(conflict)) {
            let (namespace, name) = (&name.namespace, &name.name);
            warn!(namespace, name, reason = %conflict, "a way into a Service is not programmed");
            counts::CONFLICTS.add();
        }
        if !conflicts.is_empty() {
            self.conflicts.insert(name.clone(), conflicts);
        }
    }

    /// What is not programmed, and why.
    #[must_use]
    pub fn conflicts(&self) -> &HashMap<ServiceName, Vec<Conflict>> {
        &self.conflicts
    }

    /// Services whose conflict may be over: planning them again tells.
    #[must_use]
    pub fn passing_conflicts(&self) -> Vec<ServiceName> {
        let passing = self.conflicts.iter().filter(|(_, all)| all.iter().any(Conflict::may_pass));
        passing.map(|(name, _)| name.clone()).collect()
    }

    /// The kernel has something else: everything is made anew by the next [`Proxy::apply`].
    pub fn lost(&mut self) {
        if self.is_in_step {
            warn!(table = self.settings.table, "somebody changed the rules of Services; they are made anew");
            counts::MENDED.add();
        }
        self.is_in_step = false;
    }

    /// Whether [`Proxy::apply`] has anything to write.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.is_in_step || self.desired.is_touched()
    }

    /// Whether the fixed part of the table is as it was made.
    ///
    /// # Errors
    /// [`ProxyError::Nft`].
    pub fn is_intact(&self, nft: &mut Nftables) -> Result<bool, ProxyError> {
        let table = &self.settings.table;
        let failed = |source| ProxyError::Nft { table: table.clone(), source };
        let chains = nft.base_chains(Family::Inet).map_err(failed)?;
        let found = |name: &str| chains.iter().find(|chain| chain.table == *table && chain.name == name);
        Ok(layout::BASE_CHAINS.iter().all(|(name, rules)| found(name).is_some_and(|chain| chain.uses == *rules)))
    }

    /// Brings the kernel into step: the differences when it was before, everything anew when not. Blocks. Returns whether
    /// there was anything to write.
    ///
    /// # Errors
    /// [`ProxyError`]; calling again later makes the table anew.
    pub fn apply(&mut self) -> Result<bool, ProxyError> {
        self.surroundings = None;
        let changes = self.desired.changes();
        if self.is_in_step && changes.is_empty() {
            self.desired.commit();
            return Ok(false);
        }
        let table = &self.settings.table;
        let failed = |source| ProxyError::Nft { table: table.clone(), source };
        let mut nft = Nftables::open().map_err(failed)?;
        // Somebody may have removed or changed the table; then only making it anew helps.
        let was_in_step = std::mem::replace(&mut self.is_in_step, false);
        let is_updated = was_in_step && nft.apply(self.update(&changes)).is_ok();
        if !is_updated {
            let known = self.remembered(&mut nft).map_err(failed)?;
            nft.apply(self.rebuild(&known)).map_err(failed)?;
        }
        let stale = if is_updated { changes.targets() } else { self.desired.wanted_targets() };
        self.desired.commit();
        self.is_in_step = true;
        if is_updated && changes.removed.iter().any(|(key, _)| key.set == SetKind::AffinityLive) {
            self.forget_clients(&mut nft)
                .map_err(|source| ProxyError::Nft { table: self.settings.table.clone(), source })?;
        }
        self.open_loopback()?;
        self.forget_connections(&stale)?;
        Ok(true)
    }

    /// 127.0.0.1:NODE-PORT leaves by the bridge and comes back by it. On only where there is a node port, and only once the
    /// table's guard, which keeps everybody else from using this, is in the kernel.
    fn open_loopback(&self) -> Result<(), ProxyError> {
        if !self.desired.has_node_ports() {
            return Ok(());
        }
        match sysctl::ensure(&format!("net/ipv4/conf/{}/route_localnet", self.settings.bridge), "1") {
            // No bridge now; whoever makes it anew asks again.
            Ok(()) | Err(SysctlError::Missing(_)) => Ok(()),
            Err(error) => Err(ProxyError::Setting(error)),
        }
    }

    /// The steps from what is to what is wanted.
    fn update(&self, changes: &Changes) -> Transaction {
        let table = &self.settings.table;
        let mut transaction = Transaction::new(Family::Inet);
        for chain in &changes.new_chains {
            layout::add_chain(&mut transaction, table, chain);
        }
        for kind in SetKind::ALL {
            let gone = changes.removed.iter().filter(|(key, _)| key.set == kind);
            let gone = gone.map(|(key, _)| Element::new(key.bytes.clone(), Value::Nothing));
            transaction.delete_elements(table, kind.name(), gone);
            let new = changes.added.iter().filter(|(key, _)| key.set == kind).map(to_element);
            transaction.add_elements(table, kind.name(), new);
        }
        for chain in &changes.old_chains {
            transaction.flush_chain(table, &chain.to_string()).delete_chain(table, &chain.to_string());
        }
        transaction
    }

    /// The whole table in place of whatever is there.
    fn rebuild(&self, known: &[SavedElement]) -> Transaction {
        let table = &self.settings.table;
        let mut transaction = Transaction::new(Family::Inet);
        transaction.remove_table(table);
        layout::add_table(&mut transaction, &self.settings);
        let wanted: Vec<(Key, Target)> = self.desired.wanted().collect();
        for chain in self.desired.wanted_chains() {
            layout::add_chain(&mut transaction, table, &chain);
        }
        for kind in SetKind::ALL {
            let items = wanted.iter().filter(|(key, _)| key.set == kind).map(to_element);
            transaction.add_elements(table, kind.name(), items);
        }
        transaction.add_saved_elements(table, layout::AFFINITY, known);
        transaction
    }

    /// Clients and the endpoints they stay with, as far as those are still wanted, with the time they have left.
    fn remembered(&self, nft: &mut Nftables) -> Result<Vec<SavedElement>, NftError> {
        let all = nft.saved_elements(Family::Inet, &self.settings.table, layout::AFFINITY)?;
        Ok(all.into_iter().filter(|element| self.is_live(element)).collect())
    }

    fn is_live(&self, element: &SavedElement) -> bool {
        let front = element.key.get(4..).unwrap_or_default();
        self.desired.is_live(&[front, &element.value].concat())
    }

    /// Clients of endpoints that are gone choose again.
    fn forget_clients(&self, nft: &mut Nftables) -> Result<(), NftError> {
        const ENOENT: i32 = 2;
        for _ in 0..FORGET_ATTEMPTS_MAX {
            let all = nft.saved_elements(Family::Inet, &self.settings.table, layout::AFFINITY)?;
            let stale = all.into_iter().filter(|element| !self.is_live(element));
            let stale = stale.map(|element| Element::new(element.key, Value::Nothing));
            let mut transaction = Transaction::new(Family::Inet);
            transaction.delete_elements(&self.settings.table, layout::AFFINITY, stale);
            match nft.apply(transaction) {
                // One of them expired meanwhile: what is left is looked up again.
                Err(error) if error.errno() == Some(ENOENT) => {}
                other => return other,
            }
        }
        // The rules forget each of them when it comes.
        Ok(())
    }

    /// UDP has no end of connection: what still leads to an endpoint that is gone is forgotten, so that the next
    /// datagram chooses again.
    fn forget_connections(&self, changed: &HashSet<Key>) -> Result<(), ProxyError> {
        let mut fronts: HashMap<(Ipv4Addr, u16), Vec<(Ipv4Addr, u16)>> = HashMap::new();
        for key in changed {
            let (address, protocol, port) = ports_of(key);
            if protocol == UDP {
                fronts.entry((address, port)).or_insert_with(|| self.desired.endpoints_of(key));
            }
        }
        if fronts.is_empty() {
            return Ok(());
        }
        let mut local: HashSet<Ipv4Addr> = HashSet::from([Ipv4Addr::LOCALHOST]);
        let known = Rtnetlink::open().and_then(|mut socket| socket.addresses(0)).map_err(ProxyError::Addresses)?;
        let all = known.into_iter().map(|(address, _)| address).chain(self.settings.node_ips.iter().copied());
        local.extend(all.filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }));
        let mut conntrack = Conntrack::open().map_err(ProxyError::Conntrack)?;
        let deleted = conntrack.delete(|connection| {
            let (original, reply) = (&connection.original, &connection.reply);
            if original.protocol != UDP {
                return false;
            }
            let by_node_port = || {
                let is_local = local.contains(&original.destination);
                is_local.then(|| fronts.get(&(Ipv4Addr::UNSPECIFIED, original.destination_port))).flatten()
            };
            let front = fronts.get(&(original.destination, original.destination_port)).or_else(by_node_port);
            front.is_some_and(|endpoints| !endpoints.contains(&(reply.source, reply.source_port)))
        });
        deleted.map(drop).map_err(ProxyError::Conntrack)
    }
}

fn to_element((key, target): &(Key, Target)) -> Element {
    Element::new(key.bytes.clone(), target.to_value())
}
