//! Runs one plugin once: JSON in, environment, JSON or an error object out, killed when it takes too long.
//!
//! The plugin gets its own process group, so that a delegate it started dies with it. Output beyond
//! [`OUTPUT_BYTES_MAX`] is an error, not memory.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::{InvokeError, Runtime};
use crate::{Command, PluginError};

/// A result is a few kilobytes; what is longer is no result.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
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
    let Some(ended) = communicate(&mut child, input, timeout).map_err(failed)? else {
        kill(&mut child);
        return Err(InvokeError::Timeout { plugin: plugin.to_owned(), command, timeout });
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

/// Feeds and drains the pipes until both outputs end; `None` when the time is over.
fn communicate(child: &mut Child, input: Vec<u8>, timeout: Duration) -> io::Result<Option<Ended>> {
    let began = Instant::now();
    let (send, receive) = mpsc::channel();
    let pipe_gone = || io::Error::other("the plugin's pipes were not opened");
    let mut stdin = child.stdin.take().ok_or_else(pipe_gone)?;
    let stdout = child.stdout.take().ok_or_else(pipe_gone)?;
    let stderr = child.stderr.take().ok_or_else(pipe_gone)?;
    // A plugin may end without reading its input; that alone is no failure.
    thread::spawn(move || drop(stdin.write_all(&input)));
    let to_stderr = send.clone();
    thread::spawn(move || to_stderr.send((false, drain(stderr))));
    thread::spawn(move || send.send((true, drain(stdout))));
    let mut ended = Ended { stdout: Vec::new(), stderr: Vec::new() };
    for _ in 0..2 {
        let left = timeout.saturating_sub(began.elapsed());
        let Ok((is_stdout, bytes)) = receive.recv_timeout(left) else { return Ok(None) };
        if is_stdout {
            ended.stdout = bytes?;
        } else {
            ended.stderr = bytes?;
        }
    }
    Ok(Some(ended))
}

fn drain(pipe: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = pipe.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > OUTPUT_BYTES_MAX {
        return Err(io::Error::other("the plugin printed more than 1 MiB"));
    }
    Ok(bytes)
}

/// The group first, then the child itself, so that nothing keeps the pipes open.
fn kill(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
