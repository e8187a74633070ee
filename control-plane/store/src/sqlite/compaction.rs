//! What the history holds, and how its oldest end goes: in small steps between two groups of writes.
//!
//!     history too large, or asked --> target --step, step, ...--> reached --> free pages go back to the file system, some a step
//!
//! Runs on the writer's thread. Invariant: after each step, which is one transaction, the file is a store that was compacted at the
//! step's end; a crash between two steps loses nothing but the rest of the way.

use std::collections::VecDeque;

use rusqlite::{Connection, TransactionBehavior, params};

use super::reader::{bounds, from_sql, to_sql};
use crate::Revision;

/// Bytes that replaced and deleted versions may take; the oldest go beyond that.
pub(super) const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Changes in the history.
pub(super) const HISTORY_CHANGES_MAX: usize = 200_000;
/// Revisions that one step looks at.
const STEP_REVISIONS_MAX: u64 = 1024;
/// Bytes that one step removes, but for its last version.
const STEP_BYTES_MAX: usize = 4 << 20;
/// Free pages kept for the writes to come: 8 MiB.
const FREE_PAGES_KEPT: i64 = 2048;
/// Pages that one step gives back.
const STEP_PAGES_MAX: i64 = 1024;
/// A row's cost beside its value, roughly.
const ROW_BYTES: usize = 128;

/// The versions that a newer change has replaced, by that change, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    replaced: VecDeque<(Revision, usize)>,
    bytes: usize,
    pub(super) compacted: Revision,
}

impl History {
    /// Reads what the file holds.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let (_, compacted) = bounds(connection)?;
        let mut history = Self { compacted, ..Self::default() };
        // The length of a value stands in its row's head: nothing large is read.
        let mut statement = connection.prepare(
            "SELECT new.revision, (SELECT length(old.value) FROM log old WHERE old.key = new.key AND old.revision < new.revision
                 ORDER BY old.revision DESC LIMIT 1)
             FROM log new WHERE new.revision > ?1 ORDER BY new.revision",
        )?;
        let mut rows = statement.query(params![to_sql(compacted)])?;
        while let Some(row) = rows.next()? {
            if let Some(bytes) = row.get::<_, Option<i64>>(1)? {
                history.note(from_sql(row.get(0)?), usize::try_from(bytes).unwrap_or(usize::MAX));
            }
        }
        Ok(history)
    }

    /// A change replaced a version of this many bytes.
    pub(super) fn note(&mut self, by: Revision, bytes: usize) {
        let bytes = bytes.saturating_add(ROW_BYTES);
        self.replaced.push_back((by, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Up to where to compact so that three quarters of the limits are left; nothing while they are kept.
    pub(super) fn surplus(&self, bytes_max: usize, changes_max: usize) -> Option<Revision> {
        if self.bytes <= bytes_max && self.replaced.len() <= changes_max {
            return None;
        }
        let (bytes_left, changes_left) = (bytes_max / 4 * 3, changes_max / 4 * 3);
        let (mut bytes, mut changes) = (self.bytes, self.replaced.len());
        let mut at = None;
        for (revision, size) in &self.replaced {
            if bytes <= bytes_left && changes <= changes_left {
                break;
            }
            bytes = bytes.saturating_sub(*size);
            changes = changes.saturating_sub(1);
            at = Some(*revision);
        }
        at
    }

    /// The end of the next step towards a target.
    fn step_end(&self, target: Revision) -> Revision {
        let mut end = target.min(Revision(self.compacted.0.saturating_add(STEP_REVISIONS_MAX)));
        let mut bytes = 0_usize;
        for (revision, size) in self.replaced.iter().take_while(|(revision, _)| *revision <= end) {
            bytes = bytes.saturating_add(*size);
            if bytes > STEP_BYTES_MAX {
                end = *revision;
                break;
            }
        }
        end
    }

    /// One step towards the target; true when it is reached.
    pub(super) fn step(&mut self, connection: &mut Connection, target: Revision) -> rusqlite::Result<bool> {
        let end = self.step_end(target);
        if end > self.compacted {
            remove(connection, self.compacted, end)?;
            self.compacted = end;
            while let Some((_, bytes)) = self.replaced.pop_front_if(|(revision, _)| *revision <= end) {
                self.bytes = self.bytes.saturating_sub(bytes);
            }
        }
        Ok(self.compacted >= target)
    }
}

/// Removes the versions that changes after `from` and up to `to` have replaced, and deletions among those changes.
fn remove(connection: &mut Connection, from: Revision, to: Revision) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (newest, _) = bounds(&transaction)?;
    {
        // What the version before that had replaced went with an earlier step.
        let mut replaced = transaction.prepare_cached(
            "DELETE FROM log WHERE revision IN (
                 SELECT (SELECT max(old.revision) FROM log old WHERE old.key = new.key AND old.revision < new.revision)
                 FROM log new WHERE new.revision > ?1 AND new.revision <= ?2)",
        )?;
        replaced.execute(params![to_sql(from), to_sql(to)])?;
        let mut deletions =
            transaction.prepare_cached("DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND value IS NULL")?;
        deletions.execute(params![to_sql(from), to_sql(to)])?;
        let mut mark = transaction.prepare_cached("UPDATE compaction SET revision = ?1, newest = ?2")?;
        mark.execute(params![to_sql(to), to_sql(newest)])?;
    }
    transaction.commit()
}

/// Gives some free pages back to the file system; true while there are more than are kept.
pub(super) fn shrink(connection: &Connection) -> rusqlite::Result<bool> {
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let surplus = free.saturating_sub(FREE_PAGES_KEPT);
    if surplus <= 0 {
        return Ok(false);
    }
    // A row for each page: what is not asked for is not done.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({})", surplus.min(STEP_PAGES_MAX)))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    drop(rows);
    let more = surplus > STEP_PAGES_MAX;
    if !more {
        // The file itself becomes shorter when the log is brought into it.
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surplus_goes_down_to_three_quarters() {
        let mut history = History::default();
        for revision in 1..=10 {
            history.note(Revision(revision), 100 - ROW_BYTES.min(100));
        }
        let each = history.bytes / 10;
        assert_eq!(history.surplus(each * 10, 10), None);
        assert_eq!(history.surplus(each * 8, 10), Some(Revision(4)));
        assert_eq!(history.surplus(usize::MAX, 8), Some(Revision(4)));
        assert_eq!(history.surplus(0, 100), Some(Revision(10)));
    }

    #[test]
    fn a_step_is_small() {
        let mut history = History::default();
        for revision in 1..=100 {
            history.note(Revision(revision * 2), 1 << 20);
        }
        assert_eq!(history.step_end(Revision(500)), Revision(8));
        assert_eq!(history.step_end(Revision(4)), Revision(4));
        let empty = History::default();
        assert_eq!(empty.step_end(Revision(1_000_000)), Revision(STEP_REVISIONS_MAX));
    }
}
