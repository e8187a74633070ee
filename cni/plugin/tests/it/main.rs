//! The real binary in real network namespaces, one private host per test (root).
#![allow(clippy::unwrap_used, reason = "a test may panic, its supporting functions too")]

mod attach;
mod faults;
mod host;
mod ports;
