//! From what was typed to what it means, and from what happened to what is said.
//!
//! One file per group of commands. Standard output is data; errors go to standard error and, with `--log`, to a file, where they also
//! carry the step, the errno and the path. COMMANDS.md beside this package is the reference, SUITES.md how it does under the suites of its peers.

mod arguments;
mod bytes;
mod checkpoint;
mod control;
mod events;
mod exec;
mod explain;
mod features;
mod foreground;
mod inspect;
mod interval;
mod lifecycle;
mod mounts;
mod process_table;
mod report;
mod signal;
mod spec;
mod update;

use std::io::Write;
use std::process::ExitCode;

use arguments::{Arguments, Command, Typed};

/// Why a command failed: the library's error, or the command line's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Oci(#[from] runtime_oci::Error),
    /// What was typed cannot be meant.
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// Some of several containers; each has been told of.
    #[error("{failed} of {all} containers: see the errors above")]
    Several { failed: usize, all: usize },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::Io { what: what.into(), source: errno.into() }
    }
}

/// runc's exit codes: 1 for any failure, 255 for an exec that did not come to run its program.
const FAILED: u8 = 1;
const EXEC_FAILED: u8 = 255;

/// Those whose process comes near a container.
const ENTERING: [&str; 5] = ["create", "exec", "mounts", "restore", "run"];

pub(crate) fn main() -> ExitCode {
    if std::env::args_os().skip(1).any(|word| ENTERING.iter().any(|verb| word == *verb)) {
        // First of all, since all that comes before is done twice. Where it fails, `secure_self` says so.
        let _told_later = runtime_linux::executable::ensure_protected();
    }
    let arguments = match arguments::parse() {
        Ok(Typed::Command(arguments)) => arguments,
        Ok(Typed::Print(text)) => return ExitCode::from(print(&text).map_or(FAILED, |()| 0)),
        Err(error) => {
            report::Reporter::from_words(std::env::args().skip(1)).error(&error, "");
            return ExitCode::from(FAILED);
        }
    };
    let is_exec = matches!(arguments.command, Command::Exec(_));
    let failed = if is_exec { EXEC_FAILED } else { FAILED };
    let reporter = match report::Reporter::new(&arguments.global) {
        Ok(reporter) => reporter,
        Err(error) => {
            report::Reporter::default().error(&error, "");
            return ExitCode::from(failed);
        }
    };
    match run(&arguments, &reporter) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            reporter.error(&error, if is_exec { "exec failed: " } else { "" });
            ExitCode::from(failed)
        }
    }
}

fn run(arguments: &Arguments, reporter: &report::Reporter) -> Result<u8, Error> {
    let global = &arguments.global;
    if matches!(
        arguments.command,
        Command::Start { .. } | Command::Delete { .. } | Command::Checkpoint(_) | Command::Restore(_)
    ) {
        // No hook, and no criu, gets what our caller left open.
        runtime_linux::process::close_on_exec_from(3).map_err(Error::errno("close inherited descriptors at exec"))?;
    }
    let root = &global.state_root();
    match &arguments.command {
        Command::Checkpoint(checkpoint) => checkpoint::checkpoint(root, global, checkpoint),
        Command::Create(create) => lifecycle::create(root, global, create, reporter),
        Command::Delete(delete) => control::delete(root, delete, reporter),
        Command::Events(events) => events::events(root, events),
        Command::Exec(exec) => exec::exec(root, exec, reporter),
        Command::Features => features::print(),
        Command::Kill(kill) => control::kill(root, kill, reporter),
        Command::List(list) => inspect::list(root, list, global.names_root(), reporter),
        Command::Mounts(mounts) => mounts::mounts(root, mounts, reporter),
        Command::Pause { id } => control::pause(root, id),
        Command::Ps(ps) => process_table::print(root, ps),
        Command::Restore(restore) => checkpoint::restore(root, global, restore, reporter),
        Command::Resume { id } => control::resume(root, id),
        Command::Run(run) => lifecycle::run(root, global, run, reporter),
        Command::Spec(spec) => spec::write(spec),
        Command::Start { id } => lifecycle::start(root, id, reporter),
        Command::State { id } => inspect::state(root, id),
        Command::Update(update) => update::update(root, update, reporter),
    }
}

/// Data for standard output. A reader that has gone is not an error of ours.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to standard output")(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let what = || "encode the answer".to_owned();
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json { what: what(), source })?;
    print(&format!("{text}\n"))
}
