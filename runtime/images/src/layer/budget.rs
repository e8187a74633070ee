//! How much of a tar stream may be read for one entry's headers. The `tar` crate keeps GNU long names and PAX records whole in
//! memory, however long an archive says they are; a stream that ends with an error beyond a budget bounds them all.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// What an entry's headers may take together: a long name, a long link and PAX records of 1 MiB each (extended attributes are
/// in the latter), and the blocks around them. Beyond it the archive is refused.
pub(crate) const HEADER_BYTES_MAX: u64 = (3 << 20) + (64 << 10);

/// A stream that fails once a budget is used up.
pub(crate) struct Budgeted<R> {
    stream: R,
    budget: Budget,
}

/// The other end: sets what may still be read.
#[derive(Clone)]
pub(crate) struct Budget(Rc<Cell<u64>>);

impl<R> Budgeted<R> {
    /// Nothing is limited until [`Budget::set`].
    pub(crate) fn new(stream: R) -> (Self, Budget) {
        let budget = Budget(Rc::new(Cell::new(u64::MAX)));
        (Self { stream, budget: budget.clone() }, budget)
    }
}

impl Budget {
    pub(crate) fn set(&self, bytes: u64) {
        self.0.set(bytes);
    }

    pub(crate) fn lift(&self) {
        self.set(u64::MAX);
    }
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.0.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the headers of one entry take more than {HEADER_BYTES_MAX} bytes"),
            ));
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.stream.read(&mut buffer[..room])?;
        if left != u64::MAX {
            self.budget.set(left - count as u64);
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Budgeted<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.stream.seek(position)
    }
}
