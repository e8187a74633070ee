//! The background process of an instance, seen from outside: started, found, stopped.
//!
//! A daemon holds an exclusive lock on `daemon.lock` for as long as it lives and writes its pid inside, so "is it running"
//! is one `flock` and never a stale pid file. Until it is ready it tells its steps as JSON lines on its standard output,
//! a pipe that the starter reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use runtime_linux::pidfd;
use serde::{Deserialize, Serialize};

use crate::instance::Layout;

/// How many lines of a daemon's log are shown when it ends before it is ready.
const LOG_LINES_SHOWN: usize = 12;
/// How long a killed daemon may take to end; one that takes longer is stuck in the kernel and counts as running.
const ENDING_MILLISECONDS: u16 = 10_000;
/// In the sets of proc_pid_status(5).
const SIGKILL_BIT: u64 = 1 << 8;
/// A log larger than this is set aside as `.1` when a daemon starts.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("start {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("find this program's own file")]
    OwnPath { source: io::Error },
    #[error("already running as process {pid}; `sampan status` shows it, `sampan down` ends it")]
    Running { pid: i32 },
    #[error("the daemon ended before it was ready ({status}); the end of {log}:\n{tail}")]
    Ended { status: String, log: PathBuf, tail: String },
    #[error("{reason} (the daemon's log is {log})")]
    Failed { reason: String, log: PathBuf },
    #[error(
        "the node is not Ready: {reason}. The daemon goes on trying; `kubectl describe node` shows how it does, its log is {log}"
    )]
    NotReady { reason: String, log: PathBuf },
    #[error("read the daemon's progress")]
    Progress { source: io::Error },
    #[error("signal process {pid}")]
    Signal { pid: i32, source: io::Error },
    #[error("process {pid} did not end within {seconds} s of SIGTERM; look at {log}, then end it with `kill -9 {pid}`")]
    Stuck { pid: i32, seconds: u64, log: PathBuf },
}

/// What a starting daemon says, a JSON object a line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub(crate) enum Progress {
    /// A step is done.
    Step { name: String, detail: String },
    /// It ends before it is ready. Told here too, because a full disk takes no line of a log.
    Failed { reason: String },
    /// It goes on, but its node is not Ready, and nobody should wait for it any longer.
    NotReady { reason: String },
    /// Everything asked for is done; the daemon now lets go of its standard output.
    Ready,
}

/// Held by a running daemon. Dropping it, also by dying, lets the next one start.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

fn lock_path(layout: &Layout) -> PathBuf {
    layout.run.join("daemon.lock")
}

fn open_lock(path: &Path) -> Result<File, DaemonError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| DaemonError::File { what: "open", path: path.into(), source })
}

impl Lock {
    /// Becomes the daemon of this instance, or says who is.
    pub(crate) fn take(layout: &Layout) -> Result<Self, DaemonError> {
        let path = lock_path(layout);
        let file = open_lock(&path)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => return Err(DaemonError::Running { pid: read_pid(&mut file) }),
            Err((_, errno)) => return Err(DaemonError::File { what: "lock", path, source: errno.into() }),
        };
        let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(|source| DaemonError::File { what: "write", path, source })?;
        Ok(Self { _file: file })
    }
}

/// The pid of the running daemon, if one runs.
pub(crate) fn running(layout: &Layout) -> Result<Option<i32>, DaemonError> {
    let path = lock_path(layout);
    if !path.exists() {
        return Ok(None);
    }
    match holder(&path)? {
        Some(pid) if is_killed(pid) => {
            // Its threads end one after the other, and only the last one lets go of the lock; the descriptor tells when.
            if let Ok(process) = pidfd::open(pid) {
                let _stuck_is_running = pidfd::wait_ended(&process, PollTimeout::from(ENDING_MILLISECONDS));
            }
            holder(&path)
        }
        other => Ok(other),
    }
}

/// Who has the lock at this moment.
fn holder(path: &Path) -> Result<Option<i32>, DaemonError> {
    match Flock::lock(open_lock(path)?, FlockArg::LockSharedNonblock) {
        Ok(_nobody_has_it) => Ok(None),
        Err((mut file, Errno::EWOULDBLOCK)) => Ok(Some(read_pid(&mut file))),
        Err((_, errno)) => Err(DaemonError::File { what: "lock", path: path.to_owned(), source: errno.into() }),
    }
}

