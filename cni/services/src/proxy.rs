//! Services as nf_tables: objects -> elements (pure) -> differences (pure) -> one transaction.
//!
//!     prerouting, output   daddr . proto . port -> chain by number of endpoints -> random index
//!                          -> daddr . proto . port . index -> endpoint -> DNAT
//!     forward, output      daddr . proto . port without endpoints -> refused at once
//!
//! Chains depend on the *number* of endpoints alone; a change of endpoints changes only elements, so a packet sees the
//! old set or the new one. Connections that exist are conntrack's and are not looked at again.
//!
//! IPv4 only. `sessionAffinity: ClientIP` is kept in a map that rules write; it starts empty when the table is made
//! anew (a restart of the daemon). `externalTrafficPolicy: Local` applies to clients inside the cluster as well.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use cni_netlink::Rtnetlink;
use cni_netlink::conntrack::Conntrack;
use cni_netlink::nft::{Element, Family, NftError, Nftables, Transaction, Value};
use cni_netlink::rtnetlink::RtnetlinkError;
use cni_netlink::socket::SocketError;
use cni_spec::Cidr;

use crate::catalog::{Entry, ServiceName};

pub mod desired;
pub mod elements;
mod layout;

use desired::{Changes, Desired};
use elements::{Key, SetKind, Target, ports_of};

const UDP: u8 = 17;

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
    /// The cluster IP that is served on this node itself.
    pub dns_address: IpAddr,
    /// This node's name.
    pub node_name: String,
    /// Addresses of this node that the kernel may not know.
    pub node_ips: Vec<IpAddr>,
}

/// The table and what is wanted in it.
#[derive(Debug)]
pub struct Proxy {
    settings: Settings,
    desired: Desired,
    /// The kernel has what `desired` says it has.
    is_in_step: bool,
}

impl Proxy {
    /// Nothing wanted yet, nothing known of the kernel.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, desired: Desired::default(), is_in_step: false }
    }

    /// Notes what one Service needs now.
    pub fn set(&mut self, name: &ServiceName, entry: Option<&Entry>) {
        let items = entry.map(|entry| elements::plan(name, entry, &self.settings)).unwrap_or_default();
        self.desired.replace(name, items);
    }

    /// Brings the kernel into step: the differences when it was before, everything anew when not. Blocks.
    ///
    /// # Errors
    /// [`ProxyError`]; calling again later makes the table anew.
    pub fn apply(&mut self) -> Result<(), ProxyError> {
        let changes = self.desired.changes();
        if self.is_in_step && changes.is_empty() {
            return Ok(());
        }
        let table = &self.settings.table;
        let failed = |source| ProxyError::Nft { table: table.clone(), source };
        let mut nft = Nftables::open().map_err(failed)?;
        // Somebody may have removed or changed the table; then only making it anew helps.
        let was_in_step = std::mem::replace(&mut self.is_in_step, false);
        let is_updated = was_in_step && nft.apply(self.update(&changes)).is_ok();
        if !is_updated {
            nft.apply(self.rebuild()).map_err(failed)?;
        }
        let stale = if is_updated { changes.targets() } else { self.desired.wanted_targets() };
        self.desired.commit();
        self.is_in_step = true;
        self.forget_connections(&stale)
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
    fn rebuild(&self) -> Transaction {
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
        transaction
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
