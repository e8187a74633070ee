//! The one thread that writes: takes what has gathered, applies it in one transaction, commits, tells the hub, answers.
//! Reads nothing for others; see `reader.rs`.
//!
//!     waiting --first command--> gathering --queue empty or group full--> committing --> publishing --> answering --> waiting
//!        |                                                                       |
//!        +--history too large, compaction asked: one step, then the queue again  +--the disk did not confirm--> refusing for ever
//!
//! Invariant: nobody is told of a change, neither its writer nor a watcher, before the commit has returned.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{
    classify,
    compaction::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, History, shrink},
    reader::{bounds, newest, to_sql},
};
use crate::{Change, Entry, Error, Event, Precondition, Revision, WriteError, hub::Hub};

/// Writes that share one commit.
const GROUP_MAX: usize = 512;
/// Commands waiting; a writer beyond that waits for room.
const QUEUE_MAX: usize = 4096;

/// What the thread is asked to do.
pub(super) enum Command {
    Write {
        key: Arc<str>,
        precondition: Precondition,
        change: Change,
        reply: oneshot::Sender<Result<Revision, WriteError>>,
    },
    Compact {
        at: Revision,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// The sending half.
pub(super) struct Writer {
    /// `None` only while dropping.
    queue: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    newest: Arc<AtomicU64>,
}

impl Drop for Writer {
    /// Waits until what was queued is committed: the file's lock is released only after this.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    pub(super) fn start(connection: Connection, path: &Path, hub: Hub) -> Result<Self, Error> {
        let (newest, _) = bounds(&connection).map_err(|source| classify(path, "read the newest revision", source))?;
        let newest = Arc::new(AtomicU64::new(newest.0));
        let history = History::load(&connection).map_err(|source| classify(path, "read the history", source))?;
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let thread = Thread {
            connection,
            path: path.to_owned(),
            hub,
            newest: Arc::clone(&newest),
            history,
            target: None,
            asked: Vec::new(),
            // A file may have been left with room.
            shrinking: true,
            refused: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || thread.run(commands))
            .map_err(|source| Error::Thread { source: Arc::new(source) })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), newest })
    }

    pub(super) async fn send(&self, command: Command) -> Result<(), Error> {
        let queue = self.queue.as_ref().ok_or(Error::Closed)?;
        queue.send(command).await.map_err(|_| Error::Closed)
    }

    pub(super) fn revision(&self) -> Revision {
        Revision(self.newest.load(Ordering::Acquire))
    }
}

type WriteCommand = (Arc<str>, Precondition, Change, oneshot::Sender<Result<Revision, WriteError>>);
type WriteReply = (oneshot::Sender<Result<Revision, WriteError>>, Result<Revision, WriteError>);

struct Thread {
    connection: Connection,
    path: PathBuf,
    hub: Hub,
    newest: Arc<AtomicU64>,
    history: History,
    /// Up to where the history is to go.
    target: Option<Revision>,
    /// Who waits for a compaction, and up to where.
    asked: Vec<(Revision, oneshot::Sender<Result<(), Error>>)>,
    /// There may be pages to give back.
    shrinking: bool,
    /// Why nothing is written any more.
    refused: Option<Error>,
}

