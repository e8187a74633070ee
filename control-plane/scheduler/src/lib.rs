//! Snapshot, filter, score, decide, bind: which node a pod goes to.
//!
//! One task owns the snapshot and the queue; watches and finished bindings reach it as events. `decide` is pure: equal
//! input, equal decision. Nothing is tried again on a timer, but for a binding that the API server failed to take: a pod
//! that fits nowhere waits for the change that can help it.
//!
//! ```text
//!   watch ── pod without a node ──> active ── decide ──> binding ── POST ok ──> (watch shows its node)
//!                                     ^          │           └── POST failed ──> active, after a delay
//!                                     │          └── nowhere ──> waiting, with the reasons
//!                                     └──── a change that helps one of the reasons ────┘
//! ```

#[cfg(test)]
mod amnesia;

mod affinity;
mod binding;
mod cluster;
mod decide;
mod explanation;
mod filter;
mod queue;
mod requests;
mod score;
mod snapshot;

use tokio_util::sync::CancellationToken;

pub use decide::{Decision, Reason, decide};
pub use requests::Requests;
pub use snapshot::{PodKey, Snapshot};

/// The name that pods ask for by `spec.schedulerName` unless they say otherwise.
pub const DEFAULT_NAME: &str = "default-scheduler";

#[derive(Clone)]
pub struct Config {
    /// Acts as `system:kube-scheduler`.
    pub client: kube::Client,
    /// Only pods with this `spec.schedulerName` are placed.
    pub scheduler_name: String,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Config").field("scheduler_name", &self.scheduler_name).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the watch of {what} ended for good")]
    WatchEnded { what: &'static str },
}

/// Places pods until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = cluster::run(config) => ended,
    }
}
