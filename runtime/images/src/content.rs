//! A blob as it passes by: read from the network, an archive or the disk, written to its partial file, counted and hashed.
//! Verifies at the end; whoever reads earlier must not trust what it read.

use std::fs::File;
use std::io::{self, Read, Take, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc::Receiver;

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::progress::{Event, Progress};
use crate::store::Blob;

const PROGRESS_STEP_BYTES: u64 = 1 << 20;
const DRAIN_BUFFER_BYTES: usize = 64 << 10;

/// What the end of a blob showed.
#[derive(Debug)]
pub(crate) enum Verdict {
    Good,
    Size(u64),
    Digest(Digest),
    Failed(Error),
}

pub(crate) struct Intake {
    digest: Digest,
    size: Option<u64>,
    /// On disk already: read, but not written again.
    stored: Option<Take<File>>,
    fresh: Box<dyn Read + Send>,
    sink: Option<(File, PathBuf)>,
    hasher: Option<Hasher>,
    received: u64,
    told: u64,
    progress: Progress,
    cancelled: Arc<AtomicBool>,
    failure: Option<Error>,
}

impl Intake {
    /// Of a blob that is on disk as a whole.
    pub(crate) fn stored(blob: &Blob, file: File, cancelled: Arc<AtomicBool>) -> Self {
        Self::new(blob, Some(file.take(u64::MAX)), Box::new(io::empty()), None, cancelled)
    }

    /// Of a blob whose first `have` bytes are in its partial file `file` (opened for appending) at `path`.
    pub(crate) fn resumed(
        blob: &Blob,
        (file, path, have): (File, PathBuf, u64),
        fresh: Box<dyn Read + Send>,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let reader = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        Ok(Self::new(blob, Some(reader.take(have)), fresh, Some((file, path)), cancelled))
    }

    fn new(
        blob: &Blob,
        stored: Option<Take<File>>,
        fresh: Box<dyn Read + Send>,
        sink: Option<(File, PathBuf)>,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self {
            digest: blob.digest.clone(),
            size: blob.size,
            stored,
            fresh,
            sink,
            hasher: Some(Hasher::new(blob.digest.algorithm())),
            received: 0,
            told: 0,
            progress: Progress::silent(),
            cancelled,
            failure: None,
        }
    }

    pub(crate) fn telling(mut self, progress: &Progress) -> Self {
        self.progress = progress.clone();
        self
    }

    /// The first failure that is not the source's own, if reading failed because of one.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Reads what is left and compares. To be called once.
    pub(crate) fn finish(&mut self) -> Verdict {
        let mut buffer = vec![0; DRAIN_BUFFER_BYTES];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let failure = self.failure.take();
                    return match failure {
                        Some(failure) => Verdict::Failed(failure),
                        None if self.is_overlong() => Verdict::Size(self.received),
                        None => Verdict::Failed(Error::io("read", &PathBuf::from(self.digest.to_string()), error)),
                    };
                }
            }
        }
        if self.size.is_some_and(|size| size != self.received) {
            return Verdict::Size(self.received);
        }
        let actual = self.hasher.take().map(Hasher::finish);
        match actual {
            Some(actual) if actual != self.digest => Verdict::Digest(actual),
            _ => Verdict::Good,
        }
    }

    fn is_overlong(&self) -> bool {
        self.size.is_some_and(|size| self.received > size)
    }

    fn fail(&mut self, error: Error) -> io::Error {
        let told = io::Error::other(error.to_string());
        self.failure.get_or_insert(error);
        told
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(self.fail(Error::Cancelled));
        }
        if let Some(stored) = &mut self.stored {
            let count = stored.read(buffer)?;
            if count > 0 {
                self.received += count as u64;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&buffer[..count]);
                }
                return Ok(count);
            }
            self.stored = None;
        }
        let count = self.fresh.read(buffer)?;
        let piece = &buffer[..count];
        self.received += count as u64;
        if self.is_overlong() {
            return Err(io::Error::other("more bytes than promised"));
        }
        if let Some((file, path)) = &mut self.sink
            && let Err(error) = file.write_all(piece)
        {
            let error = Error::io("write", path, error);
            return Err(self.fail(error));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        if self.received >= self.told + PROGRESS_STEP_BYTES {
            self.told = self.received;
            self.progress.tell(Event::LayerReceived { layer: self.digest.clone(), bytes: self.received });
        }
        Ok(count)
    }
}

/// Pieces that a download sends, as a stream for a blocking thread. Ends when the sender is gone.
pub(crate) struct Pieces {
    receiver: Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    pub(crate) fn new(receiver: Receiver<Bytes>) -> Self {
        Self { receiver, current: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece,
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Hashes what is read through it.
pub(crate) struct Hashing<'a, R> {
    pub(crate) source: R,
    pub(crate) hasher: &'a mut Hasher,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
