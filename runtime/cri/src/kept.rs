//! One object's facts: memory for whoever looks, and the one pen that writes them to disk.
//!
//!     change: memory -> disk      what happened (an exit, a stop): true whether or not the disk takes it
//!     commit: disk -> memory      what a reply acknowledges (made, ready): nothing unless the disk has it
//!     forget: the file goes       and nothing is written ever after, whoever still holds the object
//!
//! Invariants: memory is locked for no longer than a copy takes, so looking never waits for a disk. One writer per object: the pen is
//! held while the file is written, and what is written is what memory has at that moment. What a full disk refused stays unwritten
//! until a later `write` succeeds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::record::{Record, RecordError, Records};

#[derive(Debug)]
pub(crate) struct Kept<R> {
    memory: Mutex<Memory<R>>,
    pen: Mutex<Pen>,
}

#[derive(Debug)]
struct Memory<R> {
    record: R,
    /// Counts what was changed since the record was read or first written.
    changes: u64,
}

#[derive(Debug)]
struct Pen {
    /// The changes that the file has.
    written: u64,
    forgotten: bool,
}

/// Facts are consistent between statements, so a panic elsewhere does not poison them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Record> Kept<R> {
    /// A record as the disk has it.
    pub(crate) fn new(record: R) -> Self {
        Self {
            memory: Mutex::new(Memory { record, changes: 0 }),
            pen: Mutex::new(Pen { written: 0, forgotten: false }),
        }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&R) -> T) -> T {
        look(&lock(&self.memory).record)
    }

    pub(crate) fn facts(&self) -> R {
        lock(&self.memory).record.clone()
    }

    /// Writes the record for the first time.
    pub(crate) fn announce(&self, records: &Records) -> Result<(), RecordError> {
        let _pen = lock(&self.pen);
        records.save(&self.facts())
    }

    /// In memory, at once; [`Self::write`] is to follow. False where it changed nothing.
    pub(crate) fn change(&self, change: impl FnOnce(&mut R)) -> bool {
        let mut memory = lock(&self.memory);
        let before = memory.record.clone();
        change(&mut memory.record);
        let changed = memory.record != before;
        memory.changes += u64::from(changed);
        changed
    }

    /// Brings the file up to memory.
    pub(crate) fn write(&self, records: &Records) -> Result<(), RecordError> {
        let mut pen = lock(&self.pen);
        let (record, changes) = {
            let memory = lock(&self.memory);
            (memory.record.clone(), memory.changes)
        };
        if pen.forgotten || pen.written == changes {
            return Ok(());
        }
        records.save(&record)?;
        pen.written = changes;
        Ok(())
    }

    /// On disk first. `change` is applied twice: to what is written, and to what memory has by then.
    pub(crate) fn commit(&self, records: &Records, change: impl Fn(&mut R)) -> Result<(), RecordError> {
        let mut pen = lock(&self.pen);
        let (mut record, changes) = {
            let memory = lock(&self.memory);
            (memory.record.clone(), memory.changes)
        };
        change(&mut record);
        if !pen.forgotten {
            records.save(&record)?;
        }
        let mut memory = lock(&self.memory);
        change(&mut memory.record);
        // What came in between is not in the file; its own `write` waits for the pen.
        pen.written = changes + 1;
        memory.changes += 1;
        Ok(())
    }

    /// Removes the file; gone is success.
    pub(crate) fn forget(&self, records: &Records) -> Result<(), RecordError> {
        let mut pen = lock(&self.pen);
        let id = self.read(|record| record.id().to_owned());
        records.remove::<R>(&id)?;
        pen.forgotten = true;
        Ok(())
    }

    /// Whether a write failed, or has not been tried yet.
    pub(crate) fn is_unwritten(&self) -> bool {
        let Ok(pen) = self.pen.try_lock() else {
            // Being written just now; whoever does that finds out.
            return false;
        };
        !pen.forgotten && pen.written != lock(&self.memory).changes
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::record::SandboxRecord;

    fn kept(dir: &Path) -> (Records, Kept<SandboxRecord>) {
        let records = Records::open(dir).unwrap();
        let record: SandboxRecord =
            serde_json::from_str(r#"{"version":1,"id":"s","config":{},"created_at_ns":0}"#).unwrap();
        records.save(&record).unwrap();
        (records, Kept::new(record))
    }

    fn on_disk(records: &Records) -> Option<i64> {
        records.load::<SandboxRecord>().unwrap().records.first().and_then(|record| record.stopped_at_ns)
    }

    /// The directory becomes a file: every write fails, as on a full disk, and as root too.
    fn break_disk(dir: &Path) {
        fs::rename(dir.join("sandboxes"), dir.join("away")).unwrap();
        fs::write(dir.join("sandboxes"), "").unwrap();
    }

    fn mend_disk(dir: &Path) {
        fs::remove_file(dir.join("sandboxes")).unwrap();
        fs::rename(dir.join("away"), dir.join("sandboxes")).unwrap();
    }

    #[test]
    fn what_the_disk_refuses_is_true_in_memory_and_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let (records, kept) = kept(dir.path());
        break_disk(dir.path());
        assert!(kept.change(|record| record.stopped_at_ns = Some(7)));
        assert!(kept.write(&records).is_err());
        assert_eq!(kept.read(|record| record.stopped_at_ns), Some(7));
        assert!(kept.is_unwritten());
        mend_disk(dir.path());
        assert_eq!(on_disk(&records), None);
        kept.write(&records).unwrap();
        assert!(!kept.is_unwritten());
        assert_eq!(on_disk(&records), Some(7));
        assert!(!kept.change(|record| record.stopped_at_ns = Some(7)));
    }

    #[test]
    fn what_is_acknowledged_is_on_disk_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (records, kept) = kept(dir.path());
        break_disk(dir.path());
        assert!(kept.commit(&records, |record| record.ready_at_ns = Some(3)).is_err());
        assert_eq!(kept.read(|record| record.ready_at_ns), None);
        mend_disk(dir.path());
        kept.change(|record| record.stopped_at_ns = Some(7));
        kept.commit(&records, |record| record.ready_at_ns = Some(3)).unwrap();
        assert_eq!(on_disk(&records), Some(7));
        assert!(!kept.is_unwritten());
    }

    #[test]
    fn a_record_never_comes_back_after_its_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (records, kept) = kept(dir.path());
        kept.forget(&records).unwrap();
        kept.change(|record| record.stopped_at_ns = Some(7));
        kept.write(&records).unwrap();
        kept.commit(&records, |record| record.ready_at_ns = Some(3)).unwrap();
        assert!(records.load::<SandboxRecord>().unwrap().records.is_empty());
        assert!(!kept.is_unwritten());
    }

    #[test]
    fn looking_does_not_wait_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (_records, kept) = kept(dir.path());
        let _writing = kept.pen.lock().unwrap();
        assert!(kept.change(|record| record.stopped_at_ns = Some(7)));
        assert_eq!(kept.read(|record| record.stopped_at_ns), Some(7));
    }
}
