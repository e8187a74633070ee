//! The background process of an instance, seen from outside: started, found, stopped.
//!
//! A daemon holds an exclusive lock on `daemon.lock` for as long as it lives and writes its pid inside, so "is it running"
//! is one `flock` and never a stale pid file. One that begins to end says so in a second line; who asks then waits until it
//! has ended, for it still holds its store and its ports. Until a daemon is ready it tells its steps as JSON lines on its
//! standard output, a pipe that the starter reads.

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
/// How long a daemon that ends may take: it finishes its requests and its store first; then it is stuck.
pub(crate) const ENDING_PATIENCE: Duration = Duration::from_secs(20);
/// How long a daemon is watched after it became ready, if the one before it died: what killed that one mostly kills this
/// one at once.
const PROBATION: Duration = Duration::from_millis(1500);
/// The second line of the lock's file.
const ENDING: &str = "ending";
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
    #[error("the daemon ended ({status}); the end of {log}:\n{tail}")]
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
    #[error("wait for process {pid}")]
    Wait { pid: i32, source: io::Error },
    #[error(
        "process {pid} is ending and has not ended within {seconds} s; look at {log}, then end it with `kill -9 {pid}`"
    )]
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
    file: Flock<File>,
}

/// What the lock's file says.
struct Holder {
    /// Zero between the lock and the write, a window of microseconds.
    pid: i32,
    is_ending: bool,
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
            Err((mut file, Errno::EWOULDBLOCK)) => {
                return Err(DaemonError::Running { pid: read_holder(&mut file).pid });
            }
            Err((_, errno)) => return Err(DaemonError::File { what: "lock", path, source: errno.into() }),
        };
        // The kernel closes the files of a process one after the other: this one's may be free before its store's and its ports.
        let before = read_holder(&mut file).pid;
        if is_past_return(before) {
            wait_ended(layout, before)?;
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(|source| DaemonError::File { what: "write", path, source })?;
        Ok(Self { file })
    }

    /// From now on whoever asks waits for the end of this process.
    pub(crate) fn tell_ending(&self) {
        // A full disk: then it counts as running until it has ended.
        let _counts_as_running = write!(&*self.file, "\n{ENDING}");
    }
}

/// The pid of the running daemon, if one runs. Waits for one that ends.
pub(crate) fn running(layout: &Layout) -> Result<Option<i32>, DaemonError> {
    let path = lock_path(layout);
    if !path.exists() {
        return Ok(None);
    }
    match holder(&path)? {
        Some(Holder { pid, is_ending }) if is_ending || is_past_return(pid) => {
            wait_ended(layout, pid)?;
            Ok(holder(&path)?.map(|next| next.pid))
        }
        other => Ok(other.map(|holder| holder.pid)),
    }
}

/// Whether the daemon is what `sampan run` started, without a control plane.
pub(crate) fn is_runtime_alone(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"cri")
}

/// The process id of the last daemon, if it died: it was not told to end, and did not end by itself.
pub(crate) fn died(layout: &Layout) -> Option<i32> {
    let path = lock_path(layout);
    if holder(&path).ok()?.is_some() {
        return None;
    }
    let last = read_holder(&mut File::open(&path).ok()?);
    (last.pid > 0 && !last.is_ending).then_some(last.pid)
}

/// Who has the lock at this moment.
fn holder(path: &Path) -> Result<Option<Holder>, DaemonError> {
    match Flock::lock(open_lock(path)?, FlockArg::LockSharedNonblock) {
        Ok(_nobody_has_it) => Ok(None),
        Err((mut file, Errno::EWOULDBLOCK)) => Ok(Some(read_holder(&mut file))),
        Err((_, errno)) => Err(DaemonError::File { what: "lock", path: path.to_owned(), source: errno.into() }),
    }
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let _unread_is_zero = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    Holder { pid, is_ending: lines.next() == Some(ENDING) }
}

