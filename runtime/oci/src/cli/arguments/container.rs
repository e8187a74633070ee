//! create, run, kill, delete, list, ps, events, spec.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Telling;

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Directory of config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// A configuration by another name or in another place; relative to the bundle.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket that receives the terminal's master.
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Socket that receives a pidfd of the process.
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// File that receives the process's id.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move and chroot in place of pivot_root.
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Accepted; orphans of a container are its init's to reap.
    #[arg(long)]
    no_subreaper: bool,
    /// Descriptors from 3 on to pass to the container.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    #[command(flatten)]
    pub telling: Telling,
    pub id: String,
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
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kill it first where it runs; no error where it does not exist.
    #[arg(short, long)]
    pub force: bool,
    /// Take the id as a pattern: delete every container whose id it matches.
    #[arg(short, long)]
    pub regex: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Send it to every process of the container; no error where it is stopped.
    #[arg(short, long)]
    pub all: bool,
    /// Take the id as a pattern: signal every container whose id it matches.
    #[arg(short, long)]
    pub regex: bool,
    pub id: String,
    #[arg(default_value = "SIGTERM", allow_hyphen_values = true)]
    pub signal: String,
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
    /// Accepted; every container is listed anyway.
    #[arg(short, long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    pub id: String,
    /// Options of ps(1), as far as they choose columns: -f, -x, u, -o LIST.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Time between statistics, as 5, 5s, 500ms or 1m30s.
    #[arg(long, value_name = "TIME", default_value = "5s", allow_hyphen_values = true)]
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
    /// Where to write it, in place of config.json in the bundle.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// For a caller that is not root.
    #[arg(long)]
    pub rootless: bool,
}
