//! What is said between a client and the shim: requests, replies, events and failures. Types only; [`crate::wire`]
//! carries them.
//!
//! How versions meet: a client says [`Request::Hello`] first, and each side knows what the other speaks. A shim serves every client from
//! [`OLDEST`] on; a client that is newer leaves out what an older shim does not know. What a shim does not know it answers with
//! [`FailureCode::Unsupported`], an unknown field of a request too: it may be what keeps somebody safe. Fields of answers and events
//! that a client does not know are left out.
//!
//! Invariant: a field once shipped keeps its name and meaning; new fields have a default, and [`PROTOCOL`] rises with them.

use crate::record::ExitRecord;
use oci_spec::runtime::{LinuxResources, Process};
use runtime_linux::mount::Overlay;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The protocol's version. 2: hello, execs that are tied to their connection, pause processes that ended.
pub const PROTOCOL: u32 = 2;
/// The oldest that is still served. 1 is the first; it has no hello.
pub const OLDEST: u32 = 1;

/// The `seq` of a reply that is to no request but about the connection; a client counts from 1.
pub const CONNECTION_SEQ: u64 = 0;

/// One request. `seq` is chosen by the client and comes back in the reply. Requests may be pipelined: a connection's are served one after
/// the other, and only [`Request::Wait`] is answered out of order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    pub seq: u64,
    pub request: Request,
}

/// What the shim sends: replies, and events to those who subscribed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    Reply { seq: u64, result: Result<Reply, Failure> },
    Event(Event),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// The first request of a connection: what its client speaks.
    Hello {
        protocol: u32,
    },
    /// Everything the shim knows: the one request a restarted daemon needs.
    Info,
    /// Makes a container's processes and namespaces without starting the user's program.
    Create(Box<Create>),
    Start {
        id: String,
    },
    /// Sends a signal to a container's first process, to an exec, or to every process in the container's cgroup.
    Signal {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exec_id: Option<String>,
        signal: i32,
        #[serde(default)]
        all: bool,
    },
    /// Removes a stopped container's traces (cgroup, state, record). Already gone is success.
    Delete {
        id: String,
        /// Kill what still runs first.
        #[serde(default)]
        force: bool,
    },
    /// Runs a further process in a running container. Its descriptors travel with the request (`SCM_RIGHTS`) in the
    /// order stdin, stdout, stderr, those present by the three flags; a missing one is /dev/null. With a terminal no
    /// descriptor is sent: the reply carries the terminal's master side.
    Exec(Box<Exec>),
    /// Answered with [`Reply::Exited`] when the container or exec has ended, at once if it already has.
    Wait {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exec_id: Option<String>,
    },
    /// Joins a container's streams. Descriptors travel along in the order stdin (read by the shim), stdout, stderr
    /// (written by the shim), those present by the flags. The shim closes its ends when the container ends.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Sets the size of a container's terminal. (Who runs an exec with a terminal holds its master side itself.)
    Resize {
        id: String,
        columns: u16,
        rows: u16,
    },
    /// Opens the log file anew by its path, after a rotation renamed it.
    ReopenLog {
        id: String,
    },
    /// Closes the container's standard input once what was sent is delivered.
    CloseStdin {
        id: String,
    },
    /// Changes a running container's cgroup limits.
    Update {
        id: String,
        resources: Box<LinuxResources>,
    },
    /// From the reply on, this connection receives events. Exits that happened before are in the reply's Info, taken
    /// in the same instant: nothing falls between.
    Subscribe,
    /// Ends the shim. Refused with `wrong_state` while a container runs, unless `force`, which kills them all. Unpins the
    /// pod's namespaces and removes the socket; exit records stay until `cri` removes the directory.
    Shutdown {
        #[serde(default)]
        force: bool,
    },
}

/// A container, or one exec in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub id: String,
    pub exec_id: Option<String>,
}

impl Target {
    #[must_use]
    pub fn container(id: &str) -> Self {
        Self { id: id.to_owned(), exec_id: None }
    }

