//! update.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File of a resources object as in config.json, `-` for standard input. Goes with no other limit.
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub resources: Option<PathBuf>,
    #[command(flatten)]
    pub limits: Limits,
    pub id: String,
}

// What can be said without a file. No docstring: clap would take it for what the command is about.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct Limits {
    /// 10 to 1000.
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Microseconds.
    #[arg(long, value_name = "TIME")]
    pub cpu_period: Option<u64>,
    /// Microseconds in each period, -1 for no limit.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds beyond the quota that may be saved up.
    #[arg(long, value_name = "TIME")]
    pub cpu_burst: Option<u64>,
    /// Weight beside other cgroups, 2 to 262144.
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Microseconds.
    #[arg(long, value_name = "TIME")]
    pub cpu_rt_period: Option<u64>,
    /// Microseconds in each real-time period.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// As 0-3,8.
    #[arg(long, value_name = "CPUS")]
    pub cpuset_cpus: Option<String>,
    /// As 0,1.
    #[arg(long, value_name = "NODES")]
    pub cpuset_mems: Option<String>,
    /// 1: only when no other cgroup wants the CPU.
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// Bytes, or with a unit as 64m; -1 for no limit.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for unlimited swap.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Has no effect since Linux 5.16, and says so.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub kernel_memory: Option<String>,
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub kernel_memory_tcp: Option<String>,
    /// -1 for no limit.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// A schemata line of resctrl, as L3:0=f.
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// A schemata line of resctrl, as MB:0=50.
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
}
