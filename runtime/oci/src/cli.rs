//! From what was typed to what it means, and from what happened to what is said.
//!
//! One file per group of commands. Standard output is data; errors go to standard error and, with `--log`, to a file, where they also
//! carry the step and the errno.

mod arguments;
mod bytes;
mod events;
mod exec;
mod explain;
mod features;
mod foreground;
mod inspect;
mod lifecycle;
mod process_table;
mod report;
mod spec;
mod update;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

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

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let failed = error.use_stderr();
            // A closed terminal is nobody to tell.
            let _closed = error.print();
            return if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let is_exec = matches!(arguments.command, Command::Exec(_));
    let reporter = report::Reporter::new(&arguments.global);
    match run(&arguments, &reporter) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            reporter.error(&error, if is_exec { "exec failed: " } else { "" });
            ExitCode::from(if is_exec { EXEC_FAILED } else { FAILED })
        }
    }
}

fn run(arguments: &Arguments, reporter: &report::Reporter) -> Result<u8, Error> {
    let global = &arguments.global;
    if global.systemd_cgroup {
        return Err(Error::Usage(
            "--systemd-cgroup is not supported: this runtime makes cgroups directly; leave the flag out and give \
             linux.cgroupsPath as a path (podman: --cgroup-manager=cgroupfs, containerd: SystemdCgroup = false)"
                .to_owned(),
        ));
    }
    if matches!(arguments.command, Command::Start { .. } | Command::Delete { .. }) {
        // No hook gets what our caller left open.
        runtime_linux::process::close_on_exec_from(3).map_err(Error::errno("close inherited descriptors at exec"))?;
    }
    let root = global.state_root();
    match &arguments.command {
        Command::Create(create) => lifecycle::create(&root, create, reporter),
        Command::Run(run) => lifecycle::run(&root, run, reporter),
        Command::Start { id } => lifecycle::start(&root, id),
        Command::Kill(kill) => lifecycle::kill(&root, kill),
        Command::Delete { force, id } => lifecycle::delete(&root, id, *force),
        Command::Pause { id } => lifecycle::pause(&root, id),
        Command::Resume { id } => lifecycle::resume(&root, id),
        Command::Exec(exec) => exec::exec(&root, exec, reporter),
        Command::State { id } => inspect::state(&root, id),
        Command::List(list) => inspect::list(&root, list),
        Command::Ps(ps) => process_table::print(&root, ps),
        Command::Update(update) => update::update(&root, update, reporter),
        Command::Events(events) => events::events(&root, events),
        Command::Spec(spec) => spec::write(spec),
        Command::Features => features::print(),
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
