//! The command line, flag by flag as runc and crun have it. Each group of commands has its own file.
//!
//! Flags stand before or after the container id, but for `exec` and `ps`, where what follows the id belongs to the program.

mod checkpoint;
mod container;
mod exec;
mod mounts;
mod telling;
mod update;
mod words;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use runtime_oci::StateRoot;

pub(crate) use checkpoint::{CgroupsMode, Checkpoint, Dumping, LockMethod, Restore};
pub(crate) use container::{Create, Delete, Events, Format, Kill, List, Ps, Run, Spec};
pub(crate) use exec::Exec;
pub(crate) use mounts::{Change, Mounts};
pub(crate) use telling::{ExplainFormat, Telling};
pub(crate) use update::{Limits, Update};
pub(crate) use words::{Typed, parse, program_name};

/// Open Container Initiative runtime
#[derive(Debug, Parser)]
#[command(name = "sampan-oci", version, disable_help_subcommand = true, disable_version_flag = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    /// Print the version and what it implements.
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warning,
    Debug,
}

/// Who makes the cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupManager {
    /// This runtime, in the cgroup file systems.
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
    /// Nobody: the container stays in the caller's cgroup.
    Disabled,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory of the containers' state; it should be on a tmpfs.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where errors and warnings go beside standard error: a file, `file:PATH`, `syslog:ID` or `journald:ID`.
    #[arg(long, value_name = "DESTINATION")]
    pub log: Option<String>,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// The least that is worth a line.
    #[arg(long, value_name = "LEVEL", default_value = "warning")]
    log_level: LogLevel,
    /// Say what is done; the same as --log-level debug.
    #[arg(long)]
    debug: bool,
    /// Let systemd make the cgroup; linux.cgroupsPath is then `slice:prefix:name`.
    #[arg(long)]
    systemd_cgroup: bool,
    /// `systemd` is the same as --systemd-cgroup.
    #[arg(long, value_name = "MANAGER")]
    cgroup_manager: Option<CgroupManager>,
    /// Whether refused cgroups may be gone without: by default where the caller is not root.
    #[arg(long, value_name = "auto|true|false", default_value = "auto", value_parser = ["auto", "true", "false"])]
    pub rootless: String,
    /// The criu program for checkpoint and restore.
    #[arg(long, value_name = "PATH", default_value = "criu")]
    pub criu: PathBuf,
}

/// Whether the user's own directories are to be used: as runc has it, also by the root of a user namespace who does not go by that name.
fn is_users_own() -> bool {
    let is_called_root = || std::env::var_os("USER").is_some_and(|name| name == "root");
    !nix::unistd::geteuid().is_root() || !runtime_linux::idmap::is_initial() && !is_called_root()
}

impl Global {
    pub(crate) fn state_root(&self) -> StateRoot {
        StateRoot::new(self.root.clone().unwrap_or_else(|| match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if is_users_own() => PathBuf::from(dir).join("sampan-oci"),
            _ => PathBuf::from("/run/sampan-oci"),
        }))
    }

    /// Whether the caller named the directory, and so expects it to be there.
    pub(crate) fn names_root(&self) -> bool {
        self.root.is_some()
    }

    pub(crate) fn level(&self) -> LogLevel {
        if self.debug { LogLevel::Debug } else { self.log_level }
    }

    pub(crate) fn cgroup_manager(&self) -> CgroupManager {
        let default = if self.systemd_cgroup { CgroupManager::Systemd } else { CgroupManager::Cgroupfs };
        self.cgroup_manager.unwrap_or(default)
    }
}

/// The flags of a command are put together only when it is called, or its help is asked for.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Save a running container's state with criu.
    Checkpoint(Box<Checkpoint>),
    /// Create a container, whose process waits for `start`.
    Create(Create),
    /// Delete a container and what it holds.
    Delete(Delete),
    /// Print statistics, and events as they happen.
    Events(Events),
    /// Run a further process in a container.
    Exec(Box<Exec>),
    /// Print what this runtime can do as JSON.
    Features,
    /// Send a signal to a container's init.
    Kill(Kill),
    /// List containers.
    #[command(visible_alias = "ls")]
    List(List),
    /// Change the mounts of a running container.
    Mounts(Mounts),
    /// Freeze a container's processes.
    Pause { id: String },
    /// Show a container's processes.
    Ps(Ps),
    /// Make a container from what `checkpoint` saved.
    Restore(Box<Restore>),
    /// Thaw a container's processes.
    #[command(alias = "unpause")]
    Resume { id: String },
    /// Create and start a container.
    Run(Run),
    /// Write a configuration to begin with.
    Spec(Spec),
    /// Let a created container's process run.
    Start { id: String },
    /// Print a container's state as JSON.
    State { id: String },
    /// Change a running container's limits.
    Update(Box<Update>),
}