impl Thread {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            let has_work = self.target.is_some() || self.shrinking;
            if has_work {
                while group.len() < GROUP_MAX
                    && let Ok(command) = commands.try_recv()
                {
                    group.push(command);
                }
                if group.is_empty() && commands.is_closed() && commands.is_empty() {
                    break;
                }
            } else if commands.blocking_recv_many(&mut group, GROUP_MAX) == 0 {
                break;
            }
            self.take(&mut group);
            if has_work {
                self.tidy();
            }
        }
        // A last checkpoint keeps the next start short; the log is complete without it.
        if self.refused.is_none() {
            let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }

    fn take(&mut self, group: &mut Vec<Command>) {
        let mut writes = Vec::with_capacity(group.len());
        for command in group.drain(..) {
            match command {
                Command::Write { key, precondition, change, reply } => {
                    writes.push((key, precondition, change, reply));
                }
                Command::Compact { at, reply } => self.asked.push((at, reply)),
            }
        }
        if let Some(error) = &self.refused {
            for (.., reply) in writes {
                let _ = reply.send(Err(WriteError::Store(error.clone())));
            }
            for (_, reply) in self.asked.drain(..) {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        let wrote = !writes.is_empty();
        if wrote {
            self.write(writes);
        }
        let newest = Revision(self.newest.load(Ordering::Acquire));
        let asked = self.asked.iter().map(|(at, _)| *at.min(&newest)).max();
        // Nobody who follows is cut off by the limits, nor who reads a start to follow from before anything is written: they are the
        // server's own, and read on at once.
        let follows = self.hub.slowest().or(wrote.then_some(newest));
        let surplus =
            self.history.surplus(HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX).zip(follows).map(|(at, seen)| at.min(seen));
        self.target = self.target.max(asked).max(surplus).filter(|at| *at > self.history.compacted);
        self.answer();
    }

    /// One step of compaction, or of giving pages back.
    fn tidy(&mut self) {
        if self.refused.is_some() {
            (self.target, self.shrinking) = (None, false);
            return;
        }
        let outcome = match self.target {
            Some(target) => self.history.step(&mut self.connection, target).map(|reached| {
                self.target = self.target.filter(|_| !reached);
                self.shrinking |= reached;
            }),
            None => shrink(&self.connection).map(|more| self.shrinking = more),
        };
        match outcome {
            Ok(()) => self.answer(),
            Err(source) => {
                // Later, with the next change: what keeps the file from being compacted may keep it for long.
                (self.target, self.shrinking) = (None, false);
                let error = classify(&self.path, "compact", source);
                self.note(&error);
                for (_, reply) in self.asked.drain(..) {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Tells those whose compaction is done.
    fn answer(&mut self) {
        let newest = Revision(self.newest.load(Ordering::Acquire));
        let compacted = self.history.compacted;
        for (_, reply) in self.asked.extract_if(.., |(at, _)| (*at).min(newest) <= compacted) {
            let _ = reply.send(Ok(()));
        }
    }

    fn note(&mut self, error: &Error) {
        if matches!(error, Error::Unconfirmed { .. }) {
            tracing::error!(error = %crate::chain(error), "the store takes no more writes");
            self.refused = Some(error.clone());
        }
    }

    fn write(&mut self, writes: Vec<WriteCommand>) {
        let mut newest = Revision(self.newest.load(Ordering::Acquire));
        let mut events = Vec::with_capacity(writes.len());
        let mut replies: Vec<WriteReply> = Vec::with_capacity(writes.len());
        let mut unanswered = Vec::new();
        let outcome = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut writes = writes.into_iter();
            for (key, precondition, change, reply) in writes.by_ref() {
                match apply(&transaction, newest, &key, precondition, change) {
                    Ok(Applied::Changed(event)) => {
                        newest = event.revision;
                        replies.push((reply, Ok(newest)));
                        events.push(event);
                    }
                    Ok(Applied::Unchanged) => replies.push((reply, Ok(newest))),
                    Ok(Applied::Refused(current)) => replies.push((reply, Err(WriteError::Conflict { current }))),
                    Err(error) => {
                        unanswered.push(reply);
                        unanswered.extend(writes.map(|(_, _, _, reply)| reply));
                        return Err(error);
                    }
                }
            }
            transaction.commit()
        })();
        match outcome {
            Ok(()) => {
                self.newest.store(newest.0, Ordering::Release);
                for event in &events {
                    if let Some(previous) = &event.previous {
                        self.history.note(event.revision, previous.value.len());
                    }
                }
                if !events.is_empty() {
                    self.hub.publish(Arc::from(events));
                }
                for (reply, answer) in replies {
                    let _ = reply.send(answer);
                }
            }
            Err(source) => {
                // The whole group was rolled back: nobody's change is there, so everybody is told.
                let error = classify(&self.path, "commit", source);
                self.note(&error);
                let all = replies.into_iter().map(|(reply, _)| reply).chain(unanswered);
                for reply in all {
                    let _ = reply.send(Err(WriteError::Store(error.clone())));
                }
            }
        }
    }
}

enum Applied {
    Changed(Event),
    Unchanged,
    Refused(Option<Entry>),
}

fn apply(
    transaction: &Transaction<'_>,
    newest_revision: Revision,
    key: &Arc<str>,
    precondition: Precondition,
    change: Change,
) -> rusqlite::Result<Applied> {
    let current = newest(transaction, key)?;
    let holds = match precondition {
        Precondition::Any => true,
        Precondition::Absent => current.is_none(),
        Precondition::At(revision) => current.as_ref().is_some_and(|entry| entry.revision == revision),
    };
    if !holds {
        return Ok(Applied::Refused(current));
    }
    let revision = Revision(newest_revision.0 + 1);
    let created = current.as_ref().map_or(revision, |entry| entry.created);
    let (value, entry) = match change {
        Change::Put(value) => {
            let entry = Entry { key: Arc::clone(key), value: value.clone(), created, revision };
            (Some(value), Some(entry))
        }
        Change::Delete if current.is_none() => return Ok(Applied::Unchanged),
        Change::Delete => (None, None),
    };
    let mut statement =
        transaction.prepare_cached("INSERT INTO log (revision, key, created, value) VALUES (?1, ?2, ?3, ?4)")?;
    statement.execute(params![to_sql(revision), &**key, to_sql(created), value.as_deref()])?;
    Ok(Applied::Changed(Event { revision, key: Arc::clone(key), entry, previous: current }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn thread() -> Thread {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(super::super::SCHEMA).unwrap();
        Thread {
            connection,
            path: PathBuf::from("state.db"),
            hub: Hub::new(),
            newest: Arc::default(),
            history: History::default(),
            target: None,
            asked: Vec::new(),
            shrinking: false,
            refused: None,
        }
    }

    fn put(thread: &mut Thread) -> Result<Revision, WriteError> {
        let (reply, mut answer) = oneshot::channel();
        let change = Change::Put(bytes::Bytes::from_static(b"v"));
        thread.take(&mut vec![Command::Write { key: Arc::from("/k"), precondition: Precondition::Any, change, reply }]);
        answer.try_recv().unwrap()
    }

    #[test]
    fn a_sync_that_failed_ends_writing_and_other_failures_do_not() {
        let failure = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let mut thread = thread();
        assert_eq!(put(&mut thread).unwrap(), Revision(1));
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_BUSY, ffi::SQLITE_CORRUPT] {
            let error = classify(&thread.path, "commit", failure(code));
            thread.note(&error);
        }
        assert_eq!(put(&mut thread).unwrap(), Revision(2));
        let error = classify(&thread.path, "commit", failure(ffi::SQLITE_IOERR_FSYNC));
        thread.note(&error);
        for _ in 0..2 {
            let refused = put(&mut thread).unwrap_err();
            assert!(matches!(refused, WriteError::Store(Error::Unconfirmed { .. })), "{refused}");
        }
        let (reply, mut answer) = oneshot::channel();
        thread.take(&mut vec![Command::Compact { at: Revision(1), reply }]);
        assert!(matches!(answer.try_recv(), Ok(Err(Error::Unconfirmed { .. }))));
        assert_eq!(newest(&thread.connection, "/k").unwrap().unwrap().revision, Revision(2));
    }
}
