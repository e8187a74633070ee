//! The image store against real and faulty registries. Nothing here needs the network beyond loopback.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on says so by panicking; truncation makes noise"
)]

mod archives;
mod bearer;
mod debian_registry;
mod fake_registry;
mod faults;
mod mirrors;
mod overlay;
mod pulls;
mod sample;
mod stores;
