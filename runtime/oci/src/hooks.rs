//! Hooks: programs of the caller's that run at the moments of runtime-spec 1.3, "POSIX-platform Hooks".
//!
//! Each gets the state on its standard input, and its own environment where it has one. Invariant: no descriptor beyond the three
//! standard ones reaches a hook, since all of ours are close-on-exec.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

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
    #[error("error running {kind} hook #{index}: {}: exit status: {code}", path.display())]
    ExitCode { kind: &'static str, index: usize, path: PathBuf, code: i32 },
    #[error("error running {kind} hook #{index}: {}: ran longer than its timeout of {seconds} s and was killed", path.display())]
    TimedOut { kind: &'static str, index: usize, path: PathBuf, seconds: i64 },
    #[error("error running {kind} hook #{index}: timeout {seconds} is not greater than zero")]
    BadTimeout { kind: &'static str, index: usize, seconds: i64 },
}

/// What a hook finds around it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surroundings<'a> {
    /// `None`: the runtime's own.
    pub directory: Option<&'a Path>,
    /// For a hook without `env`; `None`: the runtime's own, as with runc and crun. A program of the container's never gets that.
    pub environment: Option<&'a [String]>,
}

/// crun's annotations: files of the host that a hook's output is appended to.
pub(crate) const OUTPUT: [&str; 2] = ["run.oci.hooks.stdout", "run.oci.hooks.stderr"];

/// Runs them in order; the first that fails ends it.
pub(crate) fn run(kind: Kind, hooks: &[Hook], state: &State, around: Surroundings<'_>) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_vec(state).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        run_one(&Call { kind, index, hook, state, around }, &text)?;
    }
    Ok(())
}

/// Runs them all: a failure is a warning, as runtime-spec 1.3 has it for poststop ("Lifecycle", 13).
pub(crate) fn run_all(kind: Kind, hooks: &[Hook], state: &State) -> Vec<String> {
    let text = serde_json::to_vec(state).unwrap_or_default();
    let around = Surroundings::default();
    let all = hooks.iter().enumerate();
    let ends = all.map(|(index, hook)| run_one(&Call { kind, index, hook, state, around }, &text));
    let said = |error: Error| match error {
        Error::ExitCode { code, .. } => format!("{} hook failed with exit code {code}: {error}", kind.name()),
        error => error.to_string(),
    };
    ends.filter_map(Result::err).map(said).collect()
}

#[derive(Clone, Copy)]
struct Call<'a> {
    kind: Kind,
    index: usize,
    hook: &'a Hook,
    state: &'a State,
    around: Surroundings<'a>,
}

impl Call<'_> {
    fn failed(&self, what: &impl ToString) -> Error {
        let (kind, index, path) = (self.kind.name(), self.index, self.hook.path().clone());
        Error::Failed { kind, index, path, what: what.to_string() }
    }

    fn command(&self) -> Result<Command, Error> {
        let hook = self.hook;
        if !hook.path().is_absolute() {
            return Err(self.failed(&"the path is not absolute"));
        }
        let mut command = Command::new(hook.path());
        command.stdin(Stdio::piped());
        if let Some((zero, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
            command.arg0(zero).args(rest);
        }
        if let Some(variables) = hook.env().as_deref().or(self.around.environment) {
            command.env_clear();
            for variable in variables {
                if let Some((key, value)) = variable.split_once('=').filter(|(key, _)| !key.is_empty()) {
                    command.env(key, value);
                }
            }
        }
        if let Some(directory) = self.around.directory {
            command.current_dir(directory);
        }
        // Paths of the host mean nothing to a hook that runs inside.
        if self.kind != Kind::StartContainer {
            for (name, is_stdout) in OUTPUT.into_iter().zip([true, false]) {
                let Some(path) = self.state.annotations.get(name) else { continue };
                let file = append_to(Path::new(path)).map_err(|error| self.failed(&format!("open {path}: {error}")))?;
                if is_stdout {
                    command.stdout(file)
                } else {
                    command.stderr(file)
                };
            }
        }
        Ok(command)
    }
}

/// Follows no symlink at the end: the file is the caller's own, or it is made.
fn append_to(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options.open(path)
}

fn run_one(call: &Call<'_>, state: &[u8]) -> Result<(), Error> {
    let (kind, index, hook) = (call.kind.name(), call.index, call.hook);
    let path = || hook.path().clone();
    let timeout = match hook.timeout() {
        None => PollTimeout::NONE,
        Some(seconds) if seconds > 0 => PollTimeout::try_from(seconds.saturating_mul(1000)).unwrap_or(PollTimeout::MAX),
        Some(seconds) => return Err(Error::BadTimeout { kind, index, seconds }),
    };
    let spawned = call.command()?.spawn();
    let mut child = spawned.map_err(|source| Error::Spawn { kind, index, path: path(), source })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(state) {
            // A hook need not read its state.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(call.failed(&error)),
            _ => {}
        }
    }
    // Without a limit there is nothing to watch, and a container's filter need not allow it.
    let has_limit = hook.timeout().is_some();
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let ended = || pidfd::open(pid).and_then(|pidfd| pidfd::wait_ended(&pidfd, timeout));
    if has_limit && ended() == Ok(false) {
        // Both can only fail for a process that has just ended by itself.
        let _ended = child.kill();
        let _reaped = child.wait();
        return Err(Error::TimedOut { kind, index, path: path(), seconds: hook.timeout().unwrap_or(0) });
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => match status.code() {
            Some(code) => Err(Error::ExitCode { kind, index, path: path(), code }),
            None => Err(call.failed(&signalled(status))),
        },
        Err(error) => Err(call.failed(&error)),
    }
}

fn signalled(status: ExitStatus) -> String {
    match status.signal() {
        Some(nix::libc::SIGSYS) => "bad system call: the container's seccomp filter forbids it".to_owned(),
        _ => status.to_string(),
    }
}
