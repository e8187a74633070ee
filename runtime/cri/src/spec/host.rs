//! What this host can do, found out once at start.

use std::fs;
use std::path::Path;

/// Abilities that decide whether a wish is granted or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) apparmor: bool,
    pub(crate) selinux: bool,
    /// All controllers are on the unified hierarchy.
    pub(crate) cgroup_v2: bool,
    /// Memory and swap can be limited together.
    pub(crate) swap_limits: bool,
}

impl Host {
    pub(crate) fn detect() -> Self {
        let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let apparmor = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Self {
            apparmor: apparmor.is_ok_and(|text| text.trim() == "Y"),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            cgroup_v2,
            // The root has no such file on v2, its children have where CONFIG_SWAP is on: /proc/swaps tells that.
            swap_limits: if cgroup_v2 {
                Path::new("/proc/swaps").exists()
            } else {
                Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
            },
        }
    }

    #[cfg(test)]
    pub(crate) fn bare() -> Self {
        Self { apparmor: false, selinux: false, cgroup_v2: true, swap_limits: true }
    }
}
