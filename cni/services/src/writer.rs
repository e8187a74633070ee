//! Whatever service networking writes into nf_tables: the table of Services, what the plugins had in theirs, and a way
//! through other programs' chains. Blocks; one thread at a time.
//!
//! The table of Services is made anew from what is wanted. The plugins' table (`NAME-cni`: masquerade, host ports) is made
//! by processes that are gone, so a copy of it is kept and put back when somebody takes it away.

use cni_netlink::monitor::{Heard, Object, TableChange, TableMonitor};
use cni_netlink::nft::snapshot::Snapshot;
use cni_netlink::nft::{Family, NftError, Nftables};
use tracing::{error, warn};

use crate::catalog::{Entry, ServiceName};
use crate::counts;
use crate::firewall::Firewall;
use crate::proxy::{Proxy, ProxyError, Settings};

/// What is to be looked at beside Services that changed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Todo {
    /// The table of Services is not as it was left.
    pub(crate) rebuild: bool,
    /// The plugins' table changed.
    pub(crate) mirror: bool,
    /// Others' chains changed.
    pub(crate) firewall: bool,
}

/// What others' changes ask for.
pub(crate) fn todo_for(table: &str, heard: &Heard<TableChange>) -> Todo {
    let Heard::Changes(changes) = heard else { return Todo { rebuild: true, mirror: true, firewall: true } };
    let plugin = format!("{table}-cni");
    let mut todo = Todo::default();
    for change in changes {
        if change.is_of(Family::Inet, table) {
            todo.rebuild = true;
        } else if change.is_of(Family::Inet, &plugin) {
            todo.mirror = true;
        } else {
            todo.firewall |= matches!(change.object, Object::Table | Object::Chain | Object::Rule);
        }
    }
    todo
}

/// Owns all that is written.
#[derive(Debug)]
pub(crate) struct Writer {
    table: String,
    proxy: Proxy,
    mirror: Mirror,
    firewall: Firewall,
}

impl Writer {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            table: settings.table.clone(),
            mirror: Mirror { table: format!("{}-cni", settings.table), kept: None },
            firewall: Firewall::new(&settings),
            proxy: Proxy::new(settings),
        }
    }

    pub(crate) fn set(&mut self, name: &ServiceName, entry: Option<&Entry>) {
        self.proxy.set(name, entry);
    }

    pub(crate) fn passing_conflicts(&self) -> Vec<ServiceName> {
        self.proxy.passing_conflicts()
    }

    /// Brings everything into step. Returns who hears of what others do from now on, and what they did meanwhile.
    pub(crate) fn work(
        &mut self,
        listening: Option<TableMonitor>,
        mut todo: Todo,
    ) -> Result<(TableMonitor, Todo), ProxyError> {
        let failed = |table: &str, source: NftError| ProxyError::Nft { table: table.to_owned(), source };
        let mut nft = Nftables::open().map_err(|source| failed(&self.table, source))?;
        if todo.rebuild {
            self.proxy.lost();
        }
        let mut monitor = listening;
        if self.proxy.is_due() {
            let before = monitor.take().and_then(|monitor| drain(monitor, &mut nft, &self.table, &mut todo));
            let has_written = self.proxy.apply()?;
            let opened = TableMonitor::open().map_err(|error| failed(&self.table, error.into()))?;
            let now = nft.generation().map_err(|source| failed(&self.table, source))?;
            if before.map(|before| before.wrapping_add(u32::from(has_written))) != Some(now) {
                // Somebody else wrote too, while nobody listened.
                (todo.mirror, todo.firewall) = (true, true);
                todo.rebuild = !self.proxy.is_intact(&mut nft)?;
            } else {
                todo.rebuild = false;
            }
            monitor = Some(opened);
        }
        let monitor = match monitor {
            Some(monitor) => monitor,
            None => TableMonitor::open().map_err(|error| failed(&self.table, error.into()))?,
        };
        if todo.mirror {
            self.mirror.keep(&mut nft).map_err(|source| failed(&self.mirror.table, source))?;
        }
        if todo.firewall {
            self.firewall.ensure(&mut nft);
        }
        Ok((monitor, Todo { rebuild: todo.rebuild, ..Todo::default() }))
    }
}

/// The rules' generation up to which everything was heard; the monitor ends here.
fn drain(mut monitor: TableMonitor, nft: &mut Nftables, table: &str, todo: &mut Todo) -> Option<u32> {
    let generation = nft.generation().ok()?;
    while let Some(heard) = monitor.hear().ok()? {
        let more = todo_for(table, &heard);
        todo.mirror |= more.mirror;
        todo.firewall |= more.firewall;
        if more.rebuild || heard == Heard::Lost {
            // Unknown what of it came before and what will be repaired now: look.
            return None;
        }
    }
    Some(generation)
}

/// The plugins' table as it was seen last.
#[derive(Debug)]
struct Mirror {
    table: String,
    kept: Option<Snapshot>,
}

impl Mirror {
    /// Puts back what went, and keeps what is there now.
    fn keep(&mut self, nft: &mut Nftables) -> Result<(), NftError> {
        let mut now = nft.snapshot(Family::Inet, &self.table)?;
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.is_damaged(now.as_ref())) {
            warn!(table = self.table, "somebody took away rules of host ports or masquerade; they are put back");
            if let Err(failure) = nft.apply(kept.restore(now.as_ref())) {
                error!(error = &failure as &dyn std::error::Error, "host ports and masquerade cannot be put back");
                return Err(failure);
            }
            counts::MENDED.add();
            now = nft.snapshot(Family::Inet, &self.table)?;
        }
        if now.is_some() {
            self.kept = now;
        }
        Ok(())
    }
}
