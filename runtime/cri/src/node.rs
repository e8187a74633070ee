//! The server's state: every sandbox and container it knows, their names, and the one way to change their facts.
//!
//! Invariants: a fact is on disk before it is in memory, and in memory before anybody is told. Work on one sandbox or
//! container that changes it is serialised by its `work` lock; reading never waits for work. Locks are taken sandbox first,
//! container second, facts last, and no lock is held across a wait for an exit.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtime_images::Images;
use runtime_shim::Client;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::events::Events;
use crate::facts::Shim;
use crate::record::{ContainerRecord, Records, SandboxRecord};
use crate::runtime::status::NetworkRange;
use crate::status::Error;
use crate::streaming::Streams;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) images: Images,
    pub(crate) records: Records,
    pub(crate) events: Events,
    pub(crate) streams: Streams,
    pub(crate) network_range: NetworkRange,
    /// For the few async calls of work that runs on blocking threads.
    pub(crate) tokio: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Name -> id, from before the work begins until the removal is done.
    sandbox_names: HashMap<String, String>,
    container_names: HashMap<String, String>,
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    work: Mutex<()>,
    facts: Mutex<(SandboxRecord, Shim)>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: Arc<Sandbox>,
    work: Mutex<()>,
    facts: Mutex<ContainerRecord>,
    changed: Condvar,
}

/// Facts are consistent between statements, so a panic elsewhere does not poison them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(
        config: Config,
        images: Images,
        records: Records,
        streams: Streams,
        network_range: NetworkRange,
    ) -> Self {
        let state = Mutex::default();
        Self { config, images, records, events: Events::new(), streams, network_range, tokio: Handle::current(), state }
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.state).sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.state).containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let state = lock(&self.state);
        state.containers.values().filter(|container| container.sandbox.id == sandbox).cloned().collect()
    }

    /// By id, or by the beginning of one that only one has (people type those).
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find(&lock(&self.state).sandboxes, "pod sandbox", id)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find(&lock(&self.state).containers, "container", id)
    }

    /// Takes the name, records the intent, and makes the sandbox known.
    pub(crate) fn announce_sandbox(&self, name: &str, record: SandboxRecord) -> Result<Arc<Sandbox>, Error> {
        let id = record.id.clone();
        reserve(&mut lock(&self.state).sandbox_names, "pod sandbox", name, &id)?;
        if let Err(error) = self.records.save_sandbox(&record) {
            lock(&self.state).sandbox_names.remove(name);
            return Err(error.into());
        }
        Ok(self.know_sandbox(record))
    }

    pub(crate) fn announce_container(
        &self,
        sandbox: &Arc<Sandbox>,
        record: ContainerRecord,
    ) -> Result<Arc<Container>, Error> {
        let (id, name) = (record.id.clone(), record.name.clone());
        reserve(&mut lock(&self.state).container_names, "container", &name, &id)?;
        if let Err(error) = self.records.save_container(&record) {
            lock(&self.state).container_names.remove(&name);
            return Err(error.into());
        }
        Ok(self.know_container(sandbox, record))
    }

    /// Takes a record into memory; its name goes with it.
    pub(crate) fn know_sandbox(&self, record: SandboxRecord) -> Arc<Sandbox> {
        let sandbox = Arc::new(Sandbox {
            id: record.id.clone(),
            dir: self.config.pod_dir(&record.id),
            work: Mutex::new(()),
            facts: Mutex::new((record.clone(), Shim::Absent)),
        });
        let mut state = lock(&self.state);
        state.sandbox_names.insert(crate::sandbox::name(&record.config), record.id.clone());
        state.sandboxes.insert(record.id, Arc::clone(&sandbox));
        sandbox
    }

    pub(crate) fn know_container(&self, sandbox: &Arc<Sandbox>, record: ContainerRecord) -> Arc<Container> {
        let container = Arc::new(Container {
            id: record.id.clone(),
            sandbox: Arc::clone(sandbox),
            work: Mutex::new(()),
            facts: Mutex::new(record.clone()),
            changed: Condvar::new(),
        });
        let mut state = lock(&self.state);
        state.container_names.insert(record.name, record.id.clone());
        state.containers.insert(record.id, Arc::clone(&container));
        container
    }

    /// The last step of a removal: the record goes first, so that a crash between leaves nothing half known.
    pub(crate) fn forget_sandbox(&self, id: &str) -> Result<(), Error> {
        self.records.remove_sandbox(id)?;
        let mut state = lock(&self.state);
        state.sandboxes.remove(id);
        state.sandbox_names.retain(|_, holder| holder != id);
        Ok(())
    }

    pub(crate) fn forget_container(&self, id: &str) -> Result<(), Error> {
        self.records.remove_container(id)?;
        let mut state = lock(&self.state);
        state.containers.remove(id);
        state.container_names.retain(|_, holder| holder != id);
        Ok(())
    }

    /// Changes a sandbox's facts: on disk, then in memory.
    pub(crate) fn change_sandbox(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), Error> {
        let mut facts = lock(&sandbox.facts);
        let mut record = facts.0.clone();
        change(&mut record);
        self.records.save_sandbox(&record)?;
        facts.0 = record;
        Ok(())
    }

    /// Changes a container's facts, and wakes who waits for them. `change` says whether there is anything to keep.
    pub(crate) fn change_container(
        &self,
        container: &Container,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), Error> {
        let mut facts = lock(&container.facts);
        let mut record = facts.clone();
        change(&mut record);
        if record != *facts {
            self.records.save_container(&record)?;
            *facts = record;
            container.changed.notify_all();
        }
        Ok(())
    }
}

