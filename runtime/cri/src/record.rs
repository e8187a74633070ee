//! What is kept on disk: one JSON file per sandbox and per container below `data_dir`, each with its version.
//!
//! Invariants: a file is replaced whole (`runtime_linux::durable`), so a reader sees the old facts or the new ones; facts only, no
//! status: see `facts`. A record is written before the work it announces and before the reply that depends on it: see `kept`.
//! One that cannot be read is set aside, and costs nobody else anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use runtime_cri_api::v1::{ContainerConfig, ContainerUser, LinuxContainerResources, PodSandboxConfig};
use runtime_linux::durable;
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
    /// From here on it is not ready, whatever is still to be taken down.
    #[serde(default)]
    pub(crate) stopped_at_ns: Option<i64>,
    /// Everything given back: processes, address, namespaces, mounts. A stop before that goes on where the last one failed.
    #[serde(default)]
    pub(crate) released_at_ns: Option<i64>,
    /// It could not be made, and what was made of it could not be undone: it is listed, so that somebody can finish that.
    #[serde(default)]
    pub(crate) failed_at_ns: Option<i64>,
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

impl NetworkRecord {
    /// Before ADD.
    pub(crate) fn intended(list: String) -> Self {
        Self { list, result: None, addresses: Vec::new() }
    }
}

impl SandboxRecord {
    /// What can be said of one whose record is damaged: its id, and with it where its shim, cgroup and directory are.
    pub(crate) fn unreadable(id: &str) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            config: PodSandboxConfig::default(),
            runtime_handler: String::new(),
            created_at_ns: 0,
            ready_at_ns: None,
            stopped_at_ns: None,
            released_at_ns: None,
            failed_at_ns: None,
            network: None,
        }
    }
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
    /// Why it could not be made: its start fails with these words, and the shim has never heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
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
    #[error("set {} aside", path.display())]
    SetAside { path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{} is damaged: it is the record of another, {id:?}", path.display())]
    Misplaced { path: PathBuf, id: String },
    #[error("{} is damaged: it holds more than {RECORD_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{} has version {found}, this program reads up to {VERSION}: start the newer one again", path.display())]
    Version { path: PathBuf, found: u32 },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// A request is smaller than this, and a record is little more than its request.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Where records that cannot be read are moved, beside their directory.
const DAMAGED: &str = "damaged";

/// What is recorded, as one file below its kind's directory.
pub(crate) trait Record: Clone + PartialEq + Serialize + DeserializeOwned {
    /// The directory's name.
    const KIND: &'static str;
    fn id(&self) -> &str;
}

impl Record for SandboxRecord {
    const KIND: &'static str = "sandboxes";
    fn id(&self) -> &str {
        &self.id
    }
}

impl Record for ContainerRecord {
    const KIND: &'static str = "containers";
    fn id(&self) -> &str {
        &self.id
    }
}

/// What a directory of records held.
#[derive(Debug)]
pub(crate) struct Loaded<R> {
    pub(crate) records: Vec<R>,
    /// Ids whose records were damaged and are set aside.
    pub(crate) damaged: Vec<String>,
}

/// The directory of records, for this user alone: environments are in them.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: &Path) -> Result<Self, RecordError> {
        for path in [dir.to_owned(), dir.join(SandboxRecord::KIND), dir.join(ContainerRecord::KIND)] {
            crate::private::directory(&path).map_err(|source| RecordError::MakeDirectory { path, source })?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Every record of a kind. A damaged one is told and set aside, so that one bad block costs one pod and not all of them;
    /// one of a newer program is an error, because going on would undo that program's pods.
    pub(crate) fn load<R: Record>(&self) -> Result<Loaded<R>, RecordError> {
        let dir = self.dir.join(R::KIND);
        let listed = |source| RecordError::List { path: dir.clone(), source };
        let mut loaded = Loaded { records: Vec::new(), damaged: Vec::new() };
        for entry in fs::read_dir(&dir).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            let id = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            if path.extension().is_none_or(|extension| extension != "json") {
                // A temporary file of a write that a crash cut short.
                fs::remove_file(&path).map_err(|source| RecordError::Remove { path, source })?;
                continue;
            }
            match load::<R>(&path, &id) {
                Ok(record) => loaded.records.push(record),
                Err(error @ RecordError::Version { .. }) => return Err(error),
                Err(error) => {
                    let kept = self.set_aside(R::KIND, &path)?;
                    let error = crate::status::chain(&error);
                    tracing::error!(kind = R::KIND, id, error, kept = %kept.display(), "record set aside");
                    loaded.damaged.push(id);
                }
            }
        }
        Ok(loaded)
    }

    /// Moves a record out of the way, for a person to look at; the newest of a name is kept.
    fn set_aside(&self, kind: &str, path: &Path) -> Result<PathBuf, RecordError> {
        let dir = self.dir.join(DAMAGED);
        let failed = |source| RecordError::SetAside { path: path.to_owned(), source };
        crate::private::directory(&dir).map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let kept = dir.join(format!("{kind}-{name}"));
        fs::rename(path, &kept).map_err(failed)?;
        Ok(kept)
    }

    pub(crate) fn save<R: Record>(&self, record: &R) -> Result<(), RecordError> {
        let path = self.path::<R>(record.id());
        let write = || -> io::Result<()> {
            durable::write_atomic(&path, 0o600, &serde_json::to_vec(record)?).map_err(durable::Error::into_io)
        };
        write().map_err(|source| RecordError::Write { path: path.clone(), source })
    }

    /// Gone is success.
    pub(crate) fn remove<R: Record>(&self, id: &str) -> Result<(), RecordError> {
        let path = self.path::<R>(id);
        durable::remove(&path).map_err(|error| RecordError::Remove { path, source: error.into_io() })
    }

    fn path<R: Record>(&self, id: &str) -> PathBuf {
        self.dir.join(R::KIND).join(format!("{id}.json"))
    }
}

