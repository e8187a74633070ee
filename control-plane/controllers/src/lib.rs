//! One file per controller, all the same shape: `plan(observed) -> Plan`, pure; one executor does what plans say.
//!
//! A controller names the keys that a change concerns, looks at the `World` (caches that the watches fill and our own
//! writes update at once) and plans. Nothing polls: a plan that depends on time says when to look again.
//!
//! ```text
//!   watch -> World -> Controller::keys -> queue -> plan(observed, now) -> [Action] -> executor -> API server
//!              ^                            ^            └ look again at                  │
//!              └── what was written ────────┼─────────────────────────────────────────────┤
//!                                           └── a failed action: again, after a delay ────┘
//! ```

#![cfg_attr(test, allow(clippy::needless_pass_by_value, reason = "test inputs read better by value"))]

mod action;
#[cfg(test)]
mod amnesia;
mod cache;
mod clock;
mod executor;
mod kind;
mod panics;
mod queue;
mod recorder;
mod runner;
mod world;

mod cluster_role;
mod deployment;
mod disruption;
mod endpoint_slice_mirroring;
mod endpoint_slices;
mod endpoints;
mod event_expiry;
mod garbage;
mod namespace;
mod node;
mod replica_set;
mod service_account;
mod service_endpoints;

use std::net::Ipv4Addr;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

pub use action::{Action, Plan};

#[derive(Clone)]
pub struct Config {
    /// Acts as `system:kube-controller-manager`.
    pub client: kube::Client,
    /// PEM of the authority that signs the API server's certificate: `kube-root-ca.crt` in every namespace.
    pub root_ca: String,
    /// Network of all pods: address and prefix length.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Prefix length of each node's part of it.
    pub node_prefix: u8,
    /// How long an event is kept after it was last written.
    pub event_ttl: SignedDuration,
}

/// Upstream's default.
pub const EVENT_TTL: SignedDuration = SignedDuration::from_hours(1);

impl std::fmt::Debug for Config {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cluster_cidr, node_prefix, event_ttl, .. } = self;
        formatter
            .debug_struct("Config")
            .field("cluster_cidr", cluster_cidr)
            .field("node_prefix", node_prefix)
            .field("event_ttl", event_ttl)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the watch of {what} ended for good")]
    WatchEnded { what: String },
    #[error("a controller ended")]
    Controller(#[source] tokio::task::JoinError),
}

/// Runs all controllers until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = runner::run(config) => ended,
    }
}
