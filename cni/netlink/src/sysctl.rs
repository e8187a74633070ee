//! Kernel settings below `/proc/sys`, read and written as files.
//!
//! `/proc/sys/net` shows the namespace of the *calling thread*: use [`crate::Namespace::within`] for another one.
//! Names are given as paths (`net/ipv4/ip_forward`), because link names may contain dots.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Why a setting cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// No such setting: a kernel module is not loaded, or there is no such link.
    #[error("kernel setting {0} does not exist")]
    Missing(String),
    /// Reading.
    #[error("read kernel setting {name}")]
    Read { name: String, source: io::Error },
    /// Writing.
    #[error("write `{value}` to kernel setting {name}")]
    Write { name: String, value: String, source: io::Error },
}

/// The value without its line end.
///
/// # Errors
/// [`SysctlError`].
pub fn read(name: &str) -> Result<String, SysctlError> {
    match fs::read_to_string(path(name)) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SysctlError::Missing(name.to_owned())),
        Err(source) => Err(SysctlError::Read { name: name.to_owned(), source }),
    }
}

/// Writes the value unless it is there already (so a read-only `/proc/sys` that is right does no harm).
///
/// # Errors
/// [`SysctlError`].
pub fn ensure(name: &str, value: &str) -> Result<(), SysctlError> {
    if read(name)? == value {
        return Ok(());
    }
    fs::write(path(name), value).map_err(|source| SysctlError::Write {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
