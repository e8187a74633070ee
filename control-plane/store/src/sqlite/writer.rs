//! The one thread that writes: takes what has gathered, applies it in one transaction, commits, tells the hub, answers.
//! Reads nothing for others; see `reader.rs`.
//!
//!     waiting --first command--> gathering --queue empty or group full--> committing --> publishing --> answering --> waiting
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
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let thread = Thread { connection, path: path.to_owned(), hub, newest: Arc::clone(&newest) };
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
}

impl Thread {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while commands.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let mut writes = Vec::with_capacity(group.len());
            let mut compactions = Vec::new();
            for command in group.drain(..) {
                match command {
                    Command::Write { key, precondition, change, reply } => {
                        writes.push((key, precondition, change, reply));
                    }
                    Command::Compact { at, reply } => compactions.push((at, reply)),
                }
            }
            if !writes.is_empty() {
                self.write(writes);
            }
            for (at, reply) in compactions {
                let outcome =
                    compact(&mut self.connection, at).map_err(|source| classify(&self.path, "compact", source));
                let _ = reply.send(outcome);
            }
        }
        // A last checkpoint keeps the next start short; the log is complete without it.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
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

/// Removes, at or before `at`, versions that a newer one has replaced, and deletions.
fn compact(connection: &mut Connection, at: Revision) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (newest, compacted) = bounds(&transaction)?;
    let at = at.min(newest);
    if at <= compacted {
        return Ok(());
    }
    transaction.execute(
        "DELETE FROM log WHERE revision IN (
             SELECT old.revision FROM log new JOIN log old ON old.key = new.key AND old.revision < new.revision
             WHERE new.revision > ?1 AND new.revision <= ?2)",
        params![to_sql(compacted), to_sql(at)],
    )?;
    transaction.execute(
        "DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND value IS NULL",
        params![to_sql(compacted), to_sql(at)],
    )?;
    transaction.execute("UPDATE compaction SET revision = ?1, newest = ?2", params![to_sql(at), to_sql(newest)])?;
    transaction.commit()
}
