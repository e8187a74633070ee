//! The real shim with real containers, as root. Needs Debian's busybox-static.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod container;
mod fault;
mod hostile;
mod pod;
mod sandbox;
mod stream;
