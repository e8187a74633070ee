//! One resource's objects, its recent history and its watchers. The only writer is the cache's task.
//!
//!     change --> snapshot
//!            --> each watcher whose filter it touches (queue.rs) --full--> dropped: the client starts over from where it was
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

use super::{
    Cached, Filter,
    encoded::Encoded,
    queue::{Load, Receiver, Sender, queue},
    shelf::Shelf,
};

/// Changes kept for watches that start in the past; a watch from before the oldest begins with the store's log.
const HISTORY_CHANGES_MAX: usize = 4096;
/// Bytes of objects that the history alone may keep alive.
const HISTORY_BYTES_MAX: usize = 2 << 20;

/// A change to one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) before: Option<Arc<Cached>>,
    pub(crate) after: Option<Arc<Cached>>,
}

/// A change as one watcher sees it through its filter.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) kind: Kind,
    /// What is there now, or was there before it went.
    pub(crate) cached: Arc<Cached>,
    /// Made once for all watchers that want the same; `None` for what only one is told.
    pub(crate) encoded: Option<Arc<Encoded>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Added,
    Modified,
    /// Went, or stopped matching, at this revision.
    Deleted(Revision),
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted(_) => "DELETED",
        }
    }
}

impl Notice {
    fn of(kind: Kind, cached: Arc<Cached>) -> Self {
        Self { kind, cached, encoded: None }
    }

    /// Bytes held, roughly.
    pub(crate) fn weight(&self) -> usize {
        self.cached.weight()
    }
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
    /// The revision that what is sent first leads to.
    pub(crate) revision: Revision,
    pub(crate) receiver: Receiver,
}

/// Why a watch does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The history no longer reaches back to its start.
    Expired,
    /// There are as many as there may be.
    TooMany,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    sender: Sender,
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
    load: Arc<Load>,
}

impl Collection {
    pub(super) fn new(row: &'static Row, prefix: String, at: Revision, load: Arc<Load>) -> Self {
        let snapshot = Snapshot { shelf: Shelf::default(), changed: at };
        let feed = Feed { history: VecDeque::new(), history_bytes: 0, floor: at, watchers: Vec::new() };
        Self { row, prefix, snapshot: ArcSwap::from_pointee(snapshot), feed: Mutex::new(feed), load }
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

    /// Starts a watch.
    pub(crate) fn subscribe(&self, filter: Filter, start: Start) -> Result<Subscription, Refused> {
        let (sender, receiver) = queue(&self.load).ok_or(Refused::TooMany)?;
        let mut feed = self.feed();
        // Those that ended since the last change.
        feed.watchers.retain(|watcher| !watcher.sender.is_closed());
        let snapshot = self.snapshot.load();
        let backlog = match start {
            Start::Now => {
                let entries = snapshot.range(filter.prefix(), "").filter(|cached| filter.matches(cached));
                entries.cloned().map(|cached| Notice::of(Kind::Added, cached)).collect()
            }
            Start::After(revision) if revision < feed.floor => return Err(Refused::Expired),
            Start::After(revision) => {
                let newer = feed.history.iter().filter(|change| change.revision > revision);
                newer.filter_map(|change| change.seen_through(&filter)).collect()
            }
        };
        sender.fill(backlog);
        let revision = snapshot.changed;
        feed.watchers.push(Watcher { filter, sender });
        Ok(Subscription { revision, receiver })
    }

    /// Starts a watch from before the history. What lies between its start and the returned revision is in the store's log only, and
    /// is told before anything of this queue.
    pub(crate) fn subscribe_late(&self, filter: Filter) -> Result<(Subscription, Revision), Refused> {
        let (sender, receiver) = queue(&self.load).ok_or(Refused::TooMany)?;
        let mut feed = self.feed();
        sender.fill(feed.history.iter().filter_map(|change| change.seen_through(&filter)).collect());
        let (revision, floor) = (self.snapshot.load().changed, feed.floor);
        feed.watchers.push(Watcher { filter, sender });
        Ok((Subscription { revision, receiver }, floor))
    }

    /// A change from the store's log as a watcher sees it.
    pub(crate) fn notice(&self, event: &Event, filter: &Filter) -> Option<Notice> {
        let parse = |entry: &Option<Entry>| entry.as_ref().and_then(|entry| self.parse(entry));
        let (before, after) = (parse(&event.previous), parse(&event.entry));
        Change { revision: event.revision, before, after }.seen_through(filter)
    }

    /// Watches that run.
    pub(crate) fn watchers(&self) -> usize {
        self.feed().watchers.iter().filter(|watcher| !watcher.sender.is_closed()).count()
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    fn push(&mut self, change: Change) {
        let mut encoded: Option<Arc<Encoded>> = None;
        self.watchers.retain(|watcher| match change.seen_through(&watcher.filter) {
            Some(mut notice) => {
                notice.encoded = Some(Arc::clone(encoded.get_or_insert_default()));
                watcher.sender.push(notice)
            }
            None => !watcher.sender.is_closed(),
        });
        self.history_bytes = self.history_bytes.saturating_add(change.weight());
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
            (None, Some(after)) => Some(Notice::of(Kind::Added, after)),
            (Some(_), Some(after)) => Some(Notice::of(Kind::Modified, after)),
            (Some(before), None) => Some(Notice::of(Kind::Deleted(self.revision), before)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use control_plane_api::selector::{FieldSelector, Selector};

    fn collection() -> (Arc<Collection>, Filter, Arc<Load>) {
        let row = control_plane_api::rows().iter().find(|row| row.resource == "configmaps").unwrap();
        let load = Arc::new(Load::default());
        let collection = Arc::new(Collection::new(row, row.storage_prefix(), Revision(0), Arc::clone(&load)));
        let filter = Filter::new(row, row.storage_prefix(), Selector::default(), FieldSelector::default());
        (collection, filter, load)
    }

    fn put(collection: &Collection, name: &str, number: u64, size: usize) {
        let (key, revision) = (collection.key("default", name), Revision(number));
        let value = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{}},"data":{{"d":"{}"}}}}"#,
            "x".repeat(size)
        );
        let entry = Some(Entry { key: Arc::clone(&key), value: Bytes::from(value), created: revision, revision });
        collection.apply(&[Event { revision, key, entry, previous: None }]);
    }

