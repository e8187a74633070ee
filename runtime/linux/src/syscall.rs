//! Raw system calls that neither `nix` nor `libc` wraps, and the one place that turns their answers into `Errno`.
//!
//! Private to this package.

use std::ffi::{CString, OsStr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

/// The answer of a raw call.
pub(crate) fn check(answer: libc::c_long) -> Result<libc::c_long, Errno> {
    if answer == -1 { Err(Errno::last()) } else { Ok(answer) }
}

/// The answer of a raw call that opens a descriptor.
pub(crate) fn check_fd(answer: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(check(answer)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel takes it; a NUL byte inside is `EINVAL`.
pub(crate) fn path(path: impl AsRef<OsStr>) -> Result<CString, Errno> {
    CString::new(path.as_ref().as_bytes()).map_err(|_| Errno::EINVAL)
}
