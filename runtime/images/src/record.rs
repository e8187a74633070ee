//! Versioned JSON records on disk: written beside and renamed over, so a reader sees the old one or the new one.
//! Knows no meaning. Invariant: a record from a newer program is refused, never misread.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Kind, is_no_space};

/// The version this program writes. Raise it when a field changes meaning, and teach `load` the old one.
pub(crate) const VERSION: u32 = 1;

/// Held while a record is written beside its place and moved there.
static SAVING: Mutex<()> = Mutex::new(());

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("write record {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("read record {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("record {} is damaged; remove it and pull its images again", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error(
        "record {} has version {found}, this program reads up to {VERSION}: it was written by a newer one; use that, or another directory",
        path.display()
    )]
    Version { path: PathBuf, found: u32 },
}

impl Error {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Write { source, .. } if is_no_space(source) => Kind::NoSpace,
            _ => Kind::Internal,
        }
    }
}

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Durable when it returns: the file and the directory entry are synced.
pub(crate) fn save<T: Serialize>(path: &Path, body: &T) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Write { path: path.to_owned(), source: Arc::new(source) };
    let bytes = serde_json::to_vec(&Written { version: VERSION, body }).map_err(|e| failed(io::Error::other(e)))?;
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        // Two pulls that share a layer save the same record: the second must not rename what the first has just renamed.
        let _one_at_a_time = SAVING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&beside, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| {
        // Best effort: the next save truncates it anyway.
        let _ = fs::remove_file(&beside);
        failed(source)
    })
}

/// `None` when there is no such record.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source: Arc::new(source) }),
    };
    let damaged = |source| Error::Parse { path: path.to_owned(), source: Arc::new(source) };
    let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(Error::Version { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
    }

    #[test]
    fn round_trip_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.json");
        assert_eq!(load::<Sample>(&path).unwrap(), None);
        let sample = Sample { name: "a".into() };
        save(&path, &sample).unwrap();
        assert_eq!(load::<Sample>(&path).unwrap(), Some(sample));
        assert!(!dir.path().join("sample.new").exists());

        fs::write(&path, br#"{"version":2,"name":"a"}"#).unwrap();
        assert!(matches!(load::<Sample>(&path), Err(Error::Version { found: 2, .. })));
        fs::write(&path, b"{").unwrap();
        assert!(matches!(load::<Sample>(&path), Err(Error::Parse { .. })));
        assert!(matches!(
            save(&dir.path().join("none/x.json"), &Sample { name: "b".into() }),
            Err(Error::Write { .. })
        ));
    }
}
