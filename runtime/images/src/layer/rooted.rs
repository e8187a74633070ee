//! A layer's root directory, and paths in it that cannot leave it: every lookup goes through `openat2` with
//! `RESOLVE_IN_ROOT`, so a symbolic link to `/etc` means the layer's own `/etc`.

use std::collections::{BTreeSet, HashMap};
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
        let fd = Rc::new(self.ensure_uncached(path, LINKS_MAX)?);
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

    fn ensure_uncached(&mut self, path: &[u8], links: u32) -> Result<OwnedFd, Error> {
        match self.lookup(path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTDIR) => return Err(Error::entry(path, "is not a directory, but another entry lies in it")),
            Err(errno) => return Err(Error::write("open", path, errno)),
        }
        let (parent_path, name) = split(path);
        let parent = self.ensure_uncached(parent_path, links)?;
        match mkdirat(&parent, OsStr::from_bytes(name), IMPLICIT_MODE) {
            Ok(()) => {
                // The umask has taken its share, and containers of any user pass through here.
                fchmodat(&parent, OsStr::from_bytes(name), IMPLICIT_MODE, FchmodatFlags::NoFollowSymlink)
                    .map_err(|errno| Error::write("change mode of", path, errno))?;
                self.implicit.insert(path.to_owned());
            }
            // A link that leads nowhere yet: make what it points to.
            Err(Errno::EEXIST) if links > 0 => {
                let target = readlinkat(&parent, OsStr::from_bytes(name));
                let target = target.map_err(|errno| Error::write("read link", path, errno))?;
                let joined = if target.as_bytes().starts_with(b"/") {
                    target.as_bytes().to_owned()
                } else {
                    [parent_path, b"/", target.as_bytes()].concat()
                };
                let target = normalize_in_root(&joined);
                return self.ensure_uncached(&target, links - 1);
            }
            Err(Errno::EEXIST) => return Err(Error::entry(path, "goes through too many symbolic links")),
            Err(errno) => return Err(Error::write("create directory", path, errno)),
        }
        let opened = self.lookup(path, OFlag::O_PATH | OFlag::O_DIRECTORY);
        opened.map_err(|errno| Error::write("open", path, errno))
    }
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

/// As the kernel does below a root: `..` at the root stays there.
fn normalize_in_root(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names.join(&b'/')
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
        assert_eq!(normalize_in_root(b"../../a/../b"), b"b");
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
