//! The only room for unsafe on the runtime's side: namespaces, mounts, cgroups, capabilities, seccomp, terminals, rooted paths.
//!
//! Safe wrappers, one file per noun. No policy: nothing here decides what a container gets. Oldest kernel served: 5.12
//! (`mount_setattr`).

mod syscall;

pub mod allocator;
pub mod capability;
pub mod cgroup;
pub mod clone;
pub mod durable;
pub mod executable;
pub mod fd_passing;
pub mod idmap;
pub mod local_socket;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod pattern;
pub mod pidfd;
pub mod proc;
pub mod process;
pub mod reap;
pub mod rlimit;
pub mod rooted;
pub mod seccomp;
pub mod terminal;
pub mod tree;
