//! Which namespaces are new, which are joined, with which id maps; and which sysctls belong to them.

use std::fmt;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use runtime_linux::idmap::{Maps, Range};
use runtime_linux::namespace::Kind;

use super::invalid;
use crate::error::Error;

/// The namespaces of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub new: Vec<Kind>,
    /// In the order to join them: the user namespace first, the mount namespace last.
    pub join: Vec<(Kind, PathBuf)>,
    /// For a new user namespace.
    pub maps: Maps,
}

pub(crate) fn kind(typ: LinuxNamespaceType) -> Kind {
    match typ {
        LinuxNamespaceType::Mount => Kind::Mount,
        LinuxNamespaceType::Cgroup => Kind::Cgroup,
        LinuxNamespaceType::Uts => Kind::Uts,
        LinuxNamespaceType::Ipc => Kind::Ipc,
        LinuxNamespaceType::User => Kind::User,
        LinuxNamespaceType::Pid => Kind::Pid,
        LinuxNamespaceType::Network => Kind::Network,
        LinuxNamespaceType::Time => Kind::Time,
    }
}

impl Namespaces {
    pub(super) fn plan(linux: &Linux, default_maps: &Maps, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let mut namespaces = Self::default();
        for namespace in linux.namespaces().iter().flatten() {
            let typ = namespace.typ();
            let kind = kind(typ);
            if namespaces.has(typ) {
                return Err(invalid("linux.namespaces", &format!("{} is there twice", kind.file_name())));
            }
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) if !path.is_absolute() => {
                    return Err(invalid("linux.namespaces", &format!("path {} is not absolute", path.display())));
                }
                Some(path) => namespaces.join.push((kind, path.clone())),
                None => namespaces.new.push(kind),
            }
        }
        namespaces.join.sort_by_key(|(kind, _)| match kind {
            Kind::User => 0,
            Kind::Mount => 2,
            _ => 1,
        });
        let maps = Maps { uids: ranges(linux.uid_mappings()), gids: ranges(linux.gid_mappings()) };
        if namespaces.new.contains(&Kind::User) {
            namespaces.maps = match (maps.uids.is_empty(), maps.gids.is_empty()) {
                (false, false) => maps,
                (true, true) if !default_maps.uids.is_empty() => {
                    let count: u64 = default_maps.uids.iter().map(|range| u64::from(range.length)).sum();
                    warnings.push(format!(
                        "linux.uidMappings: a new user namespace has none: the caller's id becomes root, with {} subordinate ids behind it",
                        count.saturating_sub(1)
                    ));
                    default_maps.clone()
                }
                _ => return Err(invalid("linux.uidMappings", "uidMappings and gidMappings come together")),
            };
        } else if !(namespaces.has(LinuxNamespaceType::User) || maps.uids.is_empty() && maps.gids.is_empty()) {
            return Err(invalid("linux.uidMappings", "needs a user namespace in linux.namespaces"));
        }
        Ok(namespaces)
    }

    pub(crate) fn has(&self, typ: LinuxNamespaceType) -> bool {
        let kind = kind(typ);
        self.new.contains(&kind) || self.join.iter().any(|(joined, _)| *joined == kind)
    }

    pub(crate) fn is_new(&self, typ: LinuxNamespaceType) -> bool {
        self.new.contains(&kind(typ))
    }

    /// What the clone itself makes. The cgroup namespace would take the parent's cgroup as its root, and a time namespace must have
    /// its offsets before anybody is in it; both are steps of their own.
    pub(crate) fn clone_flags(&self) -> u64 {
        let at_clone = |kind: &&Kind| !matches!(kind, Kind::Cgroup | Kind::Time);
        self.new.iter().filter(at_clone).fold(0, |flags, kind| flags | kind.flag())
    }

    /// All of them, for a later exec.
    pub(crate) fn all(&self) -> Vec<Kind> {
        self.new.iter().copied().chain(self.join.iter().map(|(kind, _)| *kind)).collect()
    }
}

