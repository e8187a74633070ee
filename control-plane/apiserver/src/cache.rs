//! The watch cache: every stored object's served bytes, per resource, fed by one watch on the store. Writes nothing.
//!
//!     store --batch--> run() --apply--> Collection (snapshot, history, watchers) --then--> applied revision
//!
//! Invariant: when `applied` says n, every collection's snapshot holds all changes up to n and every watcher has been sent them.
//! Reads take a snapshot without a lock; one that must see a write waits for `applied`.

mod collection;
mod encoded;
mod entry;
mod filter;
mod queue;
mod shelf;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use control_plane_api::{Row, rows};
use control_plane_store::{Batch, Range, Revision, Store};
use futures::StreamExt;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use collection::{Collection, Kind, Notice, Refused, Snapshot, Start, Subscription};
pub(crate) use encoded::Form;
pub(crate) use entry::Cached;
pub(crate) use filter::Filter;

/// Where everything is.
const ROOT: &str = "/registry/";
/// Revisions replayed at start, so that clients that were watching before a restart go on where they were.
const REPLAY_REVISIONS: u64 = 2000;
/// How long a read waits for the cache to catch up with the store.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);

/// A cache that stands still behind the store for longer is not healthy.
const STANDS_STILL_MAX: Duration = Duration::from_secs(5);

/// Why the cache cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the store into the watch cache")]
    Store(#[from] control_plane_store::Error),
    #[error("the watch cache has not caught up with revision {wanted} (it is at {applied})")]
    Behind { wanted: Revision, applied: Revision },
}

/// All collections.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Arc<dyn Store>,
    /// By storage prefix, `/registry/core/pods/`.
    collections: HashMap<String, Arc<Collection>>,
    applied: AtomicU64,
    signal: watch::Sender<u64>,
    load: Arc<queue::Load>,
    /// Where the cache stood when it was first seen behind the store, and when that was.
    behind: Mutex<Option<(Revision, Instant)>>,
    /// Why the store is no longer followed.
    lost: OnceLock<control_plane_store::Error>,
}

impl Cache {
    /// Reads everything that is stored. Until [`Self::run`] is polled the cache stands still.
    pub(crate) async fn load(store: Arc<dyn Store>) -> Result<Self, Error> {
        let newest = store.revision().await?;
        let (at, entries) = Self::read(&store, newest).await?;
        let mut collections = HashMap::new();
        let load = Arc::new(queue::Load::default());
        for row in rows().iter().filter(|row| row.has_verb("list") && is_storage_row(row)) {
            let prefix = row.storage_prefix();
            collections.insert(prefix.clone(), Arc::new(Collection::new(row, prefix, at, Arc::clone(&load))));
        }
        let mut by_prefix: HashMap<&str, Vec<Arc<Cached>>> = HashMap::new();
        for entry in &entries {
            let Some(collection) = collection_of(&collections, &entry.key) else { continue };
            if let Some(cached) = collection.parse(entry) {
                by_prefix.entry(collection.prefix()).or_default().push(cached);
            }
        }
        for (prefix, entries) in by_prefix {
            collections[prefix].fill(&entries, at);
        }
        let signal = watch::Sender::new(at.0);
        let (applied, behind, lost) = (AtomicU64::new(at.0), Mutex::new(None), OnceLock::new());
        Ok(Self { store, collections, applied, signal, load, behind, lost })
    }

    /// The state some revisions ago, or now when that has been compacted away.
    async fn read(
        store: &Arc<dyn Store>,
        newest: Revision,
    ) -> Result<(Revision, Vec<control_plane_store::Entry>), Error> {
        let past = Revision(newest.0.saturating_sub(REPLAY_REVISIONS));
        let page = match store.list(Range::all(ROOT), Some(past)).await {
            Ok(page) => page,
            Err(control_plane_store::Error::Compacted { oldest, .. }) => {
                store.list(Range::all(ROOT), Some(oldest)).await?
            }
            Err(error) => return Err(error.into()),
        };
        Ok((page.revision, page.entries))
    }

