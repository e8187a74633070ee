//! The built `sampan-oci` against a tiny root file system of Debian's busybox-static, as root, on whatever cgroups the host has.
//!
//! Every test has its own directory, container ids and cgroups, and removes them also when it fails.

mod attacks;
mod checkpoint;
mod commands;
mod container;
mod exec;
mod explain;
mod handover;
mod harness;
mod kills;
mod library;
mod lifecycle;
mod limits;
mod more_mounts;
mod mounts;
mod namespaces;
mod network;
mod process;
mod propagation;
mod resources;
mod rootless;
mod seccomp_agent;
mod specification;
mod systemd;
