//! The only room for unsafe on the runtime's side: namespaces, mounts, cgroups, capabilities, seccomp, terminals, rooted paths.
