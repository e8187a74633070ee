//! The embedded engine: one SQLite file in WAL mode with synchronous=FULL, one writer thread that commits in groups, a few readers.
//! Knows nothing of kinds; see `writer.rs` for the write path and `reader.rs` for the queries.
//!
//! The file is an append-only log `log(revision, key, created, value)`: the newest row of a key is its value, a NULL value is a
//! deletion, and compaction removes rows that a newer row at or before the compacted revision has replaced.
//!
//! Invariant: rows are only inserted by the writer thread, with revisions that rise by one, and only removed by compaction.

mod compaction;
mod reader;
mod writer;

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt},
};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Change, Changes, Entry, Error, Page, Precondition, Range, Revision, Store, WriteError,
    hub::{Hub, Log, watch},
};
use writer::{Command, Writer};

/// The version of the file's layout, kept in `PRAGMA user_version`.
const FORMAT: i64 = 1;
/// `PRAGMA auto_vacuum` of a file that gives its free pages back.
const INCREMENTAL: i64 = 2;
/// Concurrent read queries; more wait their turn.
const READERS_MAX: usize = 4;

/// Where and how to open.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    pub path: PathBuf,
    /// Pages of 4 KiB the file may grow to; `None` is the disk's size. A test's way to fill the disk.
    pub pages_max: Option<u32>,
}

impl SqliteConfig {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), pages_max: None }
    }
}

/// A store in one file. Cloning is cheap; the writer thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Sqlite {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    writer: Writer,
    hub: Hub,
    readers: Readers,
    /// Held, not read: a second process that opens the same file is refused.
    _lock: File,
}

/// Read-only connections, opened as needed and kept.
struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens or creates the file and starts the writer. Blocks for the time of a few disk accesses.
    pub fn open(config: &SqliteConfig) -> Result<Self, Error> {
        let path = config.path.clone();
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .map_err(|source| Error::Directory { path: parent.to_owned(), source: Arc::new(source) })?;
        }
        let lock = lock(&path)?;
        let connection = open_writer(&path, config.pages_max)?;
        let hub = Hub::new();
        let writer = Writer::start(connection, &path, hub.clone())?;
        let readers = Readers { idle: Mutex::new(Vec::new()), permits: Arc::new(Semaphore::new(READERS_MAX)) };
        Ok(Self { shared: Arc::new(Shared { path, writer, hub, readers, _lock: lock }) })
    }

    /// Runs a query on a reader, off the async threads.
    async fn read<T, F>(&self, step: &'static str, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, reader::ReadError> + Send + 'static,
    {
        let permits = Arc::clone(&self.shared.readers.permits);
        let permit = permits.acquire_owned().await.map_err(|_| Error::Closed)?;
        let shared = Arc::clone(&self.shared);
        let outcome = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let idle = shared.readers.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => open_reader(&shared.path)?,
            };
            let outcome = query(&mut connection).map_err(|error| match error {
                reader::ReadError::Database(source) => classify(&shared.path, step, source),
                reader::ReadError::Store(error) => error,
            });
            shared.readers.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(connection);
            outcome
        });
        outcome.await.map_err(|_| Error::Closed)?
    }
}

impl Store for Sqlite {
    fn write(
        &self,
        key: Arc<str>,
        precondition: Precondition,
        change: Change,
    ) -> BoxFuture<'_, Result<Revision, WriteError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.shared.writer.send(Command::Write { key, precondition, change, reply }).await?;
            answer.await.map_err(|_| Error::Closed)?
        })
    }

    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        let key = key.to_owned();
        Box::pin(self.read("read a key", move |connection| reader::get(connection, &key, at)))
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(self.read("list keys", move |connection| reader::list(connection, &range, at)))
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxStream<'static, Result<crate::Batch, Error>> {
        let log = Arc::new(SqliteLog(self.clone()));
        watch(&self.shared.hub, log, Arc::from(prefix), from).boxed()
    }

    fn changes<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Changes, Error>> {
        let prefix = prefix.to_owned();
        Box::pin(self.read("read the log", move |connection| reader::changes(connection, &prefix, after)))
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(std::future::ready(Ok(self.shared.writer.revision())))
    }

    fn compact(&self, at: Revision) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.shared.writer.send(Command::Compact { at, reply }).await?;
            answer.await.map_err(|_| Error::Closed)?
        })
    }
}

/// The log as a watcher that is behind reads it.
struct SqliteLog(Sqlite);

impl Log for SqliteLog {
    fn changes(self: Arc<Self>, prefix: Arc<str>, after: Revision) -> BoxFuture<'static, Result<Changes, Error>> {
        Box::pin(async move {
            self.0.read("read the log", move |connection| reader::changes(connection, &prefix, after)).await
        })
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let failed = |source| Error::Lock { path: path.clone(), source: Arc::new(source) };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn open_writer(path: &Path, pages_max: Option<u32>) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|source| Error::Open { path: path.to_owned(), source: Arc::new(source) })?;
    let failed = |source| classify(path, "prepare the tables", source);
    // Before the first table: pages that compaction empties go back to the file system, some at a time. A file of an earlier release
    // gets there by being written anew, once.
    let vacuum: i64 = connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).map_err(failed)?;
    if vacuum != INCREMENTAL
        && let Err(error) = connection.execute_batch("PRAGMA auto_vacuum=INCREMENTAL; VACUUM;")
    {
        tracing::warn!(path = %path.display(), %error, "the store's file cannot be made to shrink; it is used as it is");
    }
    // FULL and not NORMAL: in WAL mode NORMAL does not sync at commit, and an acknowledged write could be lost with the power.
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-2048; PRAGMA temp_store=MEMORY;
             PRAGMA journal_size_limit=16777216;",
        )
        .map_err(failed)?;
    if let Some(pages_max) = pages_max {
        connection.pragma_update(None, "max_page_count", pages_max).map_err(failed)?;
    }
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    match found {
        FORMAT => {}
        0 => connection.execute_batch(SCHEMA).map_err(failed)?,
        found => return Err(Error::Format { path: path.to_owned(), found, known: FORMAT }),
    }
    Ok(connection)
}

const SCHEMA: &str = "
BEGIN IMMEDIATE;
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    created INTEGER NOT NULL,
    value BLOB
) STRICT;
CREATE UNIQUE INDEX log_by_key ON log (key, revision);
CREATE TABLE compaction (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, newest INTEGER NOT NULL) STRICT;
INSERT INTO compaction VALUES (1, 0, 0);
PRAGMA user_version = 1;
COMMIT;
";

fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |source| Error::Open { path: path.to_owned(), source: Arc::new(source) };
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA cache_size=-1024; PRAGMA temp_store=MEMORY;").map_err(failed)?;
    Ok(connection)
}

/// Names the failures that a person can do something about.
fn classify(path: &Path, step: &'static str, source: rusqlite::Error) -> Error {
    let path = path.to_owned();
    let code = source.sqlite_error_code();
    let source = Arc::new(source);
    match code {
        _ if is_unconfirmed(&source) => Error::Unconfirmed { path, source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Corrupt { path, source },
        Some(ErrorCode::DiskFull) => Error::DiskFull { path, source },
        _ => Error::Database { step, path, source },
    }
}

/// Whether a sync failed. What the kernel then still holds is unknown, and a second sync would succeed without having written it
/// ("PostgreSQL's fsync surprise", <https://lwn.net/Articles/752063/>); so whoever meets this writes no more, as etcd does.
fn is_unconfirmed(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}
