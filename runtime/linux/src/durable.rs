//! Files that are replaced whole: a reader, or a machine that loses power, sees the old content or the new and nothing between.
//!
//! Invariant: the new file has its mode from its first byte on, whatever the umask; nothing readable by others exists in between.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the name of a file that is still being written ends; it begins with a dot.
const STAGED: &str = ".staged";

/// One variant per step; the message tells which one failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} names no file in a directory")]
    NoFile { path: PathBuf },
    #[error("create {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("sync {path}")]
    Sync { path: PathBuf, source: io::Error },
    #[error("rename to {path}")]
    Rename { path: PathBuf, source: io::Error },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("list {path}")]
    List { path: PathBuf, source: io::Error },
}

impl Error {
    /// For callers whose own error holds an `io::Error`: the kind is kept, and so is the step.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::NoFile { .. } => io::ErrorKind::InvalidInput,
            Self::Create { source, .. }
            | Self::Write { source, .. }
            | Self::Sync { source, .. }
            | Self::Rename { source, .. }
            | Self::Remove { source, .. }
            | Self::List { source, .. } => source.kind(),
        };
        io::Error::new(kind, self)
    }
}

/// Replaces `path` in one step, durably: the content is on disk before the name is, the name before this returns. `mode` is
/// the new file's permissions, e.g. `0o600`. The directory must be there. Any number of writers of one path may race: one wins
/// whole.
pub fn write_atomic(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    let (directory, name) = split(path)?;
    let staged = directory.join(staged_name(name));
    let written = stage(&staged, mode, bytes)
        .and_then(|()| fs::rename(&staged, path).map_err(|source| Error::Rename { path: path.to_owned(), source }));
    if written.is_err() {
        // The error that matters is the first one; what is left over is found by `sweep`.
        let _left_over = fs::remove_file(&staged);
    }
    written?;
    sync_directory(directory)
}

fn stage(staged: &Path, mode: u32, bytes: &[u8]) -> Result<(), Error> {
    let create = |source| Error::Create { path: staged.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(staged).map_err(create)?;
    // The umask has taken its share of the mode; what a mode grants is wanted.
    file.set_permissions(Permissions::from_mode(mode)).map_err(create)?;
    file.write_all(bytes).map_err(|source| Error::Write { path: staged.to_owned(), source })?;
    file.sync_all().map_err(|source| Error::Sync { path: staged.to_owned(), source })
}

/// Removes a file durably; one that is gone already is removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    let (directory, _) = split(path)?;
    match fs::remove_file(path) {
        Ok(()) => sync_directory(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove { path: path.to_owned(), source }),
    }
}

/// Removes what writers that were killed half-way left in `directory`; nobody may be writing there.
pub fn sweep(directory: &Path) -> Result<(), Error> {
    let list = |source| Error::List { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        if is_staged(&name) {
            remove(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Whether a name in a directory is that of a file still being written: what lists records passes over it.
pub fn is_staged(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(STAGED.as_bytes())
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Error> {
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) if directory.as_os_str().is_empty() => Ok((Path::new("."), name)),
        (Some(directory), Some(name)) => Ok((directory, name)),
        _ => Err(Error::NoFile { path: path.to_owned() }),
    }
}

/// Of its own for each call, so that two writers of one path never share a file.
fn staged_name(name: &OsStr) -> OsString {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut staged = OsString::from(".");
    staged.push(name);
    staged.push(format!(".{}-{call}{STAGED}", std::process::id()));
    staged
}

fn sync_directory(directory: &Path) -> Result<(), Error> {
    let sync = |source| Error::Sync { path: directory.to_owned(), source };
    File::open(directory).map_err(sync)?.sync_all().map_err(sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory).expect("list").map(|entry| entry.expect("entry").file_name()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_whatever_the_umask() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("record.json");
        for (mode, content) in [(0o600, b"one".as_slice()), (0o644, b"two"), (0o666, b"three")] {
            write_atomic(&path, mode, content).expect("write");
            assert_eq!(fs::read(&path).expect("read"), content);
            assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, mode);
        }
        assert_eq!(names(directory.path()), ["record.json"]);
    }

    #[test]
    fn writers_that_race_leave_one_of_their_contents() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("record.json");
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write_atomic(path, 0o600, &[writer; 4096]).expect("write")));
            }
        });
        let content = fs::read(&path).expect("read");
        assert_eq!(content.len(), 4096);
        assert!(content.iter().all(|byte| *byte == content[0]));
        assert_eq!(names(directory.path()), ["record.json"]);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_content_and_nothing_else() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("taken");
        fs::create_dir_all(path.join("full")).expect("mkdir");
        assert!(matches!(write_atomic(&path, 0o600, b"x"), Err(Error::Rename { .. })));
        assert_eq!(names(directory.path()), ["taken"]);
        assert!(matches!(write_atomic(Path::new("/"), 0o600, b"x"), Err(Error::NoFile { .. })));
        let missing = directory.path().join("missing/file");
        let error = write_atomic(&missing, 0o600, b"x").expect_err("no directory").into_io();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_sweep_takes_what_killed_writers_left_and_nothing_else() {
        let directory = tempfile::tempdir().expect("tempdir");
        let left = directory.path().join(staged_name(OsStr::new("record.json")));
        fs::write(&left, "half").expect("write");
        fs::write(directory.path().join("record.json"), "whole").expect("write");
        fs::write(directory.path().join(".hidden"), "other").expect("write");
        sweep(directory.path()).expect("sweep");
        let mut found = names(directory.path());
        found.sort();
        assert_eq!(found, [".hidden", "record.json"]);
    }

    #[test]
    fn what_is_gone_is_removed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("record.json");
        fs::write(&path, "x").expect("write");
        remove(&path).expect("remove");
        remove(&path).expect("remove again");
    }
}