fn load<R: Record>(path: &Path, id: &str) -> Result<R, RecordError> {
    let bytes = crate::private::read(path, RECORD_BYTES_MAX).map_err(|source| match source.kind() {
        io::ErrorKind::FileTooLarge => RecordError::TooLong { path: path.to_owned() },
        _ => RecordError::Read { path: path.to_owned(), source },
    })?;
    let damaged = |source| RecordError::Parse { path: path.to_owned(), source };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(RecordError::Version { path: path.to_owned(), found: version });
    }
    let record: R = serde_json::from_slice(&bytes).map_err(damaged)?;
    if record.id() == id {
        Ok(record)
    } else {
        Err(RecordError::Misplaced { path: path.to_owned(), id: record.id().to_owned() })
    }
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
        let sandbox: SandboxRecord = records.load().unwrap().records.remove(0);
        let container: ContainerRecord = records.load().unwrap().records.remove(0);
        assert_eq!(sandbox.config.labels["app"], "web");
        assert_eq!(sandbox.network.as_ref().unwrap().addresses, ["10.42.0.2"]);
        assert_eq!(container.config.envs[0].value, b"b");
        assert_eq!(container.exit.as_ref().unwrap().code, 3);
        assert!(!dir.path().join("containers/c1.4f2a").exists());
        records.save(&sandbox).unwrap();
        records.save(&container).unwrap();
        assert_eq!(records.load::<SandboxRecord>().unwrap().records, [sandbox]);
        assert_eq!(records.load::<ContainerRecord>().unwrap().records, [container]);
        records.remove::<ContainerRecord>("c1").unwrap();
        records.remove::<ContainerRecord>("c1").unwrap();
        assert!(records.load::<ContainerRecord>().unwrap().records.is_empty());
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_the_others_are_read() {
        let check = |content: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let records = Records::open(dir.path()).unwrap();
            fs::write(dir.path().join("sandboxes/s1.json"), SANDBOX_1).unwrap();
            fs::write(dir.path().join("sandboxes/s2.json"), content).unwrap();
            let loaded = records.load::<SandboxRecord>().unwrap();
            assert_eq!((loaded.records.len(), loaded.damaged), (1, vec!["s2".to_owned()]));
            assert_eq!(fs::read(dir.path().join("damaged/sandboxes-s2.json")).unwrap(), content);
            // Once: the next start finds nothing wrong.
            assert!(records.load::<SandboxRecord>().unwrap().damaged.is_empty());
        };
        check(b"");
        check(b"\0\0\0\0");
        check(&SANDBOX_1.as_bytes()[..40]);
        check(br#"{"version":1}"#);
        check(br#"{"version":-1,"id":"s2"}"#);
        // The record of another under this name would make two of one.
        check(SANDBOX_1.as_bytes());
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        check(&deep);
    }

    #[test]
    fn a_newer_record_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let path = dir.path().join("sandboxes/s1.json");
        fs::write(&path, SANDBOX_1.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(matches!(records.load::<SandboxRecord>(), Err(RecordError::Version { found: 2, .. })));
        assert!(path.exists());
    }

    #[test]
    fn nobody_else_can_read_a_record() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cri");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let records = Records::open(&root).unwrap();
        records.save(&serde_json::from_str::<SandboxRecord>(SANDBOX_1).unwrap()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let modes = ["", "sandboxes", "containers", "sandboxes/s1.json"].map(|below| mode(&root.join(below)));
        assert_eq!(modes, [0o700, 0o700, 0o700, 0o600]);
    }
}
