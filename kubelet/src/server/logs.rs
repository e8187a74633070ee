//! Container logs in the CRI format, read from the file: the end of it, from a time on, and as it grows (inotify, not a timer).
//! Invariant: a followed log ends when the container has ended and the last line has been sent.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use runtime_linux::rooted::Root;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::{mpsc, watch};

/// Read backwards in steps of this size to find the last lines.
const BLOCK_BYTES: u64 = 16 << 10;
/// A line longer than this is not of the CRI format.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Lines are sent together up to about this size; a slow reader holds up the reading after [`CHUNKS_MAX`] of them.
const CHUNK_BYTES: usize = 32 << 10;
pub(super) const CHUNKS_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open log {}: {source}", .path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("read log {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("watch log {}: {source}", .path.display())]
    Watch { path: PathBuf, source: std::io::Error },
}

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `stdout` or `stderr`; both if none.
    pub stream: Option<String>,
}

/// One line of a CRI log: `<time> <stream> <tags> <content>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    /// Ends a line of the container; otherwise more of the same line follows.
    full: bool,
    content: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tags) = (parts.next(), parts.next(), parts.next());
    let time = std::str::from_utf8(time?).ok()?;
    let stream = std::str::from_utf8(stream?).ok()?;
    let tags = std::str::from_utf8(tags?).ok()?;
    let full = tags.split(':').next() != Some("P");
    Some(Line { time, stream, full, content: parts.next().unwrap_or_default() })
}

/// The last lines of a log as plain text; empty if there is none.
pub async fn tail_text(path: &Path, lines: u64, bytes_max: usize) -> String {
    let (sender, mut receiver) = mpsc::channel(16);
    let options = Options { tail_lines: Some(lines), ..Options::default() };
    let (_keep, running) = watch::channel(false);
    let path = path.to_owned();
    let task = tokio::spawn(async move { send(&path, &options, running, sender).await });
    let mut text = Vec::new();
    while let Some(chunk) = receiver.recv().await {
        text.extend_from_slice(&chunk);
        // Only the end is wanted: no more than that is kept.
        let beyond = text.len().saturating_sub(bytes_max);
        text.drain(..beyond);
    }
    // No log is an empty one here.
    let _ = task.await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends what is wanted of the log at `path`. `running` is false once the container has ended.
///
/// # Errors
/// If the log cannot be read; a receiver that has gone away is a normal end.
pub async fn send(
    path: &Path,
    options: &Options,
    mut running: watch::Receiver<bool>,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let watch = if options.follow { Some(watch_dir(path)?) } else { None };
    let mut file = open(path).await?;
    let start = match options.tail_lines {
        Some(lines) => {
            tail_offset(&mut file, lines).await.map_err(|source| Error::Read { path: path.into(), source })?
        }
        None => 0,
    };
    let read = |source| Error::Read { path: path.into(), source };
    file.seek(SeekFrom::Start(start)).await.map_err(read)?;
    let mut inode = file.metadata().await.map_err(read)?.ino();
    let mut reader = BufReader::new(file);
    let mut out = Output { options, sender, left: options.limit_bytes, mid_line: false, ready: Vec::new() };
    let mut pending = Vec::new();
    loop {
        // Asked before reading, so that nothing written until the end is missed.
        let alive = *running.borrow_and_update();
        while read_line(&mut reader, &mut pending).await.map_err(read)? {
            if !out.line(&pending).await {
                out.flush().await;
                return Ok(());
            }
            pending.clear();
        }
        if !out.flush().await {
            return Ok(());
        }
        let Some(watch) = &watch else { return Ok(()) };
        // Rotation puts a new file in the place of this one.
        if let Ok(meta) = tokio::fs::metadata(path).await
            && meta.ino() != inode
        {
            inode = meta.ino();
            reader = BufReader::new(open(path).await?);
            pending.clear();
            continue;
        }
        if !alive {
            return Ok(());
        }
        tokio::select! {
            ready = watch.readable() => {
                let mut guard = ready.map_err(|source| Error::Watch { path: path.into(), source })?;
                // Which event it was does not matter: the file is read either way.
                let _ = watch.get_ref().0.read_events();
                guard.clear_ready();
            }
            changed = running.changed() => if changed.is_err() { return Ok(()) },
            () = out.sender.closed() => return Ok(()),
        }
    }
}

struct Watch(Inotify);

impl std::os::fd::AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsFd;
        self.0.as_fd().as_raw_fd()
    }
}