    #[must_use]
    pub fn exec(id: &str, exec_id: &str) -> Self {
        Self { id: id.to_owned(), exec_id: Some(exec_id.to_owned()) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    pub id: String,
    /// The directory of `config.json` (OCI) and, unless `rootfs` is given, of the root file system it names.
    pub bundle: PathBuf,
    /// Must equal the bundle's `process.terminal`.
    #[serde(default)]
    pub terminal: bool,
    /// Keep a standard input open for attach; else it is /dev/null.
    #[serde(default)]
    pub stdin: bool,
    /// Close standard input when the first attached client's input ends.
    #[serde(default)]
    pub stdin_once: bool,
    /// Where to write the CRI log; none means the output goes to attached clients only.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// An overlay to mount as the root inside the container's own mount namespace.
    #[serde(default)]
    pub rootfs: Option<Overlay>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    pub id: String,
    pub exec_id: String,
    /// `process.terminal` decides whether a terminal is made.
    pub process: Process,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdout: bool,
    #[serde(default)]
    pub stderr: bool,
    /// The process ends with the connection that asked for it: nobody is left who wants what it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tied: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Hello(Greeting),
    Info(Box<PodInfo>),
    Created(Created),
    /// With a terminal, its master side travels with this reply.
    Executed {
        pid: i32,
    },
    Exited(ExitRecord),
}

/// What a shim speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub protocol: u32,
    /// The oldest client that it serves.
    pub oldest: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    pub pid: i32,
    /// What was asked for and the kernel or host cannot give, in words (e.g. an oom score that needs a capability).
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A container or exec ended; its record is on disk (an exec's record lives in the shim only).
    Exited(ExitRecord),
    /// The kernel killed a process for memory in this container; `kills` counts them since creation.
    Oom { id: String, kills: u64 },
    /// The pod's pid 1 has ended, though nobody asked it to: every process of the pod's PID namespace ends with it, and no other can be
    /// made. Told to clients of protocol 2.
    PauseExited { pid: i32, code: i32 },
    /// The subscriber was too slow and events were dropped; ask for Info. Sent once the queue has room again.
    Lost { events: u64 },
    /// One of a newer shim.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodInfo {
    pub protocol: u32,
    pub pod_id: String,
    pub shim_pid: i32,
    pub started_at_ns: i64,
    /// The process that is pid 1 of a shared PID namespace.
    #[serde(default)]
    pub pause_pid: Option<i32>,
    /// That process has ended, though nobody asked it to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pause_lost: bool,
    /// Namespaces pinned by the shim, by OCI name (`network`, `ipc`, `uts`, `user`, `pid`), as paths for the bundle.
    pub namespaces: Vec<(String, PathBuf)>,
    /// Sorted by id.
    pub containers: Vec<ContainerInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    Created,
    Running,
    Exited,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerInfo {
    pub id: String,
    pub pid: i32,
    pub bundle: PathBuf,
    pub state: ContainerState,
    pub terminal: bool,
    pub log_path: Option<PathBuf>,
    pub created_at_ns: i64,
    pub started_at_ns: Option<i64>,
    pub exit: Option<ExitRecord>,
    pub oom_kills: u64,
    /// Output that could not be written to the log (a full disk); it is counted, not retried.
    pub log_dropped_bytes: u64,
    pub attached: usize,
    pub execs: Vec<ExecInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecInfo {
    pub exec_id: String,
    pub pid: i32,
    pub exit: Option<ExitRecord>,
}

/// Why a request failed: the code is for machines, the message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// No such container or exec.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// E.g. start of a running container, exec in a stopped one.
    WrongState,
    /// The request itself is wrong: an unknown operation, missing descriptors, an impossible bundle.
    Invalid,
    /// A limit of the shim was reached (connections, execs, attached clients).
    Exhausted,
    /// The OCI runtime or the kernel refused; the message names the step.
    Failed,
    /// A request, or a field of one, that this shim does not know; or a client that is older than it serves.
    Unsupported,
    /// A code this client does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests;
