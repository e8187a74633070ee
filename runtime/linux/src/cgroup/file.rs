//! Reading and writing cgroup files: one `write(2)` per value, because the kernel parses each write by itself.

use super::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    write_raw(path, value).map_err(|source| Error::Write { path: path.to_owned(), value: value.to_owned(), source })
}

/// Like [`write`], telling apart a file that is not there: false.
pub(super) fn write_if_present(path: &Path, value: &str) -> Result<bool, Error> {
    match write_raw(path, value) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Write { path: path.to_owned(), value: value.to_owned(), source }),
    }
}

/// Several values to one file, which is opened once.
pub(super) fn write_each(path: &Path, values: &[&str]) -> Result<(), Error> {
    let error = |value: &str, source| Error::Write { path: path.to_owned(), value: value.to_owned(), source };
    let Some(first) = values.first() else { return Ok(()) };
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(|source| error(first, source))?;
    values.iter().try_for_each(|value| file.write_all(value.as_bytes()).map_err(|source| error(value, source)))
}

fn write_raw(path: &Path, value: &str) -> io::Result<()> {
    // Never O_CREAT: on the real file system it fails confusingly, on a fake one it would hide a missing file. Nor O_TRUNC, which changes
    // nothing of these files and takes kernfs's lock for writing.
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    crate::proc::read_text(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// `None` when the file, or the whole cgroup, is not there.
pub(super) fn read_if_present(path: &Path) -> Result<Option<String>, Error> {
    match crate::proc::read_text(path) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the cgroup was removed between open and read.
        Err(error) if is_gone(&error) => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// Whether an error says that the cgroup no longer exists.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

/// The number behind `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}
