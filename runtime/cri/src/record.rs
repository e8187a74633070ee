//! What is kept on disk: one JSON file per sandbox and per container below `data_dir`, each with its version.
//!
//! Invariants: a file is replaced whole (temporary file, fsync, rename, fsync of the directory), so a reader sees the old
//! facts or the new ones; facts only, no status: see `facts`. A record is written before the work it announces and before
//! the reply that depends on it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use runtime_cri_api::v1::{ContainerConfig, ContainerUser, LinuxContainerResources, PodSandboxConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version written. A reader takes this and every older one.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    #[serde(default)]
    pub(crate) runtime_handler: String,
    pub(crate) created_at_ns: i64,
    /// Set once everything stands; a record without it announces work that may have begun.
    #[serde(default)]
    pub(crate) ready_at_ns: Option<i64>,
    #[serde(default)]
    pub(crate) stopped_at_ns: Option<i64>,
    /// `None` in the host's network.
    #[serde(default)]
    pub(crate) network: Option<NetworkRecord>,
}

/// Enough to call DEL after the configuration directory has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    /// The configuration list as it was read.
    pub(crate) list: String,
    #[serde(default)]
    pub(crate) result: Option<cni_spec::AddResult>,
    /// The first is the pod's own, the others additional.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) name: String,
    pub(crate) config: ContainerConfig,
    /// Digest of the image's configuration.
    pub(crate) image_id: String,
    /// What a client can pull again: a repository digest where there is one.
    pub(crate) image_ref: String,
    pub(crate) log_path: Option<PathBuf>,
    /// Sent by StopContainer before it kills.
    pub(crate) stop_signal: i32,
    #[serde(default)]
    pub(crate) user: Option<ContainerUser>,
    #[serde(default)]
    pub(crate) resources: Option<LinuxContainerResources>,
    pub(crate) cgroup: String,
    /// Set once the shim has made it; a record without it announces work that may have begun.
    #[serde(default)]
    pub(crate) created_at_ns: Option<i64>,
    #[serde(default)]
    pub(crate) started_at_ns: Option<i64>,
    #[serde(default)]
    pub(crate) exit: Option<ExitFacts>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExitFacts {
    pub(crate) finished_at_ns: i64,
    pub(crate) code: i32,
    #[serde(default)]
    pub(crate) oom_killed: bool,
    /// Nobody saw it end: the code is made up.
    #[serde(default)]
    pub(crate) lost: bool,
    /// What went wrong, where it never ran.
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("make {}", path.display())]
    MakeDirectory { path: PathBuf, source: io::Error },
    #[error("list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("{} is damaged: move it away, and the pod it describes must be cleaned up by hand", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{} has version {found}, this program reads up to {VERSION}: start the newer one again", path.display())]
    Version { path: PathBuf, found: u32 },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The directories of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    sandboxes: PathBuf,
    containers: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: &Path) -> Result<Self, RecordError> {
        let records = Self { sandboxes: dir.join("sandboxes"), containers: dir.join("containers") };
        for path in [&records.sandboxes, &records.containers] {
            fs::create_dir_all(path).map_err(|source| RecordError::MakeDirectory { path: path.clone(), source })?;
        }
        Ok(records)
    }

    pub(crate) fn sandboxes(&self) -> Result<Vec<SandboxRecord>, RecordError> {
        load_all(&self.sandboxes)
    }

    pub(crate) fn containers(&self) -> Result<Vec<ContainerRecord>, RecordError> {
        load_all(&self.containers)
    }

    pub(crate) fn save_sandbox(&self, record: &SandboxRecord) -> Result<(), RecordError> {
        save(&self.sandboxes, &record.id, record)
    }

    pub(crate) fn save_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        save(&self.containers, &record.id, record)
    }

    pub(crate) fn remove_sandbox(&self, id: &str) -> Result<(), RecordError> {
        remove(&self.sandboxes, id)
    }

    pub(crate) fn remove_container(&self, id: &str) -> Result<(), RecordError> {
        remove(&self.containers, id)
    }
}

fn load_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, RecordError> {
    let listed = |source| RecordError::List { path: dir.to_owned(), source };
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(listed)? {
        let path = entry.map_err(listed)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            records.push(load(&path)?);
        } else {
            // A temporary file of a write that a crash cut short.
            fs::remove_file(&path).map_err(|source| RecordError::Remove { path, source })?;
        }
    }
    Ok(records)
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = fs::read(path).map_err(|source| RecordError::Read { path: path.to_owned(), source })?;
    let damaged = |source| RecordError::Parse { path: path.to_owned(), source };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(RecordError::Version { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

fn save<T: Serialize>(dir: &Path, id: &str, record: &T) -> Result<(), RecordError> {
    let path = dir.join(format!("{id}.json"));
    let temporary = dir.join(format!("{id}.{}", uuid::Uuid::new_v4().simple()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        RecordError::Write { path: path.clone(), source }
    })
}

fn remove(dir: &Path, id: &str) -> Result<(), RecordError> {
    let path = dir.join(format!("{id}.json"));
    let remove = || match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(dir)?.sync_all(),
    };
    remove().map_err(|source| RecordError::Remove { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 wrote them; never to be changed.
    const SANDBOX_1: &str = r#"{"version":1,"id":"s1","config":{"metadata":{"name":"web","uid":"u","namespace":"default","attempt":0},
        "hostname":"web","labels":{"app":"web"}},"created_at_ns":5,"ready_at_ns":6,
        "network":{"list":"{}","addresses":["10.42.0.2"]}}"#;
    const CONTAINER_1: &str = r#"{"version":1,"id":"c1","sandbox_id":"s1","name":"n","config":{"metadata":{"name":"c","attempt":1},
        "command":["sh"],"envs":[{"key":"A","value":[98]}]},"image_id":"sha256:00","image_ref":"r","log_path":"/l",
        "stop_signal":15,"cgroup":"/sampan/c1","created_at_ns":7,"exit":{"finished_at_ns":9,"code":3}}"#;

    #[test]
    fn version_1_is_read_and_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        fs::write(dir.path().join("sandboxes/s1.json"), SANDBOX_1).unwrap();
        fs::write(dir.path().join("containers/c1.json"), CONTAINER_1).unwrap();
        fs::write(dir.path().join("containers/c1.4f2a"), "cut off by a cra").unwrap();
        let sandbox = records.sandboxes().unwrap().remove(0);
        let container = records.containers().unwrap().remove(0);
        assert_eq!(sandbox.config.labels["app"], "web");
        assert_eq!(sandbox.network.as_ref().unwrap().addresses, ["10.42.0.2"]);
        assert_eq!(container.config.envs[0].value, b"b");
        assert_eq!(container.exit.as_ref().unwrap().code, 3);
        assert!(!dir.path().join("containers/c1.4f2a").exists());
        records.save_sandbox(&sandbox).unwrap();
        records.save_container(&container).unwrap();
        assert_eq!(records.sandboxes().unwrap(), [sandbox]);
        assert_eq!(records.containers().unwrap(), [container]);
        records.remove_container("c1").unwrap();
        records.remove_container("c1").unwrap();
        assert!(records.containers().unwrap().is_empty());
    }

    #[test]
    fn a_newer_or_damaged_record_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let path = dir.path().join("sandboxes/s1.json");
        fs::write(&path, SANDBOX_1.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(matches!(records.sandboxes(), Err(RecordError::Version { found: 2, .. })));
        fs::write(&path, &SANDBOX_1[..40]).unwrap();
        assert!(records.sandboxes().unwrap_err().to_string().contains("s1.json is damaged"));
    }
}
