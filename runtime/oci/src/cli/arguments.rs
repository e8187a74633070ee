//! The command line, flag by flag as runc has it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use runtime_oci::StateRoot;

/// Runs OCI containers.
#[derive(Debug, Parser)]
#[command(name = "sampan-oci", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory of the containers' state; it should be on a tmpfs.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File that errors and warnings are written to, beside standard error.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Accepted; there is nothing more to say.
    #[arg(long)]
    pub debug: bool,
    /// Not supported.
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted as runc has it; whether one is root is looked at.
    #[arg(long, value_name = "auto|true|false")]
    pub rootless: Option<String>,
}

impl Global {
    pub(crate) fn state_root(&self) -> StateRoot {
        StateRoot::new(self.root.clone().unwrap_or_else(|| match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if !nix::unistd::geteuid().is_root() => PathBuf::from(dir).join("sampan-oci"),
            _ => PathBuf::from("/run/sampan-oci"),
        }))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container, whose process waits for `start`.
    Create(Create),
    /// Create and start a container.
    Run(Run),
    /// Let a created container's process run.
    Start { id: String },
    /// Print a container's state as JSON.
    State { id: String },
    /// Send a signal to a container's init.
    Kill(Kill),
    /// Delete a container and what it holds.
    Delete {
        /// Kill it first where it runs; no error where it does not exist.
        #[arg(short, long)]
        force: bool,
        id: String,
    },
    /// Run a further process in a container.
    Exec(Box<Exec>),
    /// List containers.
    #[command(visible_alias = "ls")]
    List(List),
    /// Show a container's processes.
    Ps(Ps),
    /// Freeze a container's processes.
    Pause { id: String },
    /// Thaw a container's processes.
    Resume { id: String },
    /// Change a running container's limits.
    Update(Box<Update>),
    /// Print statistics, and events as they happen.
    Events(Events),
    /// Write a configuration to begin with.
    Spec(Spec),
    /// Print what this runtime can do as JSON.
    Features,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Directory of config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Socket that receives the terminal's master.
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// File that receives the process's id.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move and chroot in place of pivot_root.
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Descriptors from 3 on to pass to the container.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    #[command(flatten)]
    pub telling: Telling,
    pub id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainFormat {
    Text,
    /// One object per step and line.
    Json,
}

/// How a container comes to be, told to who wants to know.
#[derive(Debug, Args)]
pub(crate) struct Telling {
    /// Tell each step on standard error as it is done: its system call, what it isolates, why, how long it took.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    explain: Option<ExplainFormat>,
    /// Print the steps on standard output and do none of them.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait after each step, with a command to type elsewhere that shows its effect.
    #[arg(long, conflicts_with = "dry_run")]
    pub step: bool,
}

impl Telling {
    pub(crate) fn is_wanted(&self) -> bool {
        self.explain.is_some() || self.step
    }

    pub(crate) fn format(&self) -> ExplainFormat {
        self.explain.unwrap_or(ExplainFormat::Text)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for the container's end.
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state after its end.
    #[arg(long)]
    pub keep: bool,
    /// Accepted; orphans of a container are its init's to reap.
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Send it to every process of the container.
    #[arg(short, long)]
    pub all: bool,
    pub id: String,
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Working directory in the container.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    #[arg(short, long)]
    pub tty: bool,
    #[arg(short, long, value_name = "UID[:GID]", allow_hyphen_values = true)]
    pub user: Option<String>,
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File of a process object, in place of a command.
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    #[arg(short, long)]
    pub detach: bool,
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    #[arg(long)]
    pub no_new_privs: bool,
    /// A capability to add to the bounding, effective and permitted sets.
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Below the container's own cgroup.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    #[arg(long)]
    pub ignore_paused: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    /// Ids only.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    pub id: String,
    /// Options of ps(1): not acted on, since no program is run.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File of a resources object, `-` for standard input; the other flags are then not looked at.
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    #[arg(long)]
    pub cpu_period: Option<u64>,
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    #[arg(long)]
    pub cpu_share: Option<u64>,
    #[arg(long)]
    pub cpu_rt_period: Option<u64>,
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// Bytes, or with a unit as 64m.
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Not supported.
    #[arg(long)]
    pub l3_cache_schema: Option<String>,
    /// Not supported.
    #[arg(long)]
    pub mem_bw_schema: Option<String>,
    pub id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Seconds between statistics, as 5 or 5s.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// Print once and end.
    #[arg(long)]
    pub stats: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Spec {
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// For a caller that is not root.
    #[arg(long)]
    pub rootless: bool,
}
