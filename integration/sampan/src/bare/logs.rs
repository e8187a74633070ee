//! `sampan logs`: the container runtime's log file without its stamps.
//!
//! Each line is `TIME STREAM TAG TEXT` (CRI, "container log format"); the tag `P` says that the line goes on in the next one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use runtime_cri_api::v1;
use tokio::io::unix::AsyncFd;

use super::session::Session;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Container by name or by the beginning of its id
    container: String,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<()> {
    let container = session.find(&args.container).await?;
    let status = session.status(&container.id).await?;
    if status.log_path.is_empty() {
        bail!("{} keeps no log", args.container);
    }
    let path = Path::new(&status.log_path);
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    skip_to_tail(&mut reader, path, args.tail)?;
    let mut printer = Printer { timestamps: args.timestamps, partial: Vec::new() };
    // Watched before the first read, so that no line falls between.
    let watch = watch(path)?;
    printer.print_rest(&mut reader)?;
    if !args.follow || status.state() != v1::ContainerState::ContainerRunning {
        return Ok(());
    }
    let ended = session.wait(&container.id);
    tokio::pin!(ended);
    loop {
        tokio::select! {
            ready = watch.readable() => {
                let mut ready = ready.context("wait for the log")?;
                // The events themselves say nothing that the file does not.
                let mut drained = [0; 4096];
                let _nothing_new = nix::unistd::read(watch.get_ref(), &mut drained);
                ready.clear_ready();
                printer.print_rest(&mut reader)?;
            }
            ended = &mut ended => {
                ended?;
                return printer.print_rest(&mut reader);
            }
        }
    }
}

fn watch(path: &Path) -> Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).context("make an inotify instance")?;
    inotify.add_watch(path, AddWatchFlags::IN_MODIFY).with_context(|| format!("watch {}", path.display()))?;
    #[expect(
        deprecated,
        reason = "the new call is unsafe for types that could give out another descriptor; OwnedFd cannot"
    )]
    AsyncFd::new(OwnedFd::from(inotify)).context("wait for inotify")
}

/// Whole lines only: a partial one counts with the one that ends it.
fn skip_to_tail(reader: &mut BufReader<File>, path: &Path, tail: Option<usize>) -> Result<()> {
    let Some(tail) = tail else { return Ok(()) };
    let counted = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let is_end = |line: &[u8]| matches!(parse(line), Some(Line { is_partial: false, .. }));
    let lines = BufReader::new(counted).split(b'\n');
    let mut total = 0;
    for line in lines {
        total += usize::from(is_end(&line.context("read the log")?));
    }
    let mut skipped = 0;
    let mut line = Vec::new();
    while skipped < total.saturating_sub(tail) {
        line.clear();
        if reader.read_until(b'\n', &mut line).context("read the log")? == 0 {
            break;
        }
        skipped += usize::from(is_end(line.trim_ascii_end()));
    }
    Ok(())
}

struct Line<'a> {
    time: &'a [u8],
    is_stderr: bool,
    is_partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default();
    Some(Line { time, is_stderr: stream == b"stderr", is_partial: tag.first() == Some(&b'P'), text })
}

struct Printer {
    timestamps: bool,
    /// The beginning of a line that is still being written.
    partial: Vec<u8>,
}

impl Printer {
    fn print_rest(&mut self, reader: &mut BufReader<File>) -> Result<()> {
        loop {
            let read = reader.read_until(b'\n', &mut self.partial).context("read the log")?;
            if read == 0 || self.partial.last() != Some(&b'\n') {
                return Ok(());
            }
            let line = std::mem::take(&mut self.partial);
            self.print(line.strip_suffix(b"\n").unwrap_or(&line)).context("write the log")?;
        }
    }

    fn print(&self, line: &[u8]) -> io::Result<()> {
        let Some(line) = parse(line) else { return Ok(()) };
        let mut text = Vec::with_capacity(line.text.len() + 40);
        if self.timestamps {
            text.extend_from_slice(line.time);
            text.push(b' ');
        }
        text.extend_from_slice(line.text);
        if !line.is_partial {
            text.push(b'\n');
        }
        if line.is_stderr { write(io::stderr().lock(), &text) } else { write(io::stdout().lock(), &text) }
    }
}

fn write(mut to: impl Write, text: &[u8]) -> io::Result<()> {
    to.write_all(text)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_count_whole_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "t stdout F one\nt stdout P two \nt stdout F and a half\nt stderr F three\n").unwrap();
        let check = |tail: Option<usize>, expect: &str| {
            let mut reader = BufReader::new(File::open(&path).unwrap());
            skip_to_tail(&mut reader, &path, tail).unwrap();
            let mut rest = String::new();
            io::Read::read_to_string(&mut reader, &mut rest).unwrap();
            assert_eq!(rest.lines().next().unwrap_or_default(), expect, "{tail:?}");
        };
        check(None, "t stdout F one");
        check(Some(0), "");
        check(Some(1), "t stderr F three");
        check(Some(2), "t stdout P two ");
        check(Some(9), "t stdout F one");
    }
}
