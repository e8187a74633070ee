//! Versioned JSON records on disk: written beside and renamed over, so a reader sees the old one or the new one.
//! Knows no meaning. Invariant: a record from a newer program is refused, never misread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime_linux::durable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Kind, is_no_space};

/// The version this program writes. Raise it when a field changes meaning, and teach `load` the old one.
pub(crate) const VERSION: u32 = 1;

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
    durable::write_atomic(path, 0o600, &bytes).map_err(|error| failed(error.into_io()))
}

/// A record that cannot be read keeps nobody from the others: it is moved into the directory `damaged` beside its own, for
/// whoever wants to look, and `None` is returned. A record of a newer version is an error: it is not damaged, this program is old.
pub(crate) fn load_or_set_aside<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let damaged = match load(path) {
        Err(error @ Error::Parse { .. }) => error,
        other => return other,
    };
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(damaged) };
    let aside = dir.with_extension("damaged");
    let moved = fs::create_dir_all(&aside).and_then(|()| fs::rename(path, aside.join(name)));
    match moved {
        Ok(()) => {
            tracing::warn!(record = %path.display(), kept = %aside.display(), error = %damaged, "set a damaged record aside")
        }
        Err(error) => tracing::warn!(record = %path.display(), %error, "a damaged record cannot be set aside"),
    }
    Ok(None)
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

    #[test]
    fn a_damaged_record_is_set_aside_and_a_newer_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("layers");
        fs::create_dir(&records).unwrap();
        let path = records.join("one.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(load_or_set_aside::<Sample>(&path).unwrap(), None);
        assert!(!path.exists() && dir.path().join("layers.damaged/one.json").exists());
        fs::write(&path, br#"{"version":2,"name":"a"}"#).unwrap();
        assert!(matches!(load_or_set_aside::<Sample>(&path), Err(Error::Version { .. })));
    }

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
