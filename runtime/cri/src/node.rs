//! The server's state: every sandbox and container it knows, their names, and the one way to change their facts.
//!
//! Invariants: what is acknowledged is on disk (`kept`); what happened is in memory before anybody is told, and on disk as soon as the
//! disk takes it. Work on one sandbox or container that changes it is serialised by its `work` lock; reading never waits for work
//! or for a disk. Locks are taken sandbox first, container second, and no lock is held across a wait for an exit.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runtime_images::Images;
use runtime_linux::cgroup::Hierarchy;
use runtime_shim::Client;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::caller::Caller;
use crate::config::Config;
use crate::container::stats::Measured;
use crate::events::Events;
use crate::facts::Shim;
use crate::kept::Kept;
use crate::pool::Pool;
use crate::record::{ContainerRecord, Records, SandboxRecord};
use crate::runtime::status::NetworkRange;
use crate::spec::host::Host;
use crate::status::{Error, chain};
use crate::streaming::Streams;

/// Between two tries to write what a disk refused.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) images: Images,
    pub(crate) records: Records,
    pub(crate) events: Events,
    pub(crate) streams: Streams,
    pub(crate) network_range: NetworkRange,
    pub(crate) pool: Pool,
    /// Found out once: the table of mounts grows with the pods.
    pub(crate) hierarchy: Hierarchy,
    pub(crate) host: Host,
    /// For the few async calls of work that runs on blocking threads.
    pub(crate) tokio: Handle,
    /// Whether somebody is writing what a disk refused.
    retrying: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Sandbox -> its containers by id.
    members: HashMap<String, BTreeMap<String, Arc<Container>>>,
    /// Name -> id, from before the work begins until the removal is done.
    sandbox_names: HashMap<String, String>,
    container_names: HashMap<String, String>,
}

/// Whether something announced is still being made, and for whom.
#[derive(Debug)]
pub(crate) struct Making {
    caller: Caller,
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
pub(crate) struct MakingGuard<'a>(&'a Making);

impl Drop for MakingGuard<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) making: Making,
    work: Mutex<()>,
    kept: Kept<SandboxRecord>,
    shim: Mutex<Shim>,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) making: Making,
    /// The writable layer's size, as it was measured last.
    pub(crate) measured: Mutex<Option<Measured>>,
    work: Mutex<()>,
    kept: Kept<ContainerRecord>,
    has_ended: watch::Sender<bool>,
}