    /// Follows the store until `shutdown`, or until the store fails.
    pub(crate) async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut stream = self.store.watch(ROOT, self.applied());
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                batch = stream.next() => batch,
            };
            match batch {
                Some(Ok(batch)) => self.apply(&batch),
                lost => {
                    let error = lost.and_then(Result::err).unwrap_or(control_plane_store::Error::Closed);
                    // Whoever waits is told what it is, and not only that it takes long.
                    let _ = self.lost.set(error.clone());
                    return Err(error.into());
                }
            }
        }
    }

    fn apply(&self, batch: &Batch) {
        // Consecutive changes of one collection share one new snapshot.
        let mut rest = &batch[..];
        while let Some(first) = rest.first() {
            let Some(collection) = collection_of(&self.collections, &first.key) else {
                rest = &rest[1..];
                continue;
            };
            let prefix = collection.prefix();
            let same = rest.iter().position(|event| !event.key.starts_with(prefix)).unwrap_or(rest.len());
            let (run, after) = rest.split_at(same);
            collection.apply(run);
            rest = after;
        }
        if let Some(last) = batch.last() {
            self.applied.store(last.revision.0, Ordering::Release);
            self.signal.send_replace(last.revision.0);
        }
    }

    /// Whether the cache follows the store. Being behind is nothing: each write is in the store first. Standing still behind it is.
    pub(crate) fn is_moving(&self, newest: Revision, now: Instant) -> Result<(), String> {
        let applied = self.applied();
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        match *behind {
            _ if applied >= newest => *behind = None,
            Some((at, since)) if at == applied => {
                let stands = now.saturating_duration_since(since);
                if stands >= STANDS_STILL_MAX {
                    let seconds = stands.as_secs();
                    return Err(format!("stands at revision {applied} of {newest} for {seconds} seconds"));
                }
            }
            _ => *behind = Some((applied, now)),
        }
        Ok(())
    }

    /// Bytes of events that wait for watchers.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.load.bytes()
    }

    /// Everything up to here is in the snapshots.
    pub(crate) fn applied(&self) -> Revision {
        Revision(self.applied.load(Ordering::Acquire))
    }

    /// Waits until a revision is in the snapshots; quickly refused when it lies in the future.
    pub(crate) async fn wait_for(&self, wanted: Revision) -> Result<(), Error> {
        if self.applied() >= wanted {
            return Ok(());
        }
        if let Some(error) = self.lost.get() {
            return Err(error.clone().into());
        }
        let mut receiver = self.signal.subscribe();
        let caught_up = receiver.wait_for(|applied| *applied >= wanted.0);
        match tokio::time::timeout(CATCH_UP_MAX, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            _ => match self.lost.get() {
                Some(error) => Err(error.clone().into()),
                None => Err(Error::Behind { wanted, applied: self.applied() }),
            },
        }
    }

    /// Waits until everything that was acknowledged before this call is in the snapshots.
    pub(crate) async fn catch_up(&self) -> Result<(), Error> {
        let newest = self.store.revision().await?;
        self.wait_for(newest).await
    }

    /// The collection of a row; `None` for a kind that is never stored.
    pub(crate) fn collection(&self, row: &Row) -> Option<&Arc<Collection>> {
        self.collections.get(&row.storage_prefix())
    }

    /// The collection of a built-in storage resource.
    pub(crate) fn of(&self, group: &str, resource: &str) -> Option<&Arc<Collection>> {
        let group = if group.is_empty() { "core" } else { group };
        self.collections.get(&format!("{ROOT}{group}/{resource}/"))
    }

    pub(crate) fn collections(&self) -> impl Iterator<Item = &Arc<Collection>> {
        self.collections.values()
    }
}

/// The row whose group and version the bytes are stored in; its aliases are converted.
pub(crate) fn is_storage_row(row: &Row) -> bool {
    row.group == row.storage.group && row.version == row.storage.version
}

fn collection_of<'a>(collections: &'a HashMap<String, Arc<Collection>>, key: &str) -> Option<&'a Arc<Collection>> {
    let group = key.strip_prefix(ROOT)?.find('/')? + ROOT.len() + 1;
    let end = group + key[group..].find('/')? + 1;
    collections.get(&key[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane_store::{Sqlite, SqliteConfig};

    #[tokio::test]
    async fn only_a_cache_that_stands_still_is_ill() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Sqlite::open(&SqliteConfig::new(directory.path().join("s.db"))).unwrap());
        let cache = Cache::load(store).await.unwrap();
        let (at, start) = (cache.applied().0, Instant::now());
        let check = |newest: u64, seconds: u64, expect: bool| {
            let now = start.checked_add(Duration::from_secs(seconds)).unwrap();
            assert_eq!(cache.is_moving(Revision(newest), now).is_ok(), expect, "{newest} after {seconds} seconds");
        };
        check(at, 0, true);
        // A write a moment ago, however long nothing was written before.
        check(at + 1, 1000, true);
        check(at + 9, 1001, true);
        cache.applied.store(at + 5, Ordering::Release);
        // Behind, but not where it was.
        check(at + 20, 1010, true);
        check(at + 20, 1016, false);
        cache.applied.store(at + 20, Ordering::Release);
        check(at + 20, 1017, true);
    }
}
