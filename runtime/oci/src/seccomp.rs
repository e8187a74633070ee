//! The default seccomp profile (`RuntimeDefault`): what a container may call unless its profile says otherwise.
//!
//! An allow list with `ERRNO(EPERM)` for the rest and `ERRNO(ENOSYS)` for `clone3`, whose flags a filter cannot read (libc then falls
//! back to `clone`). Calls that a capability guards anyway are let through only with that capability.

use oci_spec::runtime::{Capability, LinuxSeccomp, Spec};

/// The profile for a process with these bounding capabilities.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    profile::build(capabilities)
}

/// The flags with which a configuration's filter is loaded, as a number; `None` without a filter, or with one that is refused.
pub fn filter_flags(spec: &Spec) -> Option<u32> {
    let profile = spec.linux().as_ref()?.seccomp().as_ref()?;
    runtime_linux::seccomp::compile(profile).ok().map(|filter| filter.flags)
}

mod profile;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_profile_is_a_call() {
        let filter = runtime_linux::seccomp::compile(&default_profile(&[])).expect("compile");
        // Calls of their own only where arm has them.
        let unknown: Vec<_> = filter.unknown.iter().filter(|name| !["recv", "send"].contains(&name.as_str())).collect();
        assert_eq!(unknown, Vec::<&String>::new());
        assert!(filter.program.len() < 2000, "{} instructions", filter.program.len());
    }
}
