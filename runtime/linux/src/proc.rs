//! A procfs handle that nobody can have mounted over: every write below /proc goes through it (CVE-2025-52881).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::mount::Filesystem;
use crate::rooted;

/// linux/proc_fs.h, PROC_ROOT_INO.
const ROOT_INODE: u64 = 1;

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
        if is_root(&root)? { Ok(Self { root }) } else { Err(Errno::EXDEV) }
    }

    /// A detached one of this PID namespace.
    pub fn private() -> Result<Self, Errno> {
        Ok(Self { root: Filesystem::open("proc")?.mount(0)? })
    }

    /// `path` is relative, for instance `self/uid_map`.
    pub fn open(&self, path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd, Errno> {
        rooted::open_beneath(&self.root, path.as_ref(), flags)
    }

    /// One write of the whole value, as procfs wants it; through a detached procfs where something is mounted over the file.
    pub fn write(&self, path: impl AsRef<Path>, value: &[u8]) -> Result<(), Errno> {
        let path = path.as_ref();
        let file = match self.open(path, OFlag::O_WRONLY) {
            // A host that is a container itself has parts of its /proc mounted over.
            Err(Errno::EXDEV) => Self::private()?.open(path, OFlag::O_WRONLY)?,
            other => other?,
        };
        match nix::unistd::write(&file, value)? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

/// Whether a descriptor is the root directory of a procfs: neither something else nor a part of one, which would pass for it.
pub fn is_root(fd: impl AsFd) -> Result<bool, Errno> {
    let is_procfs = fstatfs(fd.as_fd())?.filesystem_type() == PROC_SUPER_MAGIC;
    Ok(is_procfs && nix::sys::stat::fstat(fd.as_fd())?.st_ino == ROOT_INODE)
}

/// Most of what the kernel writes fits; the rest is read in further pieces.
const TEXT_BYTES: usize = 4096;

/// A whole file of procfs, cgroupfs or the like. They say that they are empty, so that `std::fs` would begin with 32 bytes and double, and
/// ask for size and position before.
pub fn read_text(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty())?;
    let mut text = vec![0; TEXT_BYTES];
    let mut length = 0;
    loop {
        match nix::unistd::read(&file, &mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if length == text.len() {
            text.resize(length * 2, 0);
        }
    }
    text.truncate(length);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_procfs_is_not_its_root() {
        let open = |path: &str| nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).expect("open");
        for (path, expect) in [("/proc", true), ("/proc/self", false), ("/proc/sys", false), ("/", false)] {
            assert_eq!(is_root(open(path)), Ok(expect), "{path}");
        }
    }

    #[test]
    fn text_of_any_length_is_read_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("text");
        for length in [0, 1, TEXT_BYTES - 1, TEXT_BYTES, TEXT_BYTES + 1, 5 * TEXT_BYTES] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).expect("write");
            assert_eq!(read_text(&path).expect("read"), text, "{length}");
        }
        std::fs::write(&path, [0xff]).expect("write");
        assert_eq!(read_text(&path).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
        assert_eq!(read_text(&dir.path().join("no")).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn both_handles_are_procfs() {
        for proc in [Proc::host().expect("host"), Proc::private().expect("private")] {
            assert!(proc.open("self/status", OFlag::O_RDONLY).is_ok());
            assert_eq!(proc.open("self/cwd/etc", OFlag::O_PATH).err(), Some(Errno::ELOOP));
        }
    }
}
