//! What a person sees while something takes a while: one line a step, with its time.
//!
//! Talk goes to standard error, data to standard output. Colour only on a terminal, and not with `NO_COLOR`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// The lines of one command, timed from the one before.
#[derive(Debug)]
pub(crate) struct Report {
    colour: bool,
    started: Instant,
    last: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, started: now, last: now }
    }

    pub(crate) fn step(&mut self, name: &str, detail: &str) {
        let now = Instant::now();
        let line = step_line(name, detail, now.duration_since(self.last), self.colour);
        self.last = now;
        say(&line);
    }

    pub(crate) fn total(&self) -> Duration {
        self.started.elapsed()
    }
}

fn step_line(name: &str, detail: &str, took: Duration, colour: bool) -> String {
    let (on, dim, off) = if colour { ("\x1b[32m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    format!("{on}✓{off} {name:<26} {dim}{:>7}{off}  {detail}", seconds(took)).trim_end().to_owned()
}

/// `0.04 s`, `12.3 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

/// Why a command failed. A full disk can stop any step of any of them, and few of them can say what helps.
pub(crate) fn failure(error: &anyhow::Error) -> String {
    let text = format!("error: {error:#}");
    let is_advised = text.to_lowercase().contains("free some");
    if text.contains("No space left on device") && !is_advised {
        return format!("{text}; free some space on the disk that holds it, and try again");
    }
    text
}

/// One line to the person, who may have closed the terminal.
pub(crate) fn say(line: &str) {
    let _nobody_reads = writeln!(io::stderr(), "{line}");
}

/// Data to standard output; the error is the reader's end of the pipe being closed.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_riddle() {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let text = failure(&anyhow::Error::from(full).context("write /x"));
        assert!(text.starts_with("error: write /x: No space left on device"), "{text}");
        assert!(text.ends_with("; free some space on the disk that holds it, and try again"), "{text}");
        let text = failure(&anyhow::anyhow!("no space left under /x: free some: No space left on device"));
        assert!(text.ends_with("on device"), "{text}");
    }

    #[test]
    fn lines() {
        let check = |detail: &str, millis: u64, expect: &str| {
            assert_eq!(step_line("API server", detail, Duration::from_millis(millis), false), expect);
        };
        check("https://192.0.2.1:6443", 84, "✓ API server                  0.08 s  https://192.0.2.1:6443");
        check("", 12_340, "✓ API server                  12.3 s");
    }
}
