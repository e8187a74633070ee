//! Service networking in private network namespaces, with real connections (root).
#![allow(clippy::unwrap_used, reason = "a test may panic, its supporting functions too")]

mod daemon;
mod firewall;
mod measure;
mod mend;
mod names;
mod node;
mod objects;
mod planner;
mod traffic;
