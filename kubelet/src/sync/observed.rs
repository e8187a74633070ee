//! What is known of one pod, as facts; nothing here is a decision. Invariant: two equal `Observed` mean the same pod at the same
//! moment, whatever way led there, so a restarted kubelet that reads the runtime again plans the same.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::backoff::Backoff;

/// One pod sandbox that the runtime holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub ips: Vec<String>,
    pub created_at: Timestamp,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running {
        since: Timestamp,
    },
    Exited(Exit),
    /// The runtime lost sight of it; it is treated as possibly running.
    Unknown,
}

/// One container that the runtime holds, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub attempt: u32,
    pub state: State,
    pub created_at: Timestamp,
    pub image: String,
    pub image_ref: String,
    /// [`super::spec_hash`] of what it was made from; empty if it was made by somebody else.
    pub hash: String,
    /// The same for what it may use.
    pub resources_hash: String,
    /// Ids, of the user the process has.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

impl Container {
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Exited(_))
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// What the probes of one running container say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// Startup probe passed.
    pub started: bool,
    /// Readiness probe passed last.
    pub ready: bool,
    /// A liveness or startup probe gave up: why, and the probe's own grace period.
    pub unhealthy: Option<(String, Option<i64>)>,
}

/// Something asked for did not happen; `retry_at` says when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
    pub backoff: Backoff,
}

/// The end of a pod that is not its containers' doing: refused, evicted, out of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: String,
    pub message: String,
    /// What its containers get to end, where it is not the pod's own grace period.
    pub grace_seconds: Option<i64>,
    /// The node ends a pod that ran; told as the condition `DisruptionTarget`.
    pub is_disruption: bool,
}

impl Failed {
    /// Refused or ended for a reason of its own.
    #[must_use]
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Failed {
        Failed { reason: reason.into(), message: message.into(), grace_seconds: None, is_disruption: false }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Volumes {
    #[default]
    Absent,
    Mounted,
    Failed(Failure),
}

/// Operations under way; the planner asks for none of them again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Busy {
    pub volumes: bool,
    pub sandbox: bool,
    /// Containers being pulled for, created or started.
    pub starting: BTreeSet<String>,
    /// Container id -> when it will have been killed by force.
    pub killing: BTreeMap<String, Timestamp>,
    /// Ids of containers whose preStop hook runs before they are told to end.
    pub pre_stopping: BTreeSet<String>,
    pub releasing: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub containers: Vec<Container>,
    pub volumes: Volumes,
    pub sandbox_failure: Option<Failure>,
    /// By container name.
    pub failures: BTreeMap<String, Failure>,
    /// By container name: the pause after its restarts.
    pub restarts: BTreeMap<String, Backoff>,
    /// By container id.
    pub probes: BTreeMap<String, Probed>,
    /// Ids of containers whose preStop hook has been started; it is not run twice.
    pub pre_stopped: BTreeSet<String>,
    pub busy: Busy,
    pub failed: Option<Failed>,
    /// The API object (or the manifest) is no more.
    pub gone: bool,
    /// Volumes and cgroup of the ended pod are gone.
    pub released: bool,
    pub start_time: Option<Timestamp>,
    /// Since when the pod has been known to end: all its containers share one grace period from then.
    pub ending_since: Option<Timestamp>,
}

impl Observed {
    /// The sandbox that the pod's containers belong into.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest container of a name, in any sandbox.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    #[must_use]
    pub fn probed(&self, id: &str) -> Probed {
        self.probes.get(id).cloned().unwrap_or_default()
    }
}
