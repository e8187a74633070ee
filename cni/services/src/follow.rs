//! The task that follows Services and EndpointSlices and keeps the node's rules in step with them.
//!
//!     listing --(both lists complete)--> in step --(event)--> dirty --(queue empty)--> work --> in step
//!                                        in step --(others change tables)--> dirty
//!                                                        work fails --> wait --> work
//!
//! Nothing is written to the kernel before both lists are complete: half a list would look like deletions. Changes that
//! others make (a firewall's reload) are heard from the kernel. While this task itself writes it does not listen, so that
//! the kernel need not describe ten thousand elements to it; what happened meanwhile shows in the rules' generation.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cni_netlink::monitor::{Heard, TableChange, TableMonitor};
use control_plane_decode::{Decoded, Skipped};
use futures::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, warn};

use crate::catalog::{Catalog, ServiceName};
use crate::counts;
use crate::proxy::Settings;
use crate::writer::{self, Todo, Writer};

/// Events taken together into one transaction at most.
const EVENTS_MAX: usize = 4096;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Who takes away our rules again and again gets them made anew this often at most.
const MEND_PAUSE: Duration = Duration::from_secs(1);
/// How long others' changes are collected before their chains are looked at.
const FIREWALL_PAUSE: Duration = Duration::from_millis(200);
/// How often a port that was somebody else's is looked at again.
const CONFLICT_PAUSE: Duration = Duration::from_secs(30);

enum Change {
    Service(Box<Event<Decoded<Service>>>),
    Slice(Box<Event<Decoded<EndpointSlice>>>),
}

enum Next {
    Change(Change),
    Heard(Heard<TableChange>),
    Ended,
    Due,
}

struct Progress {
    begun: Instant,
    has_services: bool,
    has_slices: bool,
    dirty: HashSet<ServiceName>,
    skipped: Skipped,
    todo: Todo,
    /// Nothing is written before: what failed is tried again later, and what was mended is not mended at once again.
    hold: Option<Instant>,
    retry: Option<Duration>,
    /// When others' chains are to be looked at.
    firewall: Option<Instant>,
    /// When conflicts are to be looked at again.
    conflicts: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            has_services: false,
            has_slices: false,
            dirty: HashSet::new(),
            skipped: Skipped::new("services"),
            todo: Todo { mirror: true, firewall: true, ..Todo::default() },
            hold: None,
            retry: None,
            firewall: None,
            conflicts: None,
        }
    }

    /// When something is to be done; a moment that is past means now.
    fn due(&self) -> Option<Instant> {
        if !(self.has_services && self.has_slices) {
            return None;
        }
        let is_pending = !self.dirty.is_empty() || self.todo != Todo::default();
        let first = [is_pending.then_some(self.begun), self.firewall, self.conflicts].into_iter().flatten().min()?;
        Some(self.hold.map_or(first, |hold| hold.max(first)))
    }

    fn back_off(&mut self) {
        let delay = self.retry.map_or(RETRY_FIRST, |last| last.saturating_mul(2).min(RETRY_MAX));
        self.retry = Some(delay);
        self.hold = after(delay);
    }
}

fn after(pause: Duration) -> Option<Instant> {
    Instant::now().checked_add(pause)
}

