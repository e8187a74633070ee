//! `tmpcopyup`: a tmpfs that starts with what it hides. Copies a directory to another, both by descriptor.
//!
//! Follows no symlink. Kinds other than files, directories and symlinks are left out, as runc leaves them out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid};

/// Directories below directories; deeper is an error, not an overflow of the stack.
const DEPTH_MAX: u32 = 128;

pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // `from` and `to` may be O_PATH: open them for reading.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let from = openat(from, ".", flags, Mode::empty())?;
    let to = openat(to, ".", flags, Mode::empty())?;
    directory(from, &to, 0)
}

fn directory(from: OwnedFd, to: &OwnedFd, depth: u32) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::ELOOP);
    }
    own(to, &fstat(&from)?)?;
    let mut entries = Dir::from_fd(from)?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    for name in names {
        let name = Path::new(&name);
        let status = fstatat(&entries, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
        // O_NONBLOCK: what was a file just now may be a fifo by now, which would make us wait for its writer.
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if kind == SFlag::S_IFDIR {
            mkdirat(to, name, Mode::from_bits_truncate(0o700))?;
            let inner = openat(to, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
            directory(openat(&entries, name, read | OFlag::O_DIRECTORY, Mode::empty())?, &inner, depth + 1)?;
        } else if kind == SFlag::S_IFREG {
            let mut source = File::from(openat(&entries, name, read, Mode::empty())?);
            let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut target = File::from(openat(to, name, create, Mode::from_bits_truncate(0o600))?);
            let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
            std::io::copy(&mut source, &mut target).map_err(io)?;
            own(&target, &status)?;
        } else if kind == SFlag::S_IFLNK {
            let link = nix::fcntl::readlinkat(&entries, name)?;
            nix::unistd::symlinkat(Path::new(&link), to, name)?;
        }
    }
    Ok(())
}

fn own(file: impl AsFd, status: &FileStat) -> Result<(), Errno> {
    let file = file.as_fd();
    nix::unistd::fchown(file, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
    fchmod(file, Mode::from_bits_truncate(status.st_mode & 0o7777))
}
