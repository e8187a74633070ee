//! The only room for unsafe on the runtime's side: namespaces, mounts, cgroups, capabilities, seccomp, terminals, rooted paths.
//!
//! Safe wrappers, one file per noun. No policy: nothing here decides what a container gets. Oldest kernel served: 5.12
//! (`mount_setattr`).

pub mod fd_passing;
pub mod mount;
