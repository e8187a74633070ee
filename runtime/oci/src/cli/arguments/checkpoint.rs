//! checkpoint and restore: what criu is told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupsMode {
    Soft,
    Full,
    Strict,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LockMethod {
    Iptables,
    Nftables,
    Skip,
}

// What both directions take. No docstring: clap would take it for what the command is about.
#[derive(Debug, Args)]
pub(crate) struct Dumping {
    /// Directory of criu's images.
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Directory of criu's log; by default that of the images.
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Allow established TCP connections.
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow unix sockets whose other end is outside.
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow a process of the caller's session.
    #[arg(long)]
    pub shell_job: bool,
    #[arg(long)]
    pub file_locks: bool,
    /// Let pages be fetched when they are touched.
    #[arg(long)]
    pub lazy_pages: bool,
    #[arg(long, value_name = "MODE", default_value = "soft")]
    pub manage_cgroups_mode: CgroupsMode,
    #[arg(long, value_name = "METHOD")]
    pub network_lock: Option<LockMethod>,
    /// A namespace to make empty: `network`.
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
    #[arg(long)]
    pub auto_dedup: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    pub dumping: Dumping,
    /// Images of an earlier pre-dump, relative to the image path.
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Do not end the container.
    #[arg(long)]
    pub leave_running: bool,
    /// Leave out connections that are just being made.
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Link unlinked files back where possible.
    #[arg(long)]
    pub link_remap: bool,
    /// Descriptor that gets a zero byte when lazy pages can be fetched.
    #[arg(long, value_name = "FD")]
    pub status_fd: Option<i32>,
    /// A page server to send memory to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// Save memory only, and let the container go on.
    #[arg(long)]
    pub pre_dump: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub dumping: Dumping,
    /// Directory of config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Socket that receives the terminal's master.
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Do not wait for the container's end.
    #[arg(short, long)]
    pub detach: bool,
    /// File that receives the process's id.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted; orphans of a container are its init's to reap.
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted; criu makes the root as it was.
    #[arg(long)]
    no_pivot: bool,
    /// Close TCP connections that were established.
    #[arg(long)]
    pub tcp_close: bool,
    /// A security profile in place of the saved one, as apparmor:NAME.
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// A context for mounts, in place of the saved one.
    #[arg(long, value_name = "CONTEXT")]
    pub lsm_mount_context: Option<String>,
    pub id: String,
}
