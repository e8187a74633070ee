//! The program's own file, kept out of a container's reach (CVE-2019-5736).
//!
//! A process that is about to enter a container runs from a read-only, detached mount of its own file, so `/proc/PID/exe`, opened from
//! inside, now or after our end, leads to a file that cannot be written.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::mount::{self, Change, Reach, Tree, attribute};
use crate::syscall::check;

/// Executes this program again, with the same arguments, from a file that cannot be written; returns at once where that is so already.
pub fn ensure_protected() -> Result<(), Errno> {
    let own = nix::fcntl::open("/proc/self/exe", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    if is_protected(&own) {
        return Ok(());
    }
    let copy = read_only_mount(&own).or_else(|_| sealed_copy(&own))?;
    let arguments = strings(std::env::args_os());
    let environment = strings(std::env::vars_os().map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        key
    }));
    match nix::unistd::execveat(&copy, c"", &arguments, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH) {
        Ok(never) => match never {},
        Err(errno) => Err(errno),
    }
}

fn strings(all: impl Iterator<Item = std::ffi::OsString>) -> Vec<CString> {
    // What the kernel handed us as NUL-terminated strings holds no other NUL.
    all.filter_map(|text| CString::new(text.into_vec()).ok()).collect()
}

fn is_protected(own: &OwnedFd) -> bool {
    let sealed = fcntl(own, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE));
    sealed || fstatvfs(own).is_ok_and(|status| status.flags().contains(FsFlags::ST_RDONLY))
}

fn read_only_mount(own: &OwnedFd) -> Result<OwnedFd, Errno> {
    let tree = mount::open_tree(own.as_fd(), Path::new(""), Tree::Clone)?;
    mount::set_attributes(&tree, Reach::One, &Change { set: attribute::RDONLY, ..Change::default() })?;
    // The detached mount dissolves with this descriptor at exec; the running file keeps its read-only mount.
    Ok(tree)
}

/// For who may not mount: a sealed copy in memory.
fn sealed_copy(own: &OwnedFd) -> Result<OwnedFd, Errno> {
    let copy = memfd_create(c"sampan", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut from = std::fs::File::from(own.try_clone().map_err(io)?);
    let mut to = std::fs::File::from(copy);
    std::io::copy(&mut from, &mut to).map_err(io)?;
    to.flush().map_err(io)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&to, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(OwnedFd::from(to))
}

/// A process that others may neither trace nor read through /proc, until it executes something else.
pub fn set_undumpable() -> Result<(), Errno> {
    set_dumpable(0)
}

/// For one action an ordinary process again, whose files in /proc are its own; proc_pid(5).
pub fn while_dumpable<T>(action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    set_dumpable(1)?;
    let done = action();
    set_undumpable()?;
    done
}

fn set_dumpable(value: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, value, 0, 0, 0) }))?;
    Ok(())
}

/// This process as [`set_undumpable`] makes it, for as long as this lives; a child that is cloned meanwhile stays so.
#[derive(Debug)]
pub struct Undumpable {
    was_dumpable: bool,
}

impl Undumpable {
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: PR_GET_DUMPABLE takes no argument.
        let before = check(libc::c_long::from(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }))?;
        set_undumpable()?;
        Ok(Self { was_dumpable: before == 1 })
    }
}

impl Drop for Undumpable {
    fn drop(&mut self) {
        if self.was_dumpable {
            // It can only be refused for a value that does not exist.
            let _infallible = set_dumpable(1);
        }
    }
}