/// The state is consistent between statements, so a panic elsewhere does not poison it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(config: Config, images: Images, records: Records, streams: Streams) -> Result<Self, Error> {
        let hierarchy = Hierarchy::detect().map_err(|source| Error::Cgroup { path: "/".into(), source })?;
        Ok(Self {
            config,
            images,
            records,
            events: Events::new(),
            streams,
            network_range: NetworkRange::default(),
            pool: Pool::new(),
            hierarchy,
            host: Host::detect(),
            tokio: Handle::current(),
            retrying: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.state).sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.state).containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        lock(&self.state).members.get(sandbox).map(|members| members.values().cloned().collect()).unwrap_or_default()
    }

    /// By id, or by the beginning of one that only one has (people type those).
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find(&lock(&self.state).sandboxes, "pod sandbox", id)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find(&lock(&self.state).containers, "container", id)
    }

    /// Takes the name, makes the sandbox known and records the intent. Who finds the name taken finds its holder too.
    pub(crate) fn announce_sandbox(
        &self,
        name: &str,
        record: SandboxRecord,
        caller: Caller,
    ) -> Result<Arc<Sandbox>, Error> {
        let sandbox = self.make_sandbox(record, Making::by(caller));
        {
            let mut state = lock(&self.state);
            reserve(&mut state.sandbox_names, "pod sandbox", name, &sandbox.id)?;
            state.sandboxes.insert(sandbox.id.clone(), Arc::clone(&sandbox));
        }
        if let Err(error) = sandbox.kept.announce(&self.records) {
            let mut state = lock(&self.state);
            state.sandboxes.remove(&sandbox.id);
            state.sandbox_names.remove(name);
            sandbox.making.end();
            return Err(error.into());
        }
        Ok(sandbox)
    }

    pub(crate) fn announce_container(
        &self,
        sandbox: &Arc<Sandbox>,
        record: ContainerRecord,
        caller: Caller,
    ) -> Result<Arc<Container>, Error> {
        let name = record.name.clone();
        let container = Self::make_container(sandbox, record, Making::by(caller));
        {
            let mut state = lock(&self.state);
            reserve(&mut state.container_names, "container", &name, &container.id)?;
            state.insert(&container);
        }
        if let Err(error) = container.kept.announce(&self.records) {
            lock(&self.state).remove(&container, &name);
            container.making.end();
            return Err(error.into());
        }
        Ok(container)
    }

    /// Takes a record of the disk into memory; its name goes with it.
    pub(crate) fn know_sandbox(&self, record: SandboxRecord) -> Arc<Sandbox> {
        let name = crate::sandbox::name(&record.config);
        let sandbox = self.make_sandbox(record, Making::over());
        let mut state = lock(&self.state);
        state.sandbox_names.insert(name, sandbox.id.clone());
        state.sandboxes.insert(sandbox.id.clone(), Arc::clone(&sandbox));
        sandbox
    }

    pub(crate) fn know_container(&self, sandbox: &Arc<Sandbox>, record: ContainerRecord) -> Arc<Container> {
        let name = record.name.clone();
        let container = Self::make_container(sandbox, record, Making::over());
        let mut state = lock(&self.state);
        state.container_names.insert(name, container.id.clone());
        state.insert(&container);
        container
    }

    fn make_sandbox(&self, record: SandboxRecord, making: Making) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            dir: self.config.pod_dir(&record.id),
            making,
            work: Mutex::new(()),
            kept: Kept::new(record),
            shim: Mutex::new(Shim::Absent),
        })
    }

    fn make_container(sandbox: &Arc<Sandbox>, record: ContainerRecord, making: Making) -> Arc<Container> {
        Arc::new(Container {
            id: record.id.clone(),
            sandbox: Arc::clone(sandbox),
            making,
            measured: Mutex::default(),
            work: Mutex::new(()),
            has_ended: watch::Sender::new(record.exit.is_some()),
            kept: Kept::new(record),
        })
    }

    /// The last step of a removal: the record goes first, so that a crash between leaves nothing half known.
    pub(crate) fn forget_sandbox(&self, sandbox: &Sandbox) -> Result<(), Error> {
        sandbox.kept.forget(&self.records)?;
        let mut state = lock(&self.state);
        state.sandboxes.remove(&sandbox.id);
        state.members.remove(&sandbox.id);
        state.sandbox_names.retain(|_, holder| *holder != sandbox.id);
        Ok(())
    }

    pub(crate) fn forget_container(&self, container: &Container) -> Result<(), Error> {
        container.kept.forget(&self.records)?;
        let name = container.read(|record| record.name.clone());
        lock(&self.state).remove(container, &name);
        Ok(())
    }

    /// What happened to a sandbox: a fact at once, and on disk when that takes it.
    pub(crate) fn change_sandbox(self: &Arc<Self>, sandbox: &Sandbox, change: impl FnOnce(&mut SandboxRecord)) {
        if sandbox.kept.change(change)
            && let Err(error) = sandbox.kept.write(&self.records)
        {
            self.write_later(&sandbox.id, &error);
        }
    }

    /// What happened to a container. Whoever waits for its end is woken before the disk is asked. False where nothing changed.
    pub(crate) fn change_container(self: &Arc<Self>, container: &Container, change: impl FnOnce(&mut ContainerRecord)) {
        if !container.kept.change(change) {
            return;
        }
        if container.read(|record| record.exit.is_some()) {
            container.has_ended.send_replace(true);
        }
        if let Err(error) = container.kept.write(&self.records) {
            self.write_later(&container.id, &error);
        }
    }

    /// What a reply will acknowledge: on disk, or not at all.
    pub(crate) fn commit_sandbox(&self, sandbox: &Sandbox, change: impl Fn(&mut SandboxRecord)) -> Result<(), Error> {
        Ok(sandbox.kept.commit(&self.records, change)?)
    }

    pub(crate) fn commit_container(
        &self,
        container: &Container,
        change: impl Fn(&mut ContainerRecord),
    ) -> Result<(), Error> {
        Ok(container.kept.commit(&self.records, change)?)
    }

    /// Tries again, ever less often, until the disk has everything that memory has.
    fn write_later(self: &Arc<Self>, id: &str, error: &crate::record::RecordError) {
        tracing::error!(id, error = %chain(error), "record not written; kept in memory, and tried again");
        if self.retrying.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = Arc::downgrade(self);
        self.tokio.spawn(async move {
            let mut pause = RETRY_FIRST;
            loop {
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(RETRY_LAST);
                let Some(node) = node.upgrade() else { return };
                let writing = Arc::clone(&node);
                let left = node.pool.run(move || Ok(writing.write_what_is_left())).await.unwrap_or(1);
                if left > 0 {
                    continue;
                }
                node.retrying.store(false, Ordering::Release);
                // One that failed between the look and the store has seen somebody at work.
                if !node.has_unwritten() || node.retrying.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    /// How many records the disk still refuses.
    pub(crate) fn write_what_is_left(&self) -> usize {
        let containers = self.containers();
        let refused = containers.iter().filter(|container| container.kept.is_unwritten());
        let containers = refused.filter(|container| container.kept.write(&self.records).is_err()).count();
        let sandboxes = self.sandboxes();
        let refused = sandboxes.iter().filter(|sandbox| sandbox.kept.is_unwritten());
        containers + refused.filter(|sandbox| sandbox.kept.write(&self.records).is_err()).count()
    }

    fn has_unwritten(&self) -> bool {
        self.containers().iter().any(|container| container.kept.is_unwritten())
            || self.sandboxes().iter().any(|sandbox| sandbox.kept.is_unwritten())
    }
}

impl State {
    fn insert(&mut self, container: &Arc<Container>) {
        let members = self.members.entry(container.sandbox.id.clone()).or_default();
        members.insert(container.id.clone(), Arc::clone(container));
        self.containers.insert(container.id.clone(), Arc::clone(container));
    }

    fn remove(&mut self, container: &Container, name: &str) {
        self.containers.remove(&container.id);
        if let Some(members) = self.members.get_mut(&container.sandbox.id) {
            members.remove(&container.id);
        }
        if self.container_names.get(name) == Some(&container.id) {
            self.container_names.remove(name);
        }
    }
}

impl Making {
    fn by(caller: Caller) -> Self {
        Self { caller, ended: watch::Sender::new(false) }
    }

    /// What was found on disk is being made by nobody.
    fn over() -> Self {
        Self { caller: Caller::default(), ended: watch::Sender::new(true) }
    }

    /// Whether nobody waits for it any more, and nobody was told of it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.caller.is_gone()
    }

    /// Gives what was made for nobody to whoever asks for the same; true for one of them.
    pub(crate) fn take_abandoned(&self) -> bool {
        let abandoned = !self.is_under_way() && self.is_abandoned();
        if abandoned {
            self.caller.returns();
        }
        abandoned
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !*self.ended.borrow()
    }

    /// Ends it when the guard goes, also by a panic: others wait for that.
    pub(crate) fn guard(&self) -> MakingGuard<'_> {
        MakingGuard(self)
    }

    fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(crate) async fn until_ended(&self) {
        // An error would mean that the sender is gone, and it is ours.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

impl Sandbox {
    #[cfg(test)]
    pub(crate) fn for_tests(dir: &std::path::Path, record: SandboxRecord) -> Self {
        Self {
            id: record.id.clone(),
            dir: dir.to_owned(),
            making: Making::over(),
            work: Mutex::new(()),
            kept: Kept::new(record),
            shim: Mutex::new(Shim::Absent),
        }
    }

    /// Serialises work on the sandbox; its containers have locks of their own.
    pub(crate) fn work(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    pub(crate) fn facts(&self) -> (SandboxRecord, Shim) {
        let shim = *lock(&self.shim);
        (self.kept.facts(), shim)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&SandboxRecord, Shim) -> T) -> T {
        let shim = *lock(&self.shim);
        self.kept.read(|record| look(record, shim))
    }

    pub(crate) fn set_shim(&self, shim: Shim) {
        *lock(&self.shim) = shim;
    }

    /// A connection of one's own to the pod's shim.
    pub(crate) fn shim(&self) -> Result<Client, Error> {
        Ok(Client::connect(&self.dir)?)
    }

    /// Like [`Self::shim`], for what a shim that is well answers in milliseconds.
    pub(crate) fn shim_within(&self, deadline: Duration) -> Result<Client, Error> {
        Ok(Client::connect_within(&self.dir, deadline)?)
    }
}

impl Container {
    /// Whether nobody is at work on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.work.try_lock().is_ok()
    }

    pub(crate) fn work(&self) -> MutexGuard<'_, ()> {
        lock(&self.work)
    }

    pub(crate) fn facts(&self) -> ContainerRecord {
        self.kept.facts()
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        self.kept.read(look)
    }

    /// Whether the container has ended, waiting for it at most `limit`.
    pub(crate) async fn ended_within(&self, limit: Duration) -> bool {
        let mut has_ended = self.has_ended.subscribe();
        tokio::time::timeout(limit, has_ended.wait_for(|ended| *ended)).await.is_ok_and(|waited| waited.is_ok())
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