impl fmt::Display for Namespaces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("clone into new namespaces:")?;
        for kind in &self.new {
            write!(formatter, " {}", kind.file_name())?;
        }
        for (kind, path) in &self.join {
            write!(formatter, "\njoin {} namespace {}", kind.file_name(), path.display())?;
        }
        for (name, ranges) in [("uid", &self.maps.uids), ("gid", &self.maps.gids)] {
            for range in ranges {
                write!(formatter, "\nmap {name} {}+{} to {}", range.inside, range.length, range.outside)?;
            }
        }
        Ok(())
    }
}

pub(super) fn ranges(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<Range> {
    mappings
        .iter()
        .flatten()
        .map(|mapping| Range { inside: mapping.container_id(), outside: mapping.host_id(), length: mapping.size() })
        .collect()
}

/// The lines of /proc/PID/timens_offsets.
pub(super) fn time_offsets(spec: &Spec) -> Result<String, Error> {
    let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref());
    let mut lines: Vec<String> = Vec::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        if clock != "monotonic" && clock != "boottime" {
            return Err(invalid("linux.timeOffsets", &format!("clock \"{clock}\" is neither monotonic nor boottime")));
        }
        lines.push(format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
    }
    lines.sort();
    Ok(lines.concat())
}

/// Sysctls of the ipc namespace, beside `fs.mqueue.*`.
const IPC: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.shm_next_id",
];

/// The file of a sysctl below /proc/sys, if it belongs to a namespace that the container does not share with the host.
pub(super) fn sysctl_path(key: &str, namespaces: &Namespaces) -> Result<PathBuf, Error> {
    let field = format!("linux.sysctl.{key}");
    // sysctl(8): with the first separator a slash, dots belong to names (`net/ipv4/conf/eth0.1/...`).
    let slashes = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/');
    let path = if slashes { key.to_owned() } else { key.replace(['.', '/'], "\0").replace('\0', "/") };
    let names: Vec<&str> = path.split('/').collect();
    if names.len() < 2 || names.iter().any(|name| name.is_empty() || *name == "." || *name == "..") {
        return Err(invalid(&field, "is not the name of a sysctl"));
    }
    let dotted = names.join(".");
    let owner = if names[0] == "net" {
        LinuxNamespaceType::Network
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        LinuxNamespaceType::Ipc
    } else if dotted == "kernel.domainname" {
        LinuxNamespaceType::Uts
    } else if dotted == "kernel.hostname" {
        return Err(invalid(&field, "use hostname instead"));
    } else {
        return Err(invalid(&field, "is not namespaced: it would change the host"));
    };
    if !namespaces.has(owner) {
        let reason =
            format!("needs a {} namespace in linux.namespaces, or it would change the host", kind(owner).file_name());
        return Err(invalid(&field, &reason));
    }
    Ok(PathBuf::from("sys").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls() {
        let all = Namespaces { new: Kind::ALL.to_vec(), ..Namespaces::default() };
        let check = |key: &str, expect: Option<&str>| {
            assert_eq!(sysctl_path(key, &all).ok(), expect.map(PathBuf::from), "{key}");
        };
        check("net.ipv4.ip_forward", Some("sys/net/ipv4/ip_forward"));
        check("net/ipv4/conf/eth0.1/forwarding", Some("sys/net/ipv4/conf/eth0.1/forwarding"));
        check("kernel.shmmax", Some("sys/kernel/shmmax"));
        check("fs.mqueue.msg_max", Some("sys/fs/mqueue/msg_max"));
        check("kernel.domainname", Some("sys/kernel/domainname"));
        for bad in
            ["kernel.core_pattern", "vm.swappiness", "kernel.hostname", "net", "net/../kernel/core_pattern", "net..x"]
        {
            check(bad, None);
        }
        assert!(sysctl_path("net.ipv4.ip_forward", &Namespaces::default()).is_err());
    }
}
