//! Runs one plugin once: JSON in, environment, JSON or an error object out, killed when it takes too long.
//!
//! The plugin gets its own process group, so that a delegate it started dies with it. Output beyond
//! [`OUTPUT_BYTES_MAX`] is an error, not memory.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::{InvokeError, Runtime};
use crate::{Command, PluginError};

/// A result is a few kilobytes; what is longer is no result.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// How much of a crashed plugin's output goes into the message.
const MESSAGE_BYTES_MAX: usize = 512;

/// The first regular file called `plugin`.
pub(super) fn find(plugin: &str, directories: &[PathBuf]) -> Result<PathBuf, InvokeError> {
    directories
        .iter()
        .map(|directory| directory.join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| InvokeError::NotFound { plugin: plugin.to_owned(), directories: directories.to_vec() })
}

/// Runs it and returns its standard output. Without `runtime` the child inherits any `CNI_*` variables but the command.
pub(super) fn run(
    command: Command,
    plugin: &str,
    input: &Map<String, Value>,
    runtime: Option<&Runtime>,
    directories: &[PathBuf],
    timeout: Duration,
) -> Result<Vec<u8>, InvokeError> {
    let path = find(plugin, directories)?;
    let failed = |source| InvokeError::Run { path: path.clone(), source };
    let input = serde_json::to_vec(input).map_err(io::Error::from).map_err(failed)?;
    let path_list = std::env::join_paths(directories).map_err(io::Error::other).map_err(failed)?;
    let mut process = process::Command::new(&path);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    process.env("CNI_COMMAND", command.as_str()).env("CNI_PATH", path_list);
    if let Some(runtime) = runtime {
        let args: Vec<String> = runtime.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        process
            .env("CNI_CONTAINERID", &runtime.container_id)
            .env("CNI_IFNAME", &runtime.if_name)
            .env("CNI_ARGS", args.join(";"))
            .env("CNI_NETNS", runtime.netns.as_deref().unwrap_or("".as_ref()));
    }
    let mut child = process.spawn().map_err(failed)?;
    let ended = match communicate(&mut child, &input, timeout) {
        Ok(Some(ended)) => ended,
        // Whatever failed, nobody goes on to work for a caller that left.
        Ok(None) => {
            kill(&mut child);
            return Err(InvokeError::Timeout { plugin: plugin.to_owned(), command, timeout });
        }
        Err(error) => {
            kill(&mut child);
            return Err(failed(error));
        }
    };
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(ended.stdout);
    }
    match serde_json::from_slice::<PluginError>(&ended.stdout) {
        Ok(source) => Err(InvokeError::Plugin { plugin: plugin.to_owned(), command, source }),
        Err(_) => {
            let output = if ended.stderr.is_empty() { &ended.stdout } else { &ended.stderr };
            let tail = &output[output.len().saturating_sub(MESSAGE_BYTES_MAX)..];
            let output = String::from_utf8_lossy(tail).trim().to_owned();
            Err(InvokeError::Crashed { plugin: plugin.to_owned(), command, status: status.to_string(), output })
        }
    }
}

struct Ended {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Feeds and drains the pipes until both outputs end; `None` when the time is over. No thread, so nothing stays behind when
/// somebody whom the plugin started, and who left its process group, keeps a pipe open.
fn communicate(child: &mut Child, input: &[u8], timeout: Duration) -> io::Result<Option<Ended>> {
    let began = Instant::now();
    let pipe_gone = || io::Error::other("the plugin's pipes were not opened");
    let mut stdin = Some(child.stdin.take().ok_or_else(pipe_gone)?);
    let mut stdout = Some(child.stdout.take().ok_or_else(pipe_gone)?);
    let mut stderr = Some(child.stderr.take().ok_or_else(pipe_gone)?);
    for pipe in [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)] {
        set_nonblocking(pipe.ok_or_else(pipe_gone)?)?;
    }
    let mut ended = Ended { stdout: Vec::new(), stderr: Vec::new() };
    let mut rest = input;
    while stdout.is_some() || stderr.is_some() {
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        let mut waiting = Vec::with_capacity(3);
        waiting.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        waiting.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        waiting.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        // Rounded up: a wait of no time at all would be a busy one.
        let wait = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting, wait) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some(pipe) = &mut stdin
            && feed(pipe, &mut rest)?
        {
            stdin = None;
        }
        if let Some(pipe) = &mut stdout
            && drain(pipe, &mut ended.stdout)?
        {
            stdout = None;
        }
        if let Some(pipe) = &mut stderr
            && drain(pipe, &mut ended.stderr)?
        {
            stderr = None;
        }
    }
    Ok(Some(ended))
}

fn set_nonblocking(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether all was written, or nobody reads any more: a plugin may end without its input, and that alone is no failure.
fn feed(pipe: &mut ChildStdin, rest: &mut &[u8]) -> io::Result<bool> {
    while !rest.is_empty() {
        match pipe.write(rest) {
            Ok(0) => return Ok(true),
            Ok(count) => *rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Whether the output ended.
fn drain(pipe: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other("the plugin printed more than 1 MiB"));
        }
    }
}

/// The group first, then the child itself, so that nothing keeps the pipes open.
fn kill(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
