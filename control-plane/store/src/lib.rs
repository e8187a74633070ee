//! Bytes, keys and revisions, durable before visible; knows no kind.
//!
//! A store is one ordered map from key to bytes with a single rising revision. It is not a cache and holds no policy: what a key
//! means, and who may touch it, is the API server's business.
//!
//! The history is bounded in bytes and in changes beside what [`Store::compact`] is asked for: its oldest end goes by itself.
//!
//! Invariant: a write that was acknowledged survives a crash at any instruction; a revision is given once; a watch delivers every
//! change after its start in order, or says [`Error::Compacted`].

mod hub;
mod sqlite;

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

pub use sqlite::{Sqlite, SqliteConfig};

/// A point in the store's history. Zero is before the first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What must hold of the key at the moment of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key has no value.
    Absent,
    /// The key's value was last written at this revision.
    At(Revision),
    /// Nothing: the last writer wins.
    Any,
}

/// What to do with the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Bytes),
    /// Deleting an absent key is refused by the precondition `At`, and is otherwise a change without effect: it still takes a
    /// revision only when something was there.
    Delete,
}

/// One key's value at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// When the key came into being (it was absent before).
    pub created: Revision,
    /// When this value was written.
    pub revision: Revision,
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: Arc<str>,
    /// The new value; `None` when the key was deleted.
    pub entry: Option<Entry>,
    /// What was there before; `None` when the key was absent, or when that version has been compacted away.
    pub previous: Option<Entry>,
}

/// Changes that became durable together, in order of revision. Never empty.
pub type Batch = Arc<[Event]>;

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision the listing describes.
    pub revision: Revision,
    /// Whether keys after the last one were left off because of the limit.
    pub more: bool,
}

/// A part of the history.
#[derive(Clone, Debug)]
pub struct Changes {
    /// In order of revision.
    pub events: Vec<Event>,
    /// Every matching change up to here is in `events` or was asked past.
    pub complete_to: Revision,
    /// Whether the history goes on after `complete_to`.
    pub more: bool,
}

/// Which keys to list: those that start with `prefix` and are greater than `after`, at most `limit`.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: String,
    pub after: Option<String>,
    /// `None` lists everything.
    pub limit: Option<usize>,
}

impl Range {
    pub fn all(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), after: None, limit: None }
    }
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The precondition did not hold; carries what is there now.
    #[error("the key has changed since it was read")]
    Conflict { current: Option<Entry> },
    #[error("write to the store")]
    Store(#[from] Error),
}

/// What a person must act on. Cloned to every write of a failed group.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("create directory {path}")]
    Directory { path: PathBuf, source: Arc<std::io::Error> },
    #[error("{path} is in use by another process; stop that one first, or use another data directory")]
    InUse { path: PathBuf },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: Arc<std::io::Error> },
    #[error("start the writer thread")]
    Thread { source: Arc<std::io::Error> },
    #[error("open {path}")]
    Open { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error(
        "{path} was written by a newer version (format {found}, this one reads {known}); upgrade, or use another data directory"
    )]
    Format { path: PathBuf, found: i64, known: i64 },
    #[error("{path} is damaged; restore it from a backup, or move it away to start empty")]
    Corrupt { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error("the disk that holds {path} is full; nothing was written. Free some space and try again")]
    DiskFull { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error(
        "the disk did not confirm that {path} was written, so that nothing more is written to it; look into the kernel's log for \
         what is wrong with the disk, and start again"
    )]
    Unconfirmed { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error("{step} in {path}")]
    Database { step: &'static str, path: PathBuf, source: Arc<rusqlite::Error> },
    #[error("revision {wanted} has been compacted away; the oldest kept is {oldest}")]
    Compacted { wanted: Revision, oldest: Revision },
    #[error("revision {wanted} lies in the future; the newest is {newest}")]
    Future { wanted: Revision, newest: Revision },
    #[error("the store has been closed")]
    Closed,
}

/// The door. Shaped so that etcd's v3 API fits behind it: one transaction on one key, ranges at a revision, watches from one.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Makes one change if the precondition holds. When it returns, the change is durable, and every later read sees it.
    fn write(
        &self,
        key: Arc<str>,
        precondition: Precondition,
        change: Change,
    ) -> BoxFuture<'_, Result<Revision, WriteError>>;

    /// The key's value now, or as it was at a revision.
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Option<Entry>, Error>>;

    /// Keys in order, now or as they were at a revision.
    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Page, Error>>;

    /// Every change after `from` to keys that start with `prefix`: in order, gap-free. Ends with an error, or never.
    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<Batch, Error>>;

    /// A part of the changes after a revision, as [`Self::watch`] would tell them. Bounded; a caller asks again from its end.
    fn changes<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, Error>>;

    /// The newest revision; a read that starts later sees at least this.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Forgets what was overwritten or deleted at or before a revision. Reads and watches before it say `Compacted`.
    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<(), Error>>;
}

/// An error with everything that caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The smallest string greater than every string that starts with `prefix`; `None` when there is none.
fn prefix_end(prefix: &str) -> Option<String> {
    // Keys are ordered by bytes, as UTF-8 is by code points: raise the last character that can be raised.
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn prefix_ends() {
        let check = |prefix: &str, expect: Option<&str>| assert_eq!(prefix_end(prefix).as_deref(), expect);
        check("/registry/pods/", Some("/registry/pods0"));
        check("a\u{D7FF}", Some("a\u{E000}"));
        check("a\u{10FFFF}", Some("b"));
        check("\u{10FFFF}", None);
        check("", None);
    }
}
