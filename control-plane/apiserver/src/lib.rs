//! HTTP in, store out: what stock kubectl talks to.
//!
//! A request goes from the line (`request.rs`) through authentication, authorization and admission to a verb that is generic over the
//! row, and from there to the store; reads come from the watch cache. It runs no controller and schedules nothing.
//! Invariant: nothing is kept here that the store does not hold, beyond caches that are rebuilt at start.

#![cfg_attr(test, allow(clippy::needless_pass_by_value, reason = "tests pass literals"))]

mod admission;
mod allocate;
mod authn;
mod authz;
mod behaviour;
mod body;
mod bootstrap;
mod cache;
mod config;
mod connections;
mod dispatch;
mod fields;
mod gzip;
mod inflight;
mod kernel;
mod listener;
mod metrics;
mod negotiate;
mod path;
mod patient;
mod proxy;
mod request;
mod server;
mod status;
mod subresource;
mod tls;
mod verb;
mod walls;
mod wire;

pub use authn::{User, key::Error as KeyError};
pub use body::{Body, BoxError};
pub use bootstrap::Error as BootstrapError;
pub use cache::Error as CacheError;
pub use config::{Cidr, CidrError, Config, KubeletConfig};
pub use request::{Query, RequestInfo, ResourcePath, Verb};
pub use server::{ApiServer, Error, LocalService, run};
pub use tls::TlsError;
