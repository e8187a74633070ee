//! The exit record: how a process ended, kept on disk so that it survives every daemon and the shim itself.
//!
//! Invariant: `<dir>/containers/<id>/exit.json` is written whole (temporary file, fsync, rename, fsync of the directory)
//! before anyone is told.

use runtime_linux::durable;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The version this code writes. Version 1 is the first.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub version: u32,
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    pub pid: i32,
    /// As a shell tells it: the exit code, or 128 + signal.
    pub code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel killed a process of this container for memory, and the container failed.
    #[serde(default)]
    pub oom_killed: bool,
    /// Nanoseconds since 1970. Zero if unknown.
    pub started_at_ns: i64,
    pub exited_at_ns: i64,
    /// The shim died before the container did, so the code is not known ([`LOST_CODE`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// The exit code told for a container whose shim died: nobody was there to wait for it.
pub const LOST_CODE: i32 = 255;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("read exit record {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("exit record {} is damaged; remove it and treat the exit code as unknown", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("exit record {} has version {version}, newer than this program knows ({VERSION}); upgrade", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("write exit record {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Where a container's record is, below the pod's directory.
#[must_use]
pub fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join("containers").join(id).join("exit.json")
}

/// Reads a container's record; `None` when there is none.
pub fn load(dir: &Path, id: &str) -> Result<Option<ExitRecord>, RecordError> {
    let path = path(dir, id);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path, source }),
    };
    let record: ExitRecord =
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Parse { path: path.clone(), source })?;
    if record.version > VERSION {
        return Err(RecordError::Version { path, version: record.version });
    }
    Ok(Some(record))
}

/// Writes a container's record durably.
pub fn save(dir: &Path, record: &ExitRecord) -> Result<(), RecordError> {
    let path = path(dir, &record.id);
    let write = || -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        durable::write_atomic(&path, 0o600, &serde_json::to_vec(record)?).map_err(durable::Error::into_io)
    };
    write().map_err(|source| RecordError::Write { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 wrote, byte for byte: it must stay readable for ever.
    const VERSION_1: &str = r#"{"version":1,"id":"c1","pid":42,"code":137,"signal":9,"oom_killed":true,"started_at_ns":5,"exited_at_ns":7}"#;

    fn sample() -> ExitRecord {
        ExitRecord {
            version: 1,
            id: "c1".into(),
            exec_id: None,
            pid: 42,
            code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at_ns: 5,
            exited_at_ns: 7,
            lost: false,
        }
    }

    #[test]
    fn version_1_is_read_and_written_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("containers/c1")).unwrap();
        fs::write(path(dir.path(), "c1"), VERSION_1).unwrap();
        assert_eq!(load(dir.path(), "c1").unwrap(), Some(sample()));
        save(dir.path(), &sample()).unwrap();
        assert_eq!(fs::read_to_string(path(dir.path(), "c1")).unwrap(), VERSION_1);
    }

    #[test]
    fn absent_damaged_and_future_records_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path(), "c1").unwrap().is_none());
        save(dir.path(), &sample()).unwrap();
        fs::write(path(dir.path(), "c1"), &VERSION_1[..20]).unwrap();
        assert!(matches!(load(dir.path(), "c1"), Err(RecordError::Parse { .. })));
        fs::write(path(dir.path(), "c1"), VERSION_1.replace("\"version\":1", "\"version\":99")).unwrap();
        assert!(matches!(load(dir.path(), "c1"), Err(RecordError::Version { version: 99, .. })));
    }
}
