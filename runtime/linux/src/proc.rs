//! A procfs handle that nobody can have mounted over: every write below /proc goes through it (CVE-2025-52881).

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::mount::Filesystem;
use crate::rooted;

/// A verified procfs.
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
}

impl Proc {
    /// The procfs of this mount namespace's `/proc`: to be had before the root changes, while the host's is there.
    pub fn host() -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/proc", flags, Mode::empty())?;
        if fstatfs(&root)?.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Errno::EXDEV);
        }
        Ok(Self { root })
    }

    /// A detached one of this PID namespace.
    pub fn private() -> Result<Self, Errno> {
        Ok(Self { root: Filesystem::open("proc")?.mount(0)? })
    }

    /// `path` is relative, for instance `self/uid_map`.
    pub fn open(&self, path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd, Errno> {
        rooted::open_beneath(&self.root, path.as_ref(), flags)
    }

    /// One write of the whole value, as procfs wants it.
    pub fn write(&self, path: impl AsRef<Path>, value: &[u8]) -> Result<(), Errno> {
        let file = self.open(path, OFlag::O_WRONLY)?;
        match nix::unistd::write(&file, value)? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_handles_are_procfs() {
        for proc in [Proc::host().expect("host"), Proc::private().expect("private")] {
            assert!(proc.open("self/status", OFlag::O_RDONLY).is_ok());
            assert_eq!(proc.open("self/cwd/etc", OFlag::O_PATH).err(), Some(Errno::ELOOP));
        }
    }
}
