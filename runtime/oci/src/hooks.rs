//! Hooks: programs of the caller's that run at the moments of runtime-spec 1.3, "POSIX-platform Hooks".
//!
//! Each gets the state on its standard input, its own environment and nothing else. Invariant: no descriptor beyond the three standard
//! ones reaches a hook, since all of ours are close-on-exec.

use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::poll::PollTimeout;
use oci_spec::runtime::Hook;
use runtime_linux::pidfd;

use crate::status::State;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("error running {kind} hook #{index}: {}: cannot be run: {source}", path.display())]
    Spawn { kind: &'static str, index: usize, path: PathBuf, source: std::io::Error },
    #[error("error running {kind} hook #{index}: {}: {what}", path.display())]
    Failed { kind: &'static str, index: usize, path: PathBuf, what: String },
    #[error("error running {kind} hook #{index}: {}: ran longer than its timeout of {seconds} s and was killed", path.display())]
    TimedOut { kind: &'static str, index: usize, path: PathBuf, seconds: i64 },
    #[error("error running {kind} hook #{index}: timeout {seconds} is not greater than zero")]
    BadTimeout { kind: &'static str, index: usize, seconds: i64 },
}

/// Runs them in order; the first that fails ends it.
pub(crate) fn run(kind: Kind, hooks: &[Hook], state: &State) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::to_vec(state).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        run_one(kind.name(), index, hook, &state)?;
    }
    Ok(())
}

fn run_one(kind: &'static str, index: usize, hook: &Hook, state: &[u8]) -> Result<(), Error> {
    let path = || hook.path().clone();
    let timeout = match hook.timeout() {
        None => PollTimeout::NONE,
        Some(seconds) if seconds > 0 => PollTimeout::try_from(seconds.saturating_mul(1000)).unwrap_or(PollTimeout::MAX),
        Some(seconds) => return Err(Error::BadTimeout { kind, index, seconds }),
    };
    let mut command = Command::new(hook.path());
    command.env_clear().stdin(Stdio::piped());
    if let Some((zero, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(zero).args(rest);
    }
    for variable in hook.env().iter().flatten() {
        if let Some((key, value)) = variable.split_once('=').filter(|(key, _)| !key.is_empty()) {
            command.env(key, value);
        }
    }
    let mut child = command.spawn().map_err(|source| Error::Spawn { kind, index, path: path(), source })?;
    let failed = |what: String| Error::Failed { kind, index, path: path(), what };
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(state) {
            // A hook need not read its state.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(failed(error.to_string())),
            _ => {}
        }
    }
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let ended = pidfd::open(pid).and_then(|pidfd| pidfd::wait_ended(&pidfd, timeout));
    if ended == Ok(false) {
        // Both can only fail for a process that has just ended by itself.
        let _ended = child.kill();
        let _reaped = child.wait();
        return Err(Error::TimedOut { kind, index, path: path(), seconds: hook.timeout().unwrap_or(0) });
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(status.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}
