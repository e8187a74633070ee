//! The server on its socket with real shims, real containers and a real pod network, as root in namespaces of the test's own.
//!
//! Needs `sampan-shim` and `sampan-cni` beside the test's own build (a workspace build makes them) and a static busybox.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod crash;
mod house;
mod lifecycle;
mod rights;
mod streams;
