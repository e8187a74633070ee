//! A container's log file in the CRI's format: `<time> <stdout|stderr> <F|P> <text>`.
//!
//! A line longer than [`CHUNK_BYTES`] is cut into partial (P) entries; the entry that holds its end is full (F). What has no newline yet
//! waits in memory, at most one chunk per stream; at the stream's end it is written as P, because a reader then prints no newline
//! that the program never wrote.
//!
//! Invariant: a log that cannot be written (disk full) never stops the container; what is lost is counted.

use super::clock;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// As containerd and CRI-O cut.
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    partial: [Vec<u8>; 2],
    dropped_bytes: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, partial: [Vec::new(), Vec::new()], dropped_bytes: 0 })
    }

    /// Opens the path anew; on an error the old file stays in use.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Takes output as it came; `scratch` is working memory that callers share.
    pub(crate) fn push(&mut self, stream: Stream, mut bytes: &[u8], now_ns: i64, scratch: &mut Vec<u8>) {
        scratch.clear();
        let partial = &mut self.partial[stream as usize];
        while !bytes.is_empty() {
            let room = CHUNK_BYTES - partial.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    entry(stream, true, &[partial, &window[..end]], now_ns, scratch);
                    partial.clear();
                    bytes = &bytes[end + 1..];
                }
                // A newline right after a full chunk still makes it a whole line, not a partial one and an empty one.
                None if window.len() == room && bytes.get(room) == Some(&b'\n') => {
                    entry(stream, true, &[partial, window], now_ns, scratch);
                    partial.clear();
                    bytes = &bytes[room + 1..];
                }
                None if window.len() == room && bytes.len() > room => {
                    entry(stream, false, &[partial, window], now_ns, scratch);
                    partial.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    partial.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                }
            }
        }
        // A full chunk with nothing behind it yet waits for the next byte, which tells whether the line goes on.
        if partial.is_empty() {
            *partial = Vec::new();
        }
        self.write(scratch);
    }

    /// The stream has ended: writes what waits.
    pub(crate) fn finish(&mut self, stream: Stream, now_ns: i64, scratch: &mut Vec<u8>) {
        scratch.clear();
        let partial = std::mem::take(&mut self.partial[stream as usize]);
        if !partial.is_empty() {
            entry(stream, false, &[&partial], now_ns, scratch);
            self.write(scratch);
        }
    }

    fn write(&mut self, entries: &[u8]) {
        if self.file.write_all(entries).is_err() {
            self.dropped_bytes += entries.len() as u64;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

fn entry(stream: Stream, full: bool, text: &[&[u8]], now_ns: i64, out: &mut Vec<u8>) {
    clock::push_rfc3339(now_ns, out);
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend_from_slice(if full { b"F " } else { b"P " });
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes parts and compares entries as `(tag, length or text)`.
    fn check(parts: &[&[u8]], expect: &[(&str, &str)]) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(&dir.path().join("0.log")).unwrap();
        let mut scratch = Vec::new();
        for part in parts {
            log.push(Stream::Stdout, part, 0, &mut scratch);
        }
        log.finish(Stream::Stdout, 0, &mut scratch);
        let text = std::fs::read_to_string(log.path()).unwrap();
        let entries: Vec<(String, String)> = text
            .lines()
            .map(|line| {
                let rest = line.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap();
                let (tag, text) = rest.split_once(' ').unwrap();
                let text = if text.len() > 100 { text.len().to_string() } else { text.to_owned() };
                (tag.to_owned(), text)
            })
            .collect();
        let entries: Vec<(&str, &str)> = entries.iter().map(|(tag, text)| (tag.as_str(), text.as_str())).collect();
        assert_eq!(entries, expect);
    }

    #[test]
    fn lines_are_cut_as_the_cri_wants() {
        let long = vec![b'x'; CHUNK_BYTES];
        check(&[b"a\nb\n"], &[("F", "a"), ("F", "b")]);
        check(&[b"a", b"b\n"], &[("F", "ab")]);
        check(&[b"\n\n"], &[("F", ""), ("F", "")]);
        check(&[b"no end"], &[("P", "no end")]);
        check(&[&long, b"\n"], &[("F", "16384")]);
        check(&[&long, b"yz\n"], &[("P", "16384"), ("F", "yz")]);
        check(&[&[&long[..], b"\nz\n"].concat()], &[("F", "16384"), ("F", "z")]);
        check(&[&[&long[..], &long[..], b"!\n"].concat()], &[("P", "16384"), ("P", "16384"), ("F", "!")]);
        check(&[&long], &[("P", "16384")]);
    }

    #[test]
    fn streams_do_not_mix_and_a_reopened_log_goes_on_in_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let mut scratch = Vec::new();
        log.push(Stream::Stdout, b"out", 0, &mut scratch);
        log.push(Stream::Stderr, b"err\n", 0, &mut scratch);
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.reopen().unwrap();
        log.push(Stream::Stdout, b"put\n", 0, &mut scratch);
        let old = std::fs::read_to_string(dir.path().join("0.log.1")).unwrap();
        assert!(old.ends_with("stderr F err\n") && !old.contains("stdout"), "{old}");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("stdout F output\n"));
    }

    #[test]
    fn a_full_disk_is_counted_and_does_not_stop_anything() {
        let mut log = Log::open(Path::new("/dev/full")).unwrap();
        log.push(Stream::Stdout, b"lost\n", 0, &mut Vec::new());
        assert_eq!(log.dropped_bytes(), "1970-01-01T00:00:00.000000000Z stdout F lost\n".len() as u64);
    }
}
