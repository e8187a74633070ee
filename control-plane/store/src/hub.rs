//! Tells watchers what was committed: live from a broadcast, and from the log when a watcher starts in the past or falls behind.
//! Holds no history of its own.
//!
//!     Behind --log read up to the newest revision--> Live --broadcast lagged, or too many bytes wait--> Behind
//!
//! What waits for the slowest watcher is bounded in batches and in bytes; beyond that a mark goes out instead of the batch, and
//! whoever meets it reads the log. The log may be compacted only up to what every watcher has seen: watchers are few, and the
//! server's own.
//!
//! Invariant: the broadcast is fed after the commit, in order of revision, by the one writer thread; a watcher hands on revision
//! n only after every matching revision below n.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::stream::BoxStream;
use tokio::sync::broadcast;

use crate::{Batch, Changes, Error, Event, Revision};

/// Batches kept for watchers that are busy; one that is further behind reads the log.
const BACKLOG_BATCHES_MAX: usize = 1024;

/// Bytes of objects in them.
const BACKLOG_BYTES_MAX: usize = 16 << 20;

/// The sending half, owned by the writer.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    sender: broadcast::Sender<Batch>,
    waiting: Arc<Mutex<Waiting>>,
}

/// What was sent, and how far the watchers are.
#[derive(Debug, Default)]
struct Waiting {
    /// Last revision and bytes of each batch that some watcher may not have taken yet.
    batches: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Up to where each watcher has been told everything.
    seen: Vec<Weak<AtomicU64>>,
}

impl Waiting {
    /// The least of what the watchers have seen; nothing when there are none.
    fn slowest(&mut self) -> Option<u64> {
        self.seen.retain(|seen| seen.strong_count() > 0);
        self.seen.iter().filter_map(Weak::upgrade).map(|seen| seen.load(Ordering::Acquire)).min()
    }

    /// Whether a batch may wait for its watchers.
    fn take(&mut self, last: u64, bytes: usize) -> bool {
        let slowest = self.slowest().unwrap_or(u64::MAX);
        while let Some((_, bytes)) = self.batches.pop_front_if(|(last, _)| *last <= slowest) {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        let fits = self.batches.is_empty() || self.bytes.saturating_add(bytes) <= BACKLOG_BYTES_MAX;
        if fits {
            self.batches.push_back((last, bytes));
            self.bytes = self.bytes.saturating_add(bytes);
        }
        fits
    }
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG_BATCHES_MAX), waiting: Arc::default() }
    }

    /// Feeds one committed batch. Nobody listening is not an error.
    pub(crate) fn publish(&self, batch: Batch) {
        let Some(last) = batch.last() else { return };
        let size = |entry: &Option<crate::Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
        let bytes = batch.iter().map(|event| size(&event.entry).saturating_add(size(&event.previous))).sum();
        let fits = self.waiting().take(last.revision.0, bytes);
        let _ = self.sender.send(if fits { batch } else { Arc::from([]) });
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.sender.subscribe()
    }

    /// Every watcher has seen everything up to here; nothing when there is no watcher.
    pub(crate) fn slowest(&self) -> Option<Revision> {
        self.waiting().slowest().map(Revision)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a watcher that is behind reads.
pub(crate) trait Log: Send + Sync + 'static {
    /// Changes with `after < revision`, ascending, at most some thousands; empty when there is none.
    fn changes(
        self: Arc<Self>,
        prefix: Arc<str>,
        after: Revision,
    ) -> futures::future::BoxFuture<'static, Result<Changes, Error>>;
}

enum Place {
    Behind,
    Live,
    Ended,
}

struct Watcher<L> {
    log: Arc<L>,
    prefix: Arc<str>,
    /// Everything up to here has been delivered.
    seen: Revision,
    /// The same, for the hub.
    told: Arc<AtomicU64>,
    receiver: broadcast::Receiver<Batch>,
    place: Place,
}

/// Every change after `from` under `prefix`.
pub(crate) fn watch<L: Log>(
    hub: &Hub,
    log: Arc<L>,
    prefix: Arc<str>,
    from: Revision,
) -> BoxStream<'static, Result<Batch, Error>> {
    // Subscribing before the log is read is what leaves no gap: what is committed after this line is in the receiver.
    let told = Arc::new(AtomicU64::new(from.0));
    hub.waiting().seen.push(Arc::downgrade(&told));
    let watcher = Watcher { log, prefix, seen: from, told, receiver: hub.subscribe(), place: Place::Behind };
    Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        let item = watcher.next().await?;
        Some((item, watcher))
    }))
}

impl<L: Log> Watcher<L> {
    async fn next(&mut self) -> Option<Result<Batch, Error>> {
        loop {
            // Asked again, the caller has taken what it got.
            self.told.store(self.seen.0, Ordering::Release);
            let events = match self.place {
                Place::Ended => return None,
                Place::Behind => match Arc::clone(&self.log).changes(Arc::clone(&self.prefix), self.seen).await {
                    Ok(page) => {
                        self.seen = self.seen.max(page.complete_to);
                        if !page.more {
                            self.place = Place::Live;
                        }
                        Arc::from(page.events)
                    }
                    Err(error) => {
                        self.place = Place::Ended;
                        return Some(Err(error));
                    }
                },
                Place::Live => match self.receiver.recv().await {
                    // The mark: a batch that did not fit.
                    Ok(batch) if batch.is_empty() => {
                        self.place = Place::Behind;
                        continue;
                    }
                    Ok(batch) => self.fresh(&batch),
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.place = Place::Behind;
                        continue;
                    }
                    Err(broadcast::error::RecvError::Closed) => {
                        self.place = Place::Ended;
                        return Some(Err(Error::Closed));
                    }
                },
            };
            if !events.is_empty() {
                return Some(Ok(events));
            }
        }
    }

    /// The part of a live batch that this watcher has not seen and asked for; the batch itself when that is all of it.
    fn fresh(&mut self, batch: &Batch) -> Batch {
        let seen = self.seen;
        let wanted = |event: &Event| event.revision > seen && event.key.starts_with(&*self.prefix);
        let kept = if batch.iter().all(wanted) {
            Arc::clone(batch)
        } else {
            batch.iter().filter(|event| wanted(event)).cloned().collect()
        };
        if let Some(last) = batch.last() {
            self.seen = self.seen.max(last.revision);
        }
        kept
    }
}
