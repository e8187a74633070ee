//! What whole-system tests are made of: images built from the Debian packages of this machine, and a real registry to hold them.
//! Not a test itself. Invariant: whatever is started or made here ends with its guard, also when a test fails.

pub mod cluster;
pub mod image;
pub mod outside;
pub mod podman;
pub mod registry;
pub mod terminal;
pub mod vm;