/// Runs until it is dropped; the end of both watches is the only end.
pub(crate) async fn follow(client: Client, catalog: Arc<RwLock<Catalog>>, settings: Settings) {
    let services = watch(Api::<Decoded<Service>>::all(client.clone()), watcher::Config::default());
    let slices = watch(Api::<Decoded<EndpointSlice>>::all(client), watcher::Config::default());
    let mut changes = stream::select(
        events(services, "services").map(|event| Change::Service(Box::new(event))).boxed(),
        events(slices, "endpointslices").map(|event| Change::Slice(Box::new(event))).boxed(),
    )
    .fuse();
    let mut progress = Progress::new();
    let mut writer = Some(Writer::new(settings.clone()));
    let mut monitor: Option<AsyncFd<TableMonitor>> = None;
    loop {
        let wait = async {
            tokio::select! {
                change = changes.next() => change.map_or(Next::Ended, Next::Change),
                heard = hear(&mut monitor) => Next::Heard(heard),
            }
        };
        let mut next = match progress.due() {
            None => wait.await,
            Some(due) => timeout_at(due, wait).await.unwrap_or(Next::Due),
        };
        for _ in 0..EVENTS_MAX {
            match next {
                Next::Change(change) => take(&catalog, &mut progress, change),
                Next::Heard(heard) => note(&mut progress, &settings.table, &heard),
                Next::Ended => return,
                Next::Due => {}
            }
            match changes.next().now_or_never().flatten() {
                Some(change) => next = Next::Change(change),
                None => break,
            }
        }
        if progress.due().is_some_and(|due| due <= Instant::now()) {
            monitor = work(&catalog, &mut progress, &mut writer, &settings, monitor).await;
        }
    }
}

/// Takes dirty Services into the proxy and writes the difference; hears of what others do from then on.
async fn work(
    catalog: &Arc<RwLock<Catalog>>,
    progress: &mut Progress,
    slot: &mut Option<Writer>,
    settings: &Settings,
    monitor: Option<AsyncFd<TableMonitor>>,
) -> Option<AsyncFd<TableMonitor>> {
    let mut writer = slot.take().unwrap_or_else(|| Writer::new(settings.clone()));
    let now = Instant::now();
    if progress.conflicts.take_if(|at| *at <= now).is_some() {
        progress.dirty.extend(writer.passing_conflicts());
    }
    let mut todo = std::mem::take(&mut progress.todo);
    todo.firewall |= progress.firewall.take_if(|at| *at <= now).is_some();
    // Taken as it was: should this fail, it is still to be done.
    let begun = todo;
    let dirty = std::mem::take(&mut progress.dirty);
    progress.hold = if todo.rebuild { after(MEND_PAUSE) } else { None };
    let (count, held) = (dirty.len(), Arc::clone(catalog));
    let monitor = monitor.map(AsyncFd::into_inner);
    let worked = tokio::task::spawn_blocking(move || {
        {
            let catalog = held.read().unwrap_or_else(PoisonError::into_inner);
            for name in &dirty {
                writer.set(name, catalog.get(name));
            }
        }
        let outcome = writer.work(monitor, todo);
        (writer, outcome)
    });
    let (writer, outcome) = match worked.await {
        Ok(worked) => worked,
        Err(join) => {
            // Whatever it was at is unknown: another one begins from the catalog.
            error!(error = &join as &dyn std::error::Error, "service rules: the writer panicked and starts anew");
            counts::PANICS.add();
            let catalog = catalog.read().unwrap_or_else(PoisonError::into_inner);
            progress.dirty.extend(catalog.iter().map(|(name, _)| name.clone()));
            progress.todo = Todo { rebuild: true, mirror: true, firewall: true };
            progress.back_off();
            return None;
        }
    };
    if progress.conflicts.is_none() && !writer.passing_conflicts().is_empty() {
        progress.conflicts = after(CONFLICT_PAUSE);
    }
    *slot = Some(writer);
    match outcome {
        Ok((monitor, left)) => {
            debug!(services = count, "service rules are in step");
            progress.retry = None;
            progress.todo = left;
            listen(monitor)
        }
        Err(failure) => {
            progress.todo = Todo { rebuild: true, ..begun };
            progress.back_off();
            let delay = progress.retry;
            error!(error = &failure as &dyn std::error::Error, ?delay, "service rules are not in step; trying again");
            None
        }
    }
}

