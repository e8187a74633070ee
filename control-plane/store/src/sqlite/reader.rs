//! The queries over the log. Each runs in one read transaction, so that it sees one moment. Never writes.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::{Changes, Entry, Error, Event, Page, Range, Revision, prefix_end};

/// Changes that one read of the log returns; a watcher that is further behind asks again.
const LOG_PAGE_MAX: usize = 1000;
/// Bytes of their objects, but for the last one.
const LOG_PAGE_BYTES_MAX: usize = 1 << 20;

/// A failed query: of the database, or refused by the store's own rules.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("query the database")]
    Database(#[from] rusqlite::Error),
    #[error("read at this revision")]
    Store(#[from] Error),
}

/// SQLite integers are signed; revisions never come near the sign.
pub(super) fn to_sql(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(value: i64) -> Revision {
    Revision(u64::try_from(value).unwrap_or(0))
}

/// The newest revision and the compacted one.
pub(super) fn bounds(connection: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    let mut statement = connection.prepare_cached(
        "SELECT max(c.newest, coalesce((SELECT max(revision) FROM log), 0)), c.revision FROM compaction c",
    )?;
    statement.query_row([], |row| Ok((from_sql(row.get(0)?), from_sql(row.get(1)?))))
}

/// The key's newest row, unless that is a deletion.
pub(super) fn newest(connection: &Connection, key: &str) -> rusqlite::Result<Option<Entry>> {
    version(connection, key, i64::MAX)
}

fn version(connection: &Connection, key: &str, at: i64) -> rusqlite::Result<Option<Entry>> {
    let mut statement = connection.prepare_cached(
        "SELECT key, revision, created, value FROM log WHERE key = ?1 AND revision <= ?2 ORDER BY revision DESC LIMIT 1",
    )?;
    Ok(statement.query_row(params![key, at], entry).optional()?.flatten())
}

/// Reads `key, revision, created, value`; `None` for a deletion.
fn entry(row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let Some(value) = row.get::<_, Option<Vec<u8>>>(3)? else { return Ok(None) };
    Ok(Some(Entry {
        key: row.get::<_, Arc<str>>(0)?,
        revision: from_sql(row.get(1)?),
        created: from_sql(row.get(2)?),
        value: Bytes::from(value),
    }))
}

/// The revision to read at, checked against what is kept.
fn moment(transaction: &Transaction<'_>, at: Option<Revision>) -> Result<Revision, ReadError> {
    let (newest, compacted) = bounds(transaction)?;
    match at {
        None => Ok(newest),
        Some(wanted) if wanted < compacted => Err(Error::Compacted { wanted, oldest: compacted }.into()),
        Some(wanted) if wanted > newest => Err(Error::Future { wanted, newest }.into()),
        Some(wanted) => Ok(wanted),
    }
}

pub(super) fn get(connection: &mut Connection, key: &str, at: Option<Revision>) -> Result<Option<Entry>, ReadError> {
    let transaction = connection.transaction()?;
    let at = moment(&transaction, at)?;
    Ok(version(&transaction, key, to_sql(at))?)
}

pub(super) fn list(connection: &mut Connection, range: &Range, at: Option<Revision>) -> Result<Page, ReadError> {
    let transaction = connection.transaction()?;
    let revision = moment(&transaction, at)?;
    let limit = range.limit.unwrap_or(usize::MAX);
    let mut entries = Vec::new();
    // Key by key, each by two looks into the index: a key costs the same however many versions it has, and nothing is read behind
    // the last one that is asked for.
    let mut place = match range.after.as_deref().filter(|after| *after >= range.prefix.as_str()) {
        Some(after) => next_key(&transaction, ">", after)?,
        None => next_key(&transaction, ">=", &range.prefix)?,
    };
    while let Some(key) = place.filter(|key| key.starts_with(&range.prefix)) {
        if let Some(entry) = version(&transaction, &key, to_sql(revision))? {
            if entries.len() == limit {
                return Ok(Page { entries, revision, more: true });
            }
            entries.push(entry);
        }
        place = next_key(&transaction, ">", &key)?;
    }
    Ok(Page { entries, revision, more: false })
}

/// The first key after, or at, another.
fn next_key(transaction: &Transaction<'_>, relation: &str, key: &str) -> rusqlite::Result<Option<String>> {
    let sql = match relation {
        ">" => "SELECT key FROM log WHERE key > ?1 ORDER BY key LIMIT 1",
        _ => "SELECT key FROM log WHERE key >= ?1 ORDER BY key LIMIT 1",
    };
    transaction.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()
}

pub(super) fn changes(connection: &mut Connection, prefix: &str, after: Revision) -> Result<Changes, ReadError> {
    let transaction = connection.transaction()?;
    let (newest, compacted) = bounds(&transaction)?;
    if after < compacted {
        return Err(Error::Compacted { wanted: after, oldest: compacted }.into());
    }
    if after > newest {
        return Err(Error::Future { wanted: after, newest }.into());
    }
    let mut events: Vec<Event> = Vec::new();
    let mut bytes = 0_usize;
    let mut complete_to = newest;
    let mut more = false;
    {
        let mut statement = transaction.prepare_cached(
            "SELECT key, revision, created, value FROM log
             WHERE revision > ?1 AND key >= ?2 AND (?3 IS NULL OR key < ?3) ORDER BY revision",
        )?;
        let mut rows = statement.query(params![to_sql(after), prefix, prefix_end(prefix)])?;
        while let Some(row) = rows.next()? {
            if events.len() == LOG_PAGE_MAX || bytes > LOG_PAGE_BYTES_MAX {
                more = true;
                break;
            }
            let key: Arc<str> = row.get(0)?;
            let revision = from_sql(row.get(1)?);
            let previous = version(&transaction, &key, to_sql(Revision(revision.0.saturating_sub(1))))?;
            let entry = entry(row)?;
            for value in [&entry, &previous].into_iter().flatten() {
                bytes = bytes.saturating_add(value.value.len());
            }
            events.push(Event { revision, entry, key, previous });
        }
    }
    if more && let Some(last) = events.last() {
        complete_to = last.revision;
    }
    Ok(Changes { events, complete_to, more })
}
