//! The default seccomp profile (`RuntimeDefault`): what a container may call unless its profile says otherwise.
//!
//! An allow list with `ERRNO(EPERM)` for the rest and `ERRNO(ENOSYS)` for `clone3`, whose flags a filter cannot read (libc then falls
//! back to `clone`). Calls that a capability guards anyway are let through only with that capability.

use oci_spec::runtime::{Capability, LinuxSeccomp};

/// The profile for a process with these bounding capabilities.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    profile::build(capabilities)
}

mod profile;
