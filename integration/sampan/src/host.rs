//! Whether this host can run Sampan at all; every complaint says what to do.

use std::fs;
use std::path::Path;

/// Kernel features that cannot be done without: where it shows, and what to do where it does not.
const NEEDS: [(&str, &str, &str); 4] = [
    ("/proc/self/ns/net", "network namespaces", "boot a kernel with CONFIG_NET_NS"),
    ("/proc/self/ns/pid", "PID namespaces", "boot a kernel with CONFIG_PID_NS"),
    ("/sys/fs/cgroup", "control groups", "mount them: `mount -t cgroup2 none /sys/fs/cgroup`"),
    ("/proc/sys/net/bridge/bridge-nf-call-iptables", "bridge netfilter", "load the module: `modprobe br_netfilter`"),
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("Sampan makes namespaces, mounts and bridges, and needs to be root for it: run `sudo {command}`")]
    NotRoot { command: String },
    #[error("this host has no {what} ({path} is missing): {remedy}")]
    Missing { what: &'static str, path: &'static str, remedy: &'static str },
    #[error("this kernel has no overlayfs: load the module (`modprobe overlay`) or boot a kernel that has it")]
    NoOverlay,
    #[error("no IPv4 forwarding, and it cannot be switched on: `sysctl -w net.ipv4.ip_forward=1` says why")]
    NoForwarding { source: std::io::Error },
}

/// Nothing is changed but IPv4 forwarding, without which no pod is reached.
pub(crate) fn check() -> Result<(), HostError> {
    require_root()?;
    for (path, what, remedy) in NEEDS {
        if !Path::new(path).exists() {
            return Err(HostError::Missing { what, path, remedy });
        }
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.split_whitespace().any(|name| name == "overlay") {
        return Err(HostError::NoOverlay);
    }
    let forwarding = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(forwarding).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    fs::write(forwarding, "1").map_err(|source| HostError::NoForwarding { source })
}

pub(crate) fn require_root() -> Result<(), HostError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    Err(HostError::NotRoot { command })
}