    #[test]
    fn what_a_watcher_hears_is_in_the_snapshot() {
        const CHANGES: u64 = 2000;
        let (collection, filter, _) = collection();
        let watch = collection.subscribe(filter, Start::Now).unwrap();
        let heard = Arc::clone(&collection);
        let listener = std::thread::spawn(move || {
            for _ in 0..CHANGES {
                let Some(notice) = futures::executor::block_on(watch.receiver.recv()) else { panic!("dropped") };
                assert_eq!(notice.kind, Kind::Added);
                assert!(heard.snapshot().get(notice.cached.key()).is_some(), "{}", notice.cached.key());
            }
        });
        for number in 1..=CHANGES {
            put(&collection, &format!("c{number}"), number, 0);
            // Never more than the watcher's queue holds.
            while number % 512 == 0 && !is_heard(&collection) {
                std::thread::yield_now();
            }
        }
        listener.join().unwrap();
    }

    fn is_heard(collection: &Collection) -> bool {
        collection.feed().watchers.iter().all(|watcher| watcher.sender.is_closed() || watcher.sender.is_empty())
    }

    #[test]
    fn who_does_not_listen_is_let_go_and_what_waited_is_freed() {
        let (collection, filter, load) = collection();
        put(&collection, "c", 1, 900_000);
        let first = Arc::downgrade(collection.snapshot().all().next().unwrap());
        let watches: Vec<_> = (0..600).map(|_| collection.subscribe(filter.clone(), Start::Now).unwrap()).collect();
        for number in 2..=40 {
            put(&collection, "c", number, 900_000);
        }
        assert_eq!((collection.watchers(), load.bytes()), (0, 0), "nobody looked, and nothing waits");
        assert!(first.upgrade().is_none(), "what was there at the beginning waits neither");
        for watch in &watches {
            assert!(futures::executor::block_on(watch.receiver.recv()).is_none());
            assert!(!watch.receiver.is_empty(), "no bookmark for who missed something");
        }
        // It begins again from where it was, as long as the history reaches back.
        let again = collection.subscribe(filter.clone(), Start::After(Revision(39))).unwrap();
        assert_eq!(again.receiver.next_of_backlog().unwrap().kind, Kind::Modified);
        assert_eq!(collection.subscribe(filter, Start::After(Revision(3))).err(), Some(Refused::Expired));
    }

    #[test]
    fn who_listens_is_kept_when_others_fill_the_queues() {
        let (collection, filter, load) = collection();
        let deaf: Vec<_> = (0..100).map(|_| collection.subscribe(filter.clone(), Start::Now).unwrap()).collect();
        let listening = collection.subscribe(filter, Start::Now).unwrap();
        for number in 1..=200 {
            put(&collection, "c", number, 50_000);
            assert!(futures::executor::block_on(listening.receiver.recv()).is_some(), "{number}");
            assert!(load.bytes() <= Load::BYTES_MAX + 101 * 51_000, "{number}: {}", load.bytes());
        }
        assert_eq!(collection.watchers(), 1);
        drop(deaf);
    }

    #[test]
    fn there_are_only_so_many_watches() {
        let (collection, filter, _) = collection();
        let all: Vec<_> = (0..Load::WATCHERS_MAX)
            .map(|_| collection.subscribe(filter.clone(), Start::After(Revision(0))).unwrap())
            .collect();
        let one_more = || collection.subscribe(filter.clone(), Start::After(Revision(0)));
        assert_eq!(one_more().err(), Some(Refused::TooMany));
        drop(all);
        assert!(one_more().is_ok());
    }
}