/// Whether a process is on its way out and cannot turn back: a zombie whose other threads may still be ending, one with a
/// SIGKILL before it, or one without memory. See proc_pid_status(5).
fn is_past_return(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let is_killed = status.lines().any(|line| match line.split_once(":\t") {
        Some(("State", state)) => state.starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", set)) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & SIGKILL_BIT != 0),
        _ => false,
    });
    is_killed || (!status.is_empty() && !status.contains("\nVmSize:"))
}

fn wait_ended(layout: &Layout, pid: i32) -> Result<(), DaemonError> {
    let timeout = PollTimeout::try_from(ENDING_PATIENCE).unwrap_or(PollTimeout::MAX);
    match pidfd::open(pid).and_then(|process| pidfd::wait_ended(&process, timeout)) {
        Ok(false) => Err(stuck(layout, pid)),
        Ok(true) | Err(Errno::ESRCH | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(DaemonError::Wait { pid, source: errno.into() }),
    }
}

fn stuck(layout: &Layout, pid: i32) -> DaemonError {
    DaemonError::Stuck { pid, seconds: ENDING_PATIENCE.as_secs(), log: layout.daemon_log() }
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
    let has_died = died(layout).is_some();
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
    if has_died && ends_within(&child, PROBATION) {
        return Err(ended(&mut child, &log_path, log_start));
    }
    Ok(child.id())
}

fn ends_within(child: &Child, time: Duration) -> bool {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    // A child that is not reaped has a pid descriptor, dead or not. If the kernel refuses one, the daemon counts as up.
    pidfd::open(pid).and_then(|process| pidfd::wait_ended(&process, timeout)).unwrap_or(false)
}

fn ended(child: &mut Child, log: &Path, log_start: u64) -> DaemonError {
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    DaemonError::Ended { status, log: log.into(), tail: tail(log, log_start) }
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
    Err(ended(child, log, log_start))
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
pub(crate) fn stop(layout: &Layout, pid: i32) -> Result<(), DaemonError> {
    let asked = pidfd::open(pid).and_then(|process| pidfd::send_signal(&process, Signal::SIGTERM as i32));
    match asked {
        Ok(()) => wait_ended(layout, pid),
        Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(DaemonError::Signal { pid, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_told_from_a_running_one() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!is_past_return(pid) && !is_past_return(0));
        // Not reaped, so it stays as what it is until somebody asks.
        child.kill().unwrap();
        assert!(is_past_return(pid));
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
    fn one_that_died_is_told_from_one_that_ended() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        assert_eq!(died(&layout), None, "there was none");
        let pid = i32::try_from(std::process::id()).unwrap();
        let lock = Lock::take(&layout).unwrap();
        assert_eq!(died(&layout), None, "it runs");
        drop(lock);
        assert_eq!(died(&layout), Some(pid), "as the kernel lets go of a dead process' lock");
        let lock = Lock::take(&layout).unwrap();
        lock.tell_ending();
        drop(lock);
        assert_eq!(died(&layout), None, "it said that it ends");
    }

    #[test]
    fn a_daemon_that_dies_again_is_not_up() {
        let check = |script: &str, expect: bool| {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            assert_eq!(ends_within(&child, Duration::from_millis(200)), expect, "{script}");
            child.kill().unwrap();
            child.wait().unwrap();
        };
        check("exit 101", true);
        check("exec sleep 60", false);
    }

    #[test]
    fn one_that_ends_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        // A process of its own, since a pid descriptor tells of whole processes.
        let path = lock_path(&layout);
        let mut child = Command::new("flock").arg(&path).args(["sleep", "0.3"]).spawn().unwrap();
        let ending = format!("{}\n{ENDING}", child.id());
        while holder(&path).unwrap().is_none() {
            std::thread::yield_now();
        }
        fs::write(&path, ending).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(running(&layout).unwrap(), None);
        assert!(reaper.join().unwrap().success());
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
