//! `<dir>/config.json`: what `cri` writes before it spawns a shim. Read once at the start, validated here; the shim
//! never writes it.
//!
//! Invariant: an unknown field is refused, so that a newer daemon's wish is never dropped in silence.

use runtime_linux::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The version this code reads and writes. Version 1 is the first.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub version: u32,
    /// The sandbox's id.
    pub pod_id: String,
    /// The state root of the OCI runtime for this pod's containers, e.g. `<dir>/oci`.
    pub state_root: PathBuf,
    /// The shim's own cgroup, e.g. `/sampan/shims/<id>`; created by the shim.
    pub cgroup: String,
    /// The UTS namespace's names; need `uts: pod`.
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub domainname: Option<String>,
    /// Set inside the pod's namespaces: `net.*` needs `network: pod`, the System V and POSIX queue ones `ipc: pod`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    pub network: NamespaceMode,
    pub ipc: NamespaceMode,
    pub uts: NamespaceMode,
    pub pid: PidMode,
    /// A user namespace that owns the pod's other namespaces.
    #[serde(default)]
    pub user: Option<UserNamespace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// Made by the shim and pinned at `<dir>/ns/<net|ipc|uts>`.
    Pod,
    /// The host's own; nothing is pinned.
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// Each container has its own (the bundle asks for a new one): no extra process.
    Container,
    /// One for the pod, pinned at `<dir>/ns/pid`; the shim's child is its pid 1 and reaps.
    Pod,
    /// The host's own.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNamespace {
    pub uid_map: Vec<IdRange>,
    pub gid_map: Vec<IdRange>,
}

/// One line of `uid_map`/`gid_map`; user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read shim configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("shim configuration {} is not valid", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("shim configuration has version {found}, this shim reads {VERSION}; use the shim of the same release")]
    Version { found: u32 },
    #[error("shim configuration: {field}: {problem}")]
    Field { field: &'static str, problem: String },
    #[error("write shim configuration {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Config {
    #[must_use]
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("config.json")
    }

    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = Self::path(dir);
        let bytes = fs::read(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let config: Self = serde_json::from_slice(&bytes).map_err(|source| ConfigError::Parse { path, source })?;
        config.validate()?;
        Ok(config)
    }

    pub fn save(&self, dir: &Path) -> Result<(), ConfigError> {
        self.validate()?;
        let path = Self::path(dir);
        let write = || -> io::Result<()> {
            durable::write_atomic(&path, 0o600, &serde_json::to_vec_pretty(self)?).map_err(durable::Error::into_io)
        };
        write().map_err(|source| ConfigError::Write { path: path.clone(), source })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field, problem: &str| Err(ConfigError::Field { field, problem: problem.to_owned() });
        if self.version != VERSION {
            return Err(ConfigError::Version { found: self.version });
        }
        if self.pod_id.is_empty() {
            return wrong("pod_id", "must not be empty");
        }
        if !self.cgroup.starts_with('/') || self.cgroup.split('/').any(|part| part == "..") {
            return wrong("cgroup", "must be an absolute path without '..'");
        }
        if self.uts == NamespaceMode::Host && (self.hostname.is_some() || self.domainname.is_some()) {
            return wrong("hostname", "the host's own UTS namespace keeps its names; set uts to pod");
        }
        if self.hostname.as_ref().is_some_and(|name| name.len() > 64) {
            return wrong("hostname", "longer than the kernel's 64 bytes");
        }
        if let Some(user) = &self.user
            && (user.uid_map.is_empty() || user.gid_map.is_empty())
        {
            return wrong("user", "both maps need at least one range");
        }
        for name in self.sysctls.keys() {
            self.check_sysctl(name)?;
        }
        Ok(())
    }

    /// A sysctl that is not namespaced, or whose namespace is the host's, would change the host.
    fn check_sysctl(&self, name: &str) -> Result<(), ConfigError> {
        let wrong = |problem: String| Err(ConfigError::Field { field: "sysctls", problem });
        let name = name.replace('/', ".");
        if name.split('.').any(str::is_empty) {
            return wrong(format!("{name:?} is not a sysctl's name"));
        }
        let ipc = name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name.starts_with("fs.mqueue.");
        let (owner, namespace) = if name.starts_with("net.") {
            (self.network, "network")
        } else if ipc || name == "kernel.sem" {
            (self.ipc, "ipc")
        } else if name == "kernel.domainname" || name == "kernel.hostname" {
            (self.uts, "uts")
        } else {
            return wrong(format!("{name} is not namespaced: it would change the host"));
        };
        if owner == NamespaceMode::Host {
            return wrong(format!(
                "{name} would change the host, because the pod uses the host's {namespace} namespace"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            version: VERSION,
            pod_id: "p1".into(),
            state_root: "/run/x/oci".into(),
            cgroup: "/sampan/shims/p1".into(),
            hostname: Some("web".into()),
            domainname: None,
            sysctls: BTreeMap::new(),
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            uts: NamespaceMode::Pod,
            pid: PidMode::Container,
            user: None,
        }
    }

    fn check(change: impl FnOnce(&mut Config), expect: Option<&str>) {
        let mut config = sample();
        change(&mut config);
        match (config.validate(), expect) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{error}"),
            (outcome, expect) => panic!("{outcome:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn validation_protects_the_host() {
        let sysctl = |name: &'static str| {
            move |config: &mut Config| {
                config.sysctls.insert(name.into(), "1".into());
            }
        };
        check(|_| {}, None);
        check(sysctl("net.ipv4.ip_unprivileged_port_start"), None);
        check(sysctl("kernel.shmmax"), None);
        check(sysctl("fs.mqueue.msg_max"), None);
        check(sysctl("vm.swappiness"), Some("not namespaced"));
        check(sysctl("kernel.shm_rmid_forced/../../x"), Some("not a sysctl"));
        check(sysctl("net..x"), Some("not a sysctl"));
        check(
            |config| {
                config.network = NamespaceMode::Host;
                config.sysctls.insert("net.core.somaxconn".into(), "1".into());
            },
            Some("would change the host"),
        );
        check(|config| config.uts = NamespaceMode::Host, Some("keeps its names"));
        check(|config| config.cgroup = "/a/../b".into(), Some("'..'"));
        check(|config| config.version = 2, Some("version 2"));
        check(|config| config.hostname = Some("x".repeat(65)), Some("64 bytes"));
    }

    #[test]
    fn a_saved_configuration_is_loaded_and_an_unknown_field_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        sample().save(dir.path()).unwrap();
        assert_eq!(Config::load(dir.path()).unwrap(), sample());
        let text = fs::read_to_string(Config::path(dir.path())).unwrap();
        fs::write(Config::path(dir.path()), text.replacen('{', "{\"novelty\": 1,", 1)).unwrap();
        assert!(matches!(Config::load(dir.path()), Err(ConfigError::Parse { .. })));
    }
}
