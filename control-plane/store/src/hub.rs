//! Tells watchers what was committed: live from a broadcast, and from the log when a watcher starts in the past or falls behind.
//! Holds no history of its own.
//!
//!     Behind --log read up to the newest revision--> Live --broadcast lagged--> Behind
//!
//! Invariant: the broadcast is fed after the commit, in order of revision, by the one writer thread; a watcher hands on revision
//! n only after every matching revision below n.

use std::sync::Arc;

use futures::stream::BoxStream;
use tokio::sync::broadcast;

use crate::{Batch, Error, Event, Revision};

/// Batches kept for watchers that are busy; one that is further behind reads the log.
const BACKLOG_BATCHES_MAX: usize = 1024;

/// The sending half, owned by the writer.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    sender: broadcast::Sender<Batch>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG_BATCHES_MAX) }
    }

    /// Feeds one committed batch. Nobody listening is not an error.
    pub(crate) fn publish(&self, batch: Batch) {
        let _ = self.sender.send(batch);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.sender.subscribe()
    }
}

/// Where a watcher that is behind reads.
pub(crate) trait Log: Send + Sync + 'static {
    /// Changes with `after < revision`, ascending, at most some thousands; empty when there is none.
    fn changes(
        self: Arc<Self>,
        prefix: Arc<str>,
        after: Revision,
    ) -> futures::future::BoxFuture<'static, Result<LogPage, Error>>;
}

/// A part of the log.
#[derive(Debug)]
pub(crate) struct LogPage {
    pub(crate) events: Vec<Event>,
    /// Every matching change up to here is in `events` or was delivered before.
    pub(crate) complete_to: Revision,
    /// Whether the log goes on after `complete_to`.
    pub(crate) more: bool,
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
    let watcher = Watcher { log, prefix, seen: from, receiver: hub.subscribe(), place: Place::Behind };
    Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        let item = watcher.next().await?;
        Some((item, watcher))
    }))
}

impl<L: Log> Watcher<L> {
    async fn next(&mut self) -> Option<Result<Batch, Error>> {
        loop {
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
