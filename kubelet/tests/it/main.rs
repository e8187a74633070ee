//! The whole kubelet against a runtime and an API server in memory: lives of pods, failures, restarts of the kubelet.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]
#![allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]

mod api;
mod lives;
mod runtime;
