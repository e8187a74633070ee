//! A layer's root directory, and paths in it that cannot leave it: every lookup goes through `openat2` with
//! `RESOLVE_IN_ROOT`, so a symbolic link to `/etc` means the layer's own `/etc`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use runtime_linux::tree;

use super::Error;

/// As many symbolic links are followed by the kernel in one path.
const LINKS_MAX: u32 = 40;
/// Open directories kept; archives list a directory's files together.
const CACHED_DIRS_MAX: usize = 32;
/// Of directories that an archive has no entry for.
const IMPLICIT_MODE: Mode = Mode::from_bits_truncate(0o755);

pub(super) struct Root {
    fd: OwnedFd,
    cache: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Directories that came into being only because something lies in them; in order, the outermost come first.
    pub(super) implicit: BTreeSet<Vec<u8>>,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty());
        let fd = fd.map_err(|errno| Error::write("open layer", path.as_os_str().as_bytes(), errno))?;
        Ok(Self { fd, cache: HashMap::new(), implicit: BTreeSet::new() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what is at `path`, following links inside the root only.
    pub(super) fn lookup(&self, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.is_empty() { b".".as_slice() } else { path };
        openat2(&self.fd, OsStr::from_bytes(path), how)
    }

    /// The directory at `path`, made with mode 0755 where it is missing.
    pub(super) fn ensure_dir(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Error> {
        if let Some(fd) = self.cache.get(path) {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(self.ensure_uncached(path)?);
        if self.cache.len() >= CACHED_DIRS_MAX {
            self.cache.clear();
        }
        self.cache.insert(path.to_owned(), Rc::clone(&fd));
        Ok(fd)
    }

    /// To be called when a directory or link was replaced by something else.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
    }

    /// Name by name, as the kernel walks: an archive chooses how many there are, and a stack is only so deep.
    fn ensure_uncached(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        match self.lookup(path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Self::not_opened(path, errno)),
        }
        let mut to_walk: VecDeque<Vec<u8>> = names(path).map(<[u8]>::to_vec).collect();
        let mut walked: Vec<Vec<u8>> = Vec::new();
        let mut links = LINKS_MAX;
        while let Some(name) = to_walk.pop_front() {
            // Below a root, `..` at the root stays there.
            if name == b".." {
                walked.pop();
                continue;
            }
            let parent_path = walked.join(&b'/');
            walked.push(name);
            let here = walked.join(&b'/');
            match self.lookup(&here, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(_) => continue,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Self::not_opened(&here, errno)),
            }
            let Some(target) = self.make_dir(&parent_path, &here)? else { continue };
            links = links.checked_sub(1).ok_or_else(|| Error::entry(path, "goes through too many symbolic links"))?;
            // A link that leads nowhere yet: make what it points to.
            walked.pop();
            if target.starts_with(b"/") {
                walked.clear();
            }
            for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                to_walk.push_front(name.to_vec());
            }
        }
        let made = walked.join(&b'/');
        let opened = self.lookup(&made, OFlag::O_PATH | OFlag::O_DIRECTORY);
        opened.map_err(|errno| Error::write("open", &made, errno))
    }

    fn not_opened(path: &[u8], errno: Errno) -> Error {
        match errno {
            Errno::ENOTDIR => Error::entry(path, "is not a directory, but another entry lies in it"),
            errno => Error::write("open", path, errno),
        }
    }

    /// Makes the directory `path`; where a link is already, its target.
    fn make_dir(&mut self, parent: &[u8], path: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let (_, name) = split(path);
        let name = OsStr::from_bytes(name);
        let parent = self.lookup(parent, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let parent = parent.map_err(|errno| Error::write("open the directory of", path, errno))?;
        match mkdirat(&parent, name, IMPLICIT_MODE) {
            Ok(()) => {
                // The umask has taken its share, and containers of any user pass through here.
                fchmodat(&parent, name, IMPLICIT_MODE, FchmodatFlags::NoFollowSymlink)
                    .map_err(|errno| Error::write("change mode of", path, errno))?;
                self.implicit.insert(path.to_owned());
                Ok(None)
            }
            Err(Errno::EEXIST) => {
                let target = readlinkat(&parent, name);
                target
                    .map(|target| Some(target.as_bytes().to_owned()))
                    .map_err(|errno| Error::write("read link", path, errno))
            }
            Err(errno) => Err(Error::write("create directory", path, errno)),
        }
    }
}

/// The names of a path in order; `..` is one of them.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// Splits a normalized path into its parent (empty for the root) and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        None => (b"", path),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
    }
}

/// An archive's path without leading slash, `.` and `..`; `None` if it climbs above the root.
pub(super) fn normalize(path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

pub(super) fn stat_in(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<FileStat> {
    fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// A path for calls that know no descriptors; valid while `dir` is open. An empty name is the descriptor's own file,
/// behind a link in /proc that must be followed.
pub(super) fn path_in(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let dir = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    if name.is_empty() { dir } else { dir.join(OsStr::from_bytes(name)) }
}

/// Removes a name and, if it is a directory, all below it.
pub(super) fn remove_in(dir: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<()> {
    match unlinkat(dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => tree::remove(&path_in(dir, name)).map_err(tree::Error::into_io),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |input: &str, expect: Option<&str>| {
            assert_eq!(normalize(input.as_bytes()), expect.map(|e| e.as_bytes().to_owned()), "{input}");
        };
        check("./a//b/.", Some("a/b"));
        check("/etc/passwd", Some("etc/passwd"));
        check("a/../b", Some("b"));
        check("./", Some(""));
        check("../etc", None);
        check("a/../../etc", None);
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink("/outside", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../outside2", root.join("relative")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let mut rooted = Root::open(&root).unwrap();
        rooted.ensure_dir(b"absolute/x").unwrap();
        rooted.ensure_dir(b"relative/y").unwrap();
        assert!(root.join("outside/x").is_dir() && root.join("outside2/y").is_dir());
        assert!(!dir.path().join("outside2").exists());
        assert!(rooted.ensure_dir(b"loop/z").is_err());
        assert_eq!(rooted.implicit.len(), 4);
    }
}