#[allow(deprecated, reason = "its replacement is unsafe; `Watch` owns its descriptor and never changes it")]
fn watch_dir(path: &Path) -> Result<AsyncFd<Watch>, Error> {
    let failed = |source| Error::Watch { path: path.into(), source };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| failed(e.into()))?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(path.parent().unwrap_or(path), flags).map_err(|e| failed(e.into()))?;
    AsyncFd::new(Watch(inotify)).map_err(failed)
}

/// A regular file and nothing else; opening waits for nobody.
async fn open(path: &Path) -> Result<File, Error> {
    let own = path.to_owned();
    let open = move || {
        let (Some(dir), Some(name)) = (own.parent(), own.file_name()) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        Root::open_dir(dir).map_err(std::io::Error::from)?.open_plain_regular(Path::new(name))
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(std::io::Error::other).and_then(|opened| opened);
    opened.map(File::from_std).map_err(|source| Error::Open { path: path.into(), source })
}

/// Appends to `line`; true once it is whole.
async fn read_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    let room = LINE_BYTES_MAX.saturating_sub(line.len() as u64).max(1);
    reader.take(room).read_until(b'\n', line).await?;
    Ok(line.ends_with(b"\n") || line.len() as u64 >= LINE_BYTES_MAX)
}

/// Where the last `lines` lines begin.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let size = file.metadata().await?.len();
    if lines == 0 {
        return Ok(size);
    }
    let mut end = size;
    let mut newlines = 0;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = Vec::new();
        file.seek(SeekFrom::Start(start)).await?;
        (&mut *file).take(end - start).read_to_end(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = start + index as u64;
            if *byte == b'\n' && at + 1 != size {
                newlines += 1;
                if newlines == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

struct Output<'a> {
    options: &'a Options,
    sender: mpsc::Sender<Bytes>,
    left: Option<u64>,
    /// The last piece sent did not end a line.
    mid_line: bool,
    /// What is sent next, all in one.
    ready: Vec<u8>,
}

impl Output<'_> {
    /// False once nobody listens.
    async fn flush(&mut self) -> bool {
        let bytes = std::mem::take(&mut self.ready);
        bytes.is_empty() || self.sender.send(Bytes::from(bytes)).await.is_ok()
    }

    /// False once nothing more is wanted.
    async fn line(&mut self, raw: &[u8]) -> bool {
        let Some(line) = parse(raw) else { return true };
        if self.options.stream.as_deref().is_some_and(|wanted| wanted != line.stream) {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return true;
        }
        let mut text = Vec::with_capacity(raw.len());
        if self.options.timestamps && !self.mid_line {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.content);
        if line.full {
            text.push(b'\n');
        }
        self.mid_line = !line.full;
        if let Some(left) = &mut self.left {
            let keep = usize::try_from(*left).unwrap_or(usize::MAX).min(text.len());
            text.truncate(keep);
            *left -= keep as u64;
        }
        self.ready.extend_from_slice(&text);
        let sent = self.ready.len() < CHUNK_BYTES || self.flush().await;
        sent && self.left != Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F three\n";

    async fn check(options: Options, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(100);
        let (_keep, running) = watch::channel(false);
        send(&path, &options, running, sender).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            text.extend_from_slice(&chunk);
        }
        assert_eq!(String::from_utf8(text).unwrap(), expect, "{options:?}");
    }

    #[tokio::test]
    async fn parts_of_a_log() {
        let none = Options::default;
        check(none(), "one\ntwo\nthree\n").await;
        check(Options { tail_lines: Some(1), ..none() }, "three\n").await;
        check(Options { tail_lines: Some(0), ..none() }, "").await;
        check(Options { tail_lines: Some(99), ..none() }, "one\ntwo\nthree\n").await;
        check(Options { limit_bytes: Some(5), ..none() }, "one\nt").await;
        check(Options { stream: Some("stderr".into()), ..none() }, "two\n").await;
        check(Options { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..none() }, "three\n").await;
        let stamped = "2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z three\n";
        check(Options { timestamps: true, ..none() }, stamped).await;
    }

    #[tokio::test]
    async fn following_sees_growth_rotation_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t stdout F a\n").unwrap();
        let (sender, mut receiver) = mpsc::channel(100);
        let (alive, running) = watch::channel(true);
        let reading = path.clone();
        let options = Options { follow: true, ..Options::default() };
        let task = tokio::spawn(async move { send(&reading, &options, running, sender).await });
        assert_eq!(receiver.recv().await.unwrap(), "a\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"t stdout F b\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "b\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "t stdout F c\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "c\n");
        alive.send(false).unwrap();
        assert_eq!(receiver.recv().await, None);
        task.await.unwrap().unwrap();
    }
}
