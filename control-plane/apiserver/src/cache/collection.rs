//! One resource's objects, its recent history and its watchers. The only writer is the cache's task.
//!
//!     change --> snapshot
//!            --> each watcher whose filter it touches --queue full--> dropped: the client starts over from where it was
//!            --> history (bounded; its oldest end is `floor`)
//!
//! Invariant: history holds every change after `floor`, in order; a watcher gets every change after its start or is dropped, and
//! what it has heard of is in the snapshot.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use control_plane_api::Row;
use control_plane_store::{Entry, Event, Revision};
use tokio::sync::mpsc;

use super::{Cached, Filter, shelf::Shelf};

/// Changes kept for watches that start in the past; a watch from before the oldest is told 410.
const HISTORY_CHANGES_MAX: usize = 4096;
/// Bytes of objects that the history alone may keep alive.
const HISTORY_BYTES_MAX: usize = 2 << 20;
/// Changes waiting for one watcher; beyond that it is dropped.
const WATCHER_QUEUE_MAX: usize = 1024;

/// A change to one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) before: Option<Arc<Cached>>,
    pub(crate) after: Option<Arc<Cached>>,
}

/// A change as one watcher sees it through its filter.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    Added(Arc<Cached>),
    Modified(Arc<Cached>),
    /// What was there, and the revision at which it went, or stopped matching.
    Deleted(Arc<Cached>, Revision),
}

/// The objects at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    shelf: Shelf<Cached>,
    /// The last change in this collection.
    pub(crate) changed: Revision,
}

impl Snapshot {
    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Cached>> {
        self.shelf.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.shelf.len()
    }

    pub(crate) fn range<'a>(&'a self, prefix: &'a str, after: &'a str) -> impl Iterator<Item = &'a Arc<Cached>> {
        self.shelf.range(prefix, after)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Cached>> {
        self.shelf.range("", "")
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// With what is there now.
    Now,
    /// With the first change after a revision.
    After(Revision),
}

/// A started watch.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// What to send first, in order.
    pub(crate) backlog: Vec<Notice>,
    /// The revision that the backlog leads to.
    pub(crate) revision: Revision,
    pub(crate) receiver: mpsc::Receiver<Notice>,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    sender: mpsc::Sender<Notice>,
}

#[derive(Debug)]
struct Feed {
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    /// The history is complete after this.
    floor: Revision,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
pub(crate) struct Collection {
    row: &'static Row,
    prefix: String,
    snapshot: ArcSwap<Snapshot>,
    feed: Mutex<Feed>,
}

impl Collection {
    pub(super) fn new(row: &'static Row, prefix: String, at: Revision) -> Self {
        let snapshot = Snapshot { shelf: Shelf::default(), changed: at };
        let feed = Feed { history: VecDeque::new(), history_bytes: 0, floor: at, watchers: Vec::new() };
        Self { row, prefix, snapshot: ArcSwap::from_pointee(snapshot), feed: Mutex::new(feed) }
    }

    pub(super) fn fill(&self, entries: &[Arc<Cached>], at: Revision) {
        self.snapshot.store(Arc::new(Snapshot { shelf: Shelf::from_sorted(entries), changed: at }));
    }

