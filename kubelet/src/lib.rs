//! Pods on this node: one task per pod, a pure plan, the only caller of CRI.
//!
//! `pods.rs` hears of pods and of the runtime, `worker.rs` owns one pod, `sync.rs` decides, `operation/` does, `status.rs` says how
//! it went. Not here: scheduling, service networking, images and containers themselves. Invariant: nothing is polled that an
//! event can tell, and a restart of the kubelet restarts no container.

mod config;
pub mod pod;
pub mod sync;

pub use config::{Config, CriEndpoint, Retention, ServingTls};