fn listen(monitor: TableMonitor) -> Option<AsyncFd<TableMonitor>> {
    #[expect(
        deprecated,
        reason = "the other constructor is unsafe; a monitor's descriptor is its own as long as it lives"
    )]
    match AsyncFd::new(monitor) {
        Ok(monitor) => Some(monitor),
        Err(error) => {
            warn!(%error, "changes of nf_tables by others are not heard of until the next change of a Service");
            None
        }
    }
}

/// What others changed; never, without a monitor.
async fn hear(monitor: &mut Option<AsyncFd<TableMonitor>>) -> Heard<TableChange> {
    let Some(fd) = monitor else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = fd.readable_mut().await else { return Heard::Lost };
        match ready.get_inner_mut().hear() {
            Ok(None) => ready.clear_ready(),
            Ok(Some(heard)) => return heard,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "cannot hear of others' changes");
                return Heard::Lost;
            }
        }
    }
}

/// What is to be done for what others did.
fn note(progress: &mut Progress, table: &str, heard: &Heard<TableChange>) {
    let todo = writer::todo_for(table, heard);
    progress.todo.rebuild |= todo.rebuild;
    progress.todo.mirror |= todo.mirror;
    if todo.firewall && progress.firewall.is_none() {
        // Together with what follows: a reload changes hundreds of rules.
        progress.firewall = after(FIREWALL_PAUSE);
    }
}

fn take(catalog: &RwLock<Catalog>, progress: &mut Progress, change: Change) {
    let mut catalog = catalog.write().unwrap_or_else(PoisonError::into_inner);
    let names = match change {
        Change::Service(event) => {
            let is_list_done = matches!(*event, Event::InitDone);
            let names = match readable(*event, &mut progress.skipped, |metadata| catalog.keep_service(metadata)) {
                Some(event) => catalog.service_event(event),
                None => Vec::new(),
            };
            if is_list_done && !progress.has_services {
                progress.has_services = true;
                progress.dirty.extend(catalog.iter().map(|(name, _)| name.clone()));
                // An empty cluster has a table too.
                progress.dirty.insert(ServiceName { namespace: String::new(), name: String::new() });
            }
            names
        }
        Change::Slice(event) => {
            progress.has_slices |= matches!(*event, Event::InitDone);
            match readable(*event, &mut progress.skipped, |metadata| catalog.keep_slice(metadata)) {
                Some(event) => catalog.slice_event(event),
                None => Vec::new(),
            }
        }
    };
    progress.dirty.extend(names);
}

/// The event with its object. One that cannot be read is told and left out; what was known of it stays.
fn readable<K: Resource<DynamicType = ()> + Default>(
    event: Event<Decoded<K>>,
    skipped: &mut Skipped,
    keep: impl FnOnce(&ObjectMeta),
) -> Option<Event<K>> {
    let (decoded, make): (_, fn(K) -> Event<K>) = match event {
        Event::Init => return Some(Event::Init),
        Event::InitDone => return Some(Event::InitDone),
        Event::InitApply(decoded) => (decoded, Event::InitApply),
        Event::Apply(decoded) => (decoded, Event::Apply),
        Event::Delete(decoded) => {
            // What is gone is gone, readable or not: its names say which.
            let object = decoded.into_result().unwrap_or_else(|unreadable| {
                let mut object = K::default();
                *object.meta_mut() = unreadable.metadata;
                object
            });
            return Some(Event::Delete(object));
        }
    };
    match decoded.into_result() {
        Ok(object) => Some(make(object)),
        Err(unreadable) => {
            if skipped.tell(&K::kind(&()), &unreadable) {
                counts::UNREADABLE.add();
            }
            keep(&unreadable.metadata);
            None
        }
    }
}

/// The events of a watch; errors are logged, and the watch goes on after a pause.
fn events<K>(
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    resource: &'static str,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Send,
{
    stream.default_backoff().filter_map(move |event| async move {
        match event {
            Ok(event) => Some(event),
            Err(failure) => {
                warn!(resource, error = &failure as &dyn std::error::Error, "watch broke; it starts again");
                None
            }
        }
    })
}
