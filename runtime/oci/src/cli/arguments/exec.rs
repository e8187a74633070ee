//! exec.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Socket that receives the terminal's master.
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Socket that receives a pidfd of the process.
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
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
    /// File that receives the process's id.
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
    /// Below the container's own cgroup, on v1 per controller.
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    pub cgroup: Vec<String>,
    /// Do not refuse in a paused container: the process runs when it is resumed.
    #[arg(long)]
    pub ignore_paused: bool,
    /// Accepted; orphans of a container are its init's to reap.
    #[arg(long)]
    no_subreaper: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