/// Whether a process is past any return: a zombie whose other threads may still be ending, or one with a SIGKILL before it.
fn is_killed(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| match line.split_once(":\t") {
        Some(("State", state)) => state.starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", set)) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & SIGKILL_BIT != 0),
        _ => false,
    })
}

/// Zero between the lock and the write, a window of microseconds.
fn read_pid(file: &mut File) -> i32 {
    let mut text = String::new();
    let _unread_is_zero = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    text.trim().parse().unwrap_or(0)
}

/// Starts `sampan SUBCOMMAND` in the background and calls `on_step` for each step until it is ready.
pub(crate) fn start(
    layout: &Layout,
    arguments: &[&str],
    mut on_step: impl FnMut(&str, &str),
) -> Result<u32, DaemonError> {
    if let Some(pid) = running(layout)? {
        return Err(DaemonError::Running { pid });
    }
    let log_path = layout.daemon_log();
    let log = open_log(&log_path)?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());
    let program = std::env::current_exe().map_err(|source| DaemonError::OwnPath { source })?;
    let mut command = Command::new(&program);
    if let Some(root) = &layout.root {
        command.arg("--root").arg(root);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    let mut child = command.spawn().map_err(|source| DaemonError::Start { program, source })?;
    follow(&mut child, &log_path, log_start, &mut on_step)?;
    Ok(child.id())
}

fn follow(
    child: &mut Child,
    log: &Path,
    log_start: u64,
    on_step: &mut impl FnMut(&str, &str),
) -> Result<(), DaemonError> {
    let Some(stdout) = child.stdout.take() else { return Ok(()) };
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|source| DaemonError::Progress { source })?;
        match serde_json::from_str(&line) {
            Ok(Progress::Step { name, detail }) => on_step(&name, &detail),
            Ok(Progress::Ready) => return Ok(()),
            Ok(Progress::NotReady { reason }) => return Err(DaemonError::NotReady { reason, log: log.into() }),
            Ok(Progress::Failed { reason }) => {
                // What it answers is in the reason.
                let _status = child.wait();
                return Err(DaemonError::Failed { reason, log: log.into() });
            }
            Err(_) => on_step(&line, ""),
        }
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    Err(DaemonError::Ended { status, log: log.into(), tail: tail(log, log_start) })
}

fn open_log(path: &Path) -> Result<File, DaemonError> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        // A log that cannot be set aside goes on growing; it is no reason not to start.
        let _kept = fs::rename(path, path.with_extension("log.1"));
    }
    OpenOptions::new().append(true).create(true).open(path).map_err(|source| DaemonError::File {
        what: "open",
        path: path.into(),
        source,
    })
}

/// The last lines that were written from `start` on.
fn tail(path: &Path, start: u64) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.read_to_string(&mut text)
    });
    if read.is_err() || text.trim().is_empty() {
        return "  (nothing)".into();
    }
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    shown.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Asks the daemon to end and waits until it has. Containers are not its children and live on.
pub(crate) fn stop(layout: &Layout, pid: i32, patience: Duration) -> Result<(), DaemonError> {
    let gone_or = |errno: Errno| {
        if errno == Errno::ESRCH { Ok(()) } else { Err(DaemonError::Signal { pid, source: errno.into() }) }
    };
    let process = match pidfd::open(pid) {
        Ok(process) => process,
        Err(errno) => return gone_or(errno),
    };
    if let Err(errno) = pidfd::send_signal(&process, Signal::SIGTERM as i32) {
        return gone_or(errno);
    }
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match pidfd::wait_ended(&process, timeout) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DaemonError::Stuck { pid, seconds: patience.as_secs(), log: layout.daemon_log() }),
        Err(errno) => gone_or(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_told_from_a_running_one() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!is_killed(pid) && !is_killed(0));
        // Not reaped, so it stays as what it is until somebody asks.
        child.kill().unwrap();
        assert!(is_killed(pid));
        child.wait().unwrap();
    }

    #[test]
    fn one_daemon_an_instance() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        assert_eq!(running(&layout).unwrap(), None);
        let lock = Lock::take(&layout).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(running(&layout).unwrap(), Some(pid));
        assert!(matches!(Lock::take(&layout), Err(DaemonError::Running { pid: found }) if found == pid));
        drop(lock);
        assert_eq!(running(&layout).unwrap(), None);
    }

    #[test]
    fn shows_the_end_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "old\nnew 1\nnew 2\n").unwrap();
        assert_eq!(tail(&path, 4), "  new 1\n  new 2");
        assert_eq!(tail(&path, 1000), "  (nothing)");
    }
}