impl Sandbox {
    #[cfg(test)]
    pub(crate) fn for_tests(dir: &std::path::Path, record: SandboxRecord) -> Self {
        let (id, facts) = (record.id.clone(), Mutex::new((record, Shim::Absent)));
        Self { id, dir: dir.to_owned(), work: Mutex::new(()), facts }
    }

    /// Serialises work on the sandbox; its containers have locks of their own.
    pub(crate) fn work(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    pub(crate) fn facts(&self) -> (SandboxRecord, Shim) {
        lock(&self.facts).clone()
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&SandboxRecord, Shim) -> T) -> T {
        let facts = lock(&self.facts);
        look(&facts.0, facts.1)
    }

    pub(crate) fn set_shim(&self, shim: Shim) {
        lock(&self.facts).1 = shim;
    }

    /// A connection of one's own to the pod's shim.
    pub(crate) fn shim(&self) -> Result<Client, Error> {
        Ok(Client::connect(&self.dir)?)
    }
}

impl Container {
    pub(crate) fn work(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    pub(crate) fn facts(&self) -> ContainerRecord {
        lock(&self.facts).clone()
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        look(&lock(&self.facts))
    }

    /// Whether the container has ended, waiting for it at most `limit`. Blocks.
    pub(crate) fn wait_exit(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut facts = lock(&self.facts);
        while facts.exit.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            facts = self.changed.wait_timeout(facts, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn find<T>(known: &BTreeMap<String, Arc<T>>, kind: &'static str, id: &str) -> Result<Arc<T>, Error> {
    if let Some(found) = known.get(id) {
        return Ok(Arc::clone(found));
    }
    if id.is_empty() {
        return Err(Error::invalid("id", "is empty"));
    }
    let mut candidates = known.range(id.to_owned()..).take_while(|(candidate, _)| candidate.starts_with(id));
    match (candidates.next(), candidates.next()) {
        (Some((_, found)), None) => Ok(Arc::clone(found)),
        (None, _) => Err(Error::NotFound { kind, id: id.to_owned() }),
        (Some(_), Some(_)) => Err(Error::Ambiguous { kind, id: id.to_owned() }),
    }
}

fn reserve(names: &mut HashMap<String, String>, kind: &'static str, name: &str, id: &str) -> Result<(), Error> {
    match names.get(name) {
        Some(holder) => Err(Error::NameTaken { kind, name: name.to_owned(), holder: holder.clone() }),
        None => {
            names.insert(name.to_owned(), id.to_owned());
            Ok(())
        }
    }
}

/// 64 hexadecimal digits that nothing else on this machine has.
pub(crate) fn fresh_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