    pub(crate) fn parse(&self, entry: &Entry) -> Option<Arc<Cached>> {
        Cached::new(self.row, entry).map(Arc::new)
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The row in whose version the objects are stored.
    pub(crate) fn row(&self) -> &'static Row {
        self.row
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The storage key of an object.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        match self.row.namespaced {
            true => Arc::from(format!("{}{namespace}/{name}", self.prefix)),
            false => Arc::from(format!("{}{name}", self.prefix)),
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Cached>> {
        self.snapshot.load().get(&self.key(namespace, name)).cloned()
    }

    /// Takes in changes of this collection, in order.
    pub(super) fn apply(&self, events: &[Event]) {
        let mut snapshot = Snapshot::clone(&self.snapshot.load());
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            let before = snapshot.shelf.get(&event.key).cloned();
            let after = event.entry.as_ref().and_then(|entry| self.parse(entry));
            match &after {
                Some(after) => snapshot.shelf.insert(Arc::clone(after)),
                None => snapshot.shelf.remove(&event.key),
            }
            snapshot.changed = event.revision;
            if before.is_some() || after.is_some() {
                changes.push(Change { revision: event.revision, before, after });
            }
        }
        // Both while the feed is locked: a subscriber sees snapshot and watchers at the same moment. The snapshot first: whoever hears of a
        // pod may ask for what the node authorizer grants by that pod.
        let mut feed = self.feed();
        self.snapshot.store(Arc::new(snapshot));
        changes.into_iter().for_each(|change| feed.push(change));
    }

    /// Starts a watch; `None` when the history no longer reaches back to its start.
    pub(crate) fn subscribe(&self, filter: Filter, start: Start) -> Option<Subscription> {
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE_MAX);
        let mut feed = self.feed();
        let snapshot = self.snapshot.load();
        let backlog = match start {
            Start::Now => {
                let entries = snapshot.range(filter.prefix(), "").filter(|cached| filter.matches(cached));
                entries.cloned().map(Notice::Added).collect()
            }
            Start::After(revision) if revision < feed.floor => return None,
            Start::After(revision) => {
                let newer = feed.history.iter().filter(|change| change.revision > revision);
                newer.filter_map(|change| change.seen_through(&filter)).collect()
            }
        };
        let revision = snapshot.changed;
        feed.watchers.push(Watcher { filter, sender });
        Some(Subscription { backlog, revision, receiver })
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    fn push(&mut self, change: Change) {
        self.watchers.retain(|watcher| match change.seen_through(&watcher.filter) {
            Some(notice) => watcher.sender.try_send(notice).is_ok(),
            None => !watcher.sender.is_closed(),
        });
        self.history_bytes += change.weight();
        self.history.push_back(Arc::new(change));
        while self.history.len() > HISTORY_CHANGES_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes = self.history_bytes.saturating_sub(oldest.weight());
            self.floor = oldest.revision;
        }
    }
}

impl Change {
    /// What the change kept alive when it came: its former version (the new one is in the snapshot).
    fn weight(&self) -> usize {
        self.before.as_ref().or(self.after.as_ref()).map_or(0, |cached| cached.weight())
    }

    fn seen_through(&self, filter: &Filter) -> Option<Notice> {
        let matches = |cached: &Option<Arc<Cached>>| cached.as_ref().filter(|cached| filter.matches(cached)).cloned();
        match (matches(&self.before), matches(&self.after)) {
            (None, Some(after)) => Some(Notice::Added(after)),
            (Some(_), Some(after)) => Some(Notice::Modified(after)),
            (Some(before), None) => Some(Notice::Deleted(before, self.revision)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use control_plane_api::selector::{FieldSelector, Selector};

    #[test]
    fn what_a_watcher_hears_is_in_the_snapshot() {
        const CHANGES: u64 = 2000;
        let row = control_plane_api::rows().iter().find(|row| row.resource == "configmaps").unwrap();
        let collection = Arc::new(Collection::new(row, row.storage_prefix(), Revision(0)));
        let filter = Filter::new(row, row.storage_prefix(), Selector::default(), FieldSelector::default());
        let mut watch = collection.subscribe(filter, Start::Now).unwrap();
        let heard = Arc::clone(&collection);
        let listener = std::thread::spawn(move || {
            for _ in 0..CHANGES {
                let Some(Notice::Added(cached)) = watch.receiver.blocking_recv() else { panic!("dropped") };
                assert!(heard.snapshot().get(cached.key()).is_some(), "{}", cached.key());
            }
        });
        for number in 1..=CHANGES {
            let (key, revision) = (collection.key("default", &format!("c{number}")), Revision(number));
            let value = Bytes::from_static(br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}"#);
            let entry = Some(Entry { key: Arc::clone(&key), value, created: revision, revision });
            collection.apply(&[Event { revision, key, entry, previous: None }]);
            // Never more than the watcher's queue holds.
            while number % 512 == 0 && !is_heard(&collection) {
                std::thread::yield_now();
            }
        }
        listener.join().unwrap();
    }

    fn is_heard(collection: &Collection) -> bool {
        collection
            .feed()
            .watchers
            .iter()
            .all(|watcher| watcher.sender.is_closed() || watcher.sender.capacity() == WATCHER_QUEUE_MAX)
    }
}
