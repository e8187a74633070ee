//! Namespaces: the eight kinds, joining, leaving, pinning.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};

use crate::mount;
use crate::syscall::check;

/// linux/magic.h, NSFS_MAGIC.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    User,
    Mount,
    Pid,
    Network,
    Uts,
    Ipc,
    Cgroup,
    Time,
}

impl Kind {
    pub const ALL: [Self; 8] =
        [Self::User, Self::Mount, Self::Pid, Self::Network, Self::Uts, Self::Ipc, Self::Cgroup, Self::Time];

    /// The `CLONE_NEW*` flag.
    pub fn flag(self) -> u64 {
        match self {
            Self::User => 0x1000_0000,
            Self::Mount => 0x0002_0000,
            Self::Pid => 0x2000_0000,
            Self::Network => 0x4000_0000,
            Self::Uts => 0x0400_0000,
            Self::Ipc => 0x0800_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => 0x80,
        }
    }

    /// The file's name below `/proc/PID/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// Opens a namespace file; `EINVAL` where the path is not a namespace at all.
pub fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstatfs(&fd)?.filesystem_type() != NSFS_MAGIC {
        return Err(Errno::EINVAL);
    }
    Ok(fd)
}

/// Joins: `fd` is one namespace, or a pidfd and then `flags` may name several.
pub fn join(fd: impl AsFd, flags: u64) -> Result<(), Errno> {
    let flags = libc::c_int::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: setns takes two integers; the descriptor is open for the time of the call.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_fd().as_raw_fd(), flags) })?;
    Ok(())
}

pub fn unshare(flags: u64) -> Result<(), Errno> {
    // SAFETY: unshare takes one integer. CLONE_FILES and CLONE_FS only ever make the caller's tables private.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })?;
    Ok(())
}

/// Whether both descriptors are the same namespace.
pub fn same(left: impl AsFd, right: impl AsFd) -> Result<bool, Errno> {
    let left = nix::sys::stat::fstat(left)?;
    let right = nix::sys::stat::fstat(right)?;
    Ok(left.st_dev == right.st_dev && left.st_ino == right.st_ino)
}

/// Keeps a namespace alive without a process: binds `namespace` (a file below `/proc/PID/ns`) on the existing file `at`.
pub fn pin(namespace: &Path, at: &Path) -> Result<(), Errno> {
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, namespace, mount::Tree::Clone)?;
    let target = open(at, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
    mount::attach(&tree, &target)
}
