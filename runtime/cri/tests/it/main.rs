//! The CRI server as its clients see it: a process of its own behind a Unix socket, with real shims, containers and plugins in private
//! namespaces. As root; needs Debian's busybox-static, and `sampan-shim` and `sampan-cni` built in this workspace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod events;
mod exec;
mod faults;
mod files;
mod image;
mod life;
mod network;
mod peers;
mod restart;
mod server;
mod streams;
