//! The server against its callers: stock kubectl, and a client inside the process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::needless_pass_by_value, reason = "tests pass literals")]

#[path = "../../examples/standalone/pki.rs"]
#[allow(dead_code, reason = "shared with the example, which keeps its certificates on disk")]
mod pki;

mod eviction;
mod hangup;
mod hostile;
mod http;
mod in_process;
mod kubectl;
mod normal;
mod proxy;
mod rules;
mod server;
mod watches;
