//! What can go wrong at the library's door.
//!
//! `Display` never repeats its source; a caller prints the chain once. Every kernel refusal carries its step and errno.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// A step that the kernel (or a hook) refused: which one, and with what errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step as the plan prints it, for instance `mount proc at /proc`.
    pub step: String,
    /// 0 where the failure is not a kernel's answer; then `detail` says it all.
    pub errno: i32,
    /// What the step alone does not say; may be empty.
    pub detail: String,
    /// The file that it was about, where it was about one.
    pub path: Option<PathBuf>,
}

impl Failure {
    pub(crate) fn new(step: impl Into<String>, errno: Errno) -> Self {
        Self { step: step.into(), errno: errno as i32, detail: String::new(), path: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.step)?;
        if !self.detail.is_empty() {
            write!(formatter, ": {}", self.detail)?;
        }
        if self.errno != 0 {
            // In lower case, as a part of a sentence and as podman and the kubelet look for it.
            write!(formatter, ": {}", Errno::from_raw(self.errno).desc().to_ascii_lowercase())?;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container ID \"{id}\" is invalid: {reason}")]
    InvalidId { id: String, reason: &'static str },
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not what this version of the runtime writes or reads", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("config.json: {field}: {reason}")]
    InvalidConfig { field: String, reason: String },
    #[error("container {id} already exists: choose another id, or delete it first")]
    Exists { id: String },
    #[error("container {id} does not exist")]
    NotFound { id: String },
    #[error("{}", wrong_status(id, operation, *status))]
    WrongStatus { id: String, operation: &'static str, status: crate::status::Status },
    #[error("{} has version {version}: it was written by a newer runtime; use that one", path.display())]
    NewerRecord { path: PathBuf, version: u32 },
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: crate::status::Status },
    #[error("container {id} was never finished, since its maker was killed: delete it")]
    Unfinished { id: String },
    #[error(
        "container's cgroup is not empty: {path} holds processes of somebody else; choose another linux.cgroupsPath"
    )]
    CgroupInUse { path: String },
    #[error("container's cgroup unexpectedly frozen: thaw {path}, or choose another linux.cgroupsPath")]
    CgroupFrozen { path: String },
    #[error(
        "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: delegate a cgroup to this user, or leave \
         linux.resources and linux.cgroupsPath out; unable to apply cgroup configuration"
    )]
    CgroupRefused(#[source] runtime_linux::cgroup::Error),
    #[error("criu: {what}")]
    Criu { what: String },
    #[error("systemd: {what}")]
    Systemd {
        what: String,
        #[source]
        source: Option<std::io::Error>,
    },
    #[error("move network device {name} into the container")]
    NetDevice {
        name: String,
        #[source]
        source: runtime_linux::network::DeviceError,
    },
    #[error("write id maps: {program}: {reason}")]
    IdMaps { program: &'static str, reason: String },
    #[error("set up the cgroup")]
    Cgroup(#[from] runtime_linux::cgroup::Error),
    #[error("{0}")]
    Hook(String),
    #[error("{} {why}, so it may say anything; give it to the caller alone, or choose another --root", path.display())]
    Untrusted { path: PathBuf, why: String },
    #[error("container {id} is being created or deleted by another process")]
    Busy { id: String },
    /// A step of the runtime's own side.
    #[error("{0}")]
    Parent(Failure),
    /// A step of the container's init process, reported over the pipe.
    #[error("{0}")]
    Child(Failure),
    #[error("given up on request after: {step}")]
    Abandoned { step: String },
    #[error("the container's init process ended before it was ready ({0})")]
    ChildVanished(String),
    #[error(
        "the process did not come to its program within {seconds} s and was killed: the container may stop or trace what is started in \
         it, or the machine is overloaded"
    )]
    TimedOut { seconds: u64 },
}

/// In runc's words where podman and containerd look for them.
fn wrong_status(id: &str, operation: &str, status: crate::status::Status) -> String {
    use crate::status::Status;
    match (operation, status) {
        ("kill", Status::Stopped) => format!("cannot kill container {id}: container not running"),
        ("exec", Status::Paused) => {
            "cannot exec in a paused container: resume it first, or give --ignore-paused".to_owned()
        }
        ("exec", status) => format!("cannot exec in a {status} container"),
        (operation, status) => format!("cannot {operation} container {id} that is {status}"),
    }
}

impl Error {
    /// The step that was refused, where one was.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Parent(failure) | Self::Child(failure) => Some(&failure.step),
            _ => None,
        }
    }

    /// The kernel's errno, where there was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Parent(failure) | Self::Child(failure) => Some(failure.errno).filter(|errno| *errno != 0),
            Self::Read { source, .. } | Self::Write { source, .. } => source.raw_os_error(),
            Self::Cgroup(error) => error.errno(),
            _ => None,
        }
    }

    /// The file that it was about, where it was about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Parent(failure) | Self::Child(failure) => failure.path.as_deref(),
            Self::Read { path, .. }
            | Self::Write { path, .. }
            | Self::Parse { path, .. }
            | Self::Untrusted { path, .. }
            | Self::NewerRecord { path, .. } => Some(path),
            Self::Cgroup(error) => error.path(),
            _ => None,
        }
    }
}
