//! Paths below a root that somebody else controls: every step by `openat2(2)` with `RESOLVE_IN_ROOT` and no magic links.
//!
//! Invariant: whatever symlinks lie below the root, no call here reaches anything outside it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};

use crate::syscall::{check_fd, path as c_path};

const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

/// Symlinks followed while missing directories are made; the kernel's own limit.
const LINKS_MAX: u32 = 40;
/// Answers of EAGAIN (a rename raced with the walk) taken before giving up.
const RETRIES_MAX: u32 = 128;

#[repr(C)]
struct How {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn openat2(at: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode, resolve: u64) -> Result<OwnedFd, Errno> {
    let path = c_path(path)?;
    let flags = u64::try_from((flags | OFlag::O_CLOEXEC).bits()).map_err(|_| Errno::EINVAL)?;
    let how = How { flags, mode: u64::from(mode.bits()), resolve };
    for _ in 0..RETRIES_MAX {
        // SAFETY: `path` is NUL-terminated, `how` has the kernel's layout (OPEN_HOW_SIZE_VER0); both outlive the call.
        let answer = unsafe {
            libc::syscall(libc::SYS_openat2, at.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<How>())
        };
        match check_fd(answer) {
            // openat2(2), EAGAIN: "..", and a rename or mount elsewhere at the same time.
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// Opens strictly below `at`, without any symlink to the outside, magic link or other mount: for /proc and /sys handles.
pub fn open_beneath(at: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    openat2(at.as_fd(), path, flags, Mode::empty(), resolve)
}

/// A directory that is treated as `/`.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// `fd` is an open directory, `O_PATH` suffices.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub fn open_dir(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    pub fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        openat2(self.fd.as_fd(), &path, flags, Mode::empty(), RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    }

    /// Like [`Self::open`], but through no symlink at all: `ELOOP`.
    pub fn open_plain(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
        openat2(self.fd.as_fd(), &relative(path), flags, Mode::empty(), resolve)
    }

    /// Opens a regular file for reading. What else may lie there (a FIFO, whose opening waits for a writer; a device; a directory)
    /// is `InvalidInput`, and nothing waits.
    pub fn open_regular(&self, path: &Path) -> io::Result<File> {
        regular(self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?)
    }

    /// Like [`Self::open_regular`], but through no symlink at all: `ELOOP`.
    pub fn open_plain_regular(&self, path: &Path) -> io::Result<File> {
        regular(self.open_plain(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?)
    }

    /// The content of a regular file, see [`Self::open_regular`]; one that holds more than `bytes_max` is `FileTooLarge`.
    pub fn read_regular(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        read_bounded(&self.open_regular(path)?, bytes_max)
    }

    /// Like [`Self::open`], creating a missing file; its directory must be there.
    pub fn create(&self, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        openat2(self.fd.as_fd(), &path, flags | OFlag::O_CREAT, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    }

    /// Opens (`O_PATH`) a directory that is made where missing and reached through no symlink at all: `ELOOP` or `ENOTDIR` else.
    pub fn ensure_plain_dir(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let open = || openat2(self.fd.as_fd(), &relative(path), flags, Mode::empty(), resolve);
        match open() {
            Err(Errno::ENOENT) => {
                self.ensure_dir(path, mode)?;
                open()
            }
            other => other,
        }
    }

    /// Opens a directory, making what is missing of it with `mode`, and follows symlinks inside the root, dangling ones too.
    pub fn ensure_dir(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::ENOENT) => match self.make_last_dir(path, mode) {
                Err(Errno::ENOENT | Errno::EEXIST) => self.make_dirs(path, mode, 0),
                other => other,
            },
            other => other,
        }
    }

    /// Mostly only the last of a path is missing, which costs fewer calls than a walk.
    fn make_last_dir(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut components: Vec<_> = normal(path).collect();
        let name = components.pop().ok_or(Errno::ENOENT)?;
        if components.is_empty() {
            mkdirat(&self.fd, name, mode)?;
        } else {
            let parent: PathBuf = components.into_iter().collect();
            mkdirat(&self.open(&parent, flags)?, name, mode)?;
        }
        self.open(path, flags)
    }

    fn make_dirs(&self, path: &Path, mode: Mode, links: u32) -> Result<OwnedFd, Errno> {
        if links > LINKS_MAX {
            return Err(Errno::ELOOP);
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut done = PathBuf::from("/");
        for component in normal(path) {
            let parent = self.open(&done, flags)?;
            done.push(component);
            match self.open(&done, flags) {
                Ok(_) => continue,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            match mkdirat(&parent, component, mode) {
                Ok(()) => {}
                // A dangling symlink: make what it names, as seen from this root.
                Err(Errno::EEXIST) => match nix::fcntl::readlinkat(&parent, component) {
                    Ok(link) => {
                        done.pop();
                        let target = done.join(link);
                        self.make_dirs(&target, mode, links + 1)?;
                        done.push(component);
                    }
                    // Somebody else made it meanwhile.
                    Err(Errno::EINVAL) => {}
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            }
        }
        self.open(path, flags)
    }

    /// Opens (`O_PATH`) a file, making an empty one and its directories where missing; does not open it for writing.
    pub fn ensure_file(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let (parent, name) = self.ensure_parent(path)?;
        match mknodat(&parent, name.as_path(), SFlag::S_IFREG, mode, 0) {
            Ok(()) => {}
            Err(Errno::EEXIST) => self.make_behind_link(path, &parent, &name, mode)?,
            Err(errno) => return Err(errno),
        }
        self.open(path, OFlag::O_PATH)
    }

    /// A dangling symlink: the kernel itself creates its target, inside the root, once there is a directory for it.
    fn make_behind_link(&self, path: &Path, parent: &OwnedFd, name: &Path, mode: Mode) -> Result<(), Errno> {
        if let Ok(link) = nix::fcntl::readlinkat(parent, name) {
            let target = path.parent().unwrap_or(Path::new("/")).join(link);
            self.ensure_parent(&target)?;
        }
        self.create(path, OFlag::O_WRONLY | OFlag::O_NONBLOCK, mode).map(drop)
    }

    /// Like [`Self::ensure_file`], but a symlink at the end is what is opened.
    pub fn ensure_file_nofollow(&self, path: &Path, mode: Mode) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        match self.open(path, flags) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let (parent, name) = self.ensure_parent(path)?;
        match mknodat(&parent, name.as_path(), SFlag::S_IFREG, mode, 0) {
            Ok(()) | Err(Errno::EEXIST) => self.open(path, flags),
            Err(errno) => Err(errno),
        }
    }

    /// Like [`Self::ensure_parent`], but reached through no symlink at all.
    pub fn ensure_plain_parent(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
        let mut components: Vec<_> = normal(path).collect();
        let name = components.pop().ok_or(Errno::EISDIR)?;
        let parent = components.iter().fold(PathBuf::from("/"), |path, component| path.join(component));
        Ok((self.ensure_plain_dir(&parent, Mode::from_bits_truncate(0o755))?, PathBuf::from(name)))
    }

    /// The directory that holds `path`'s last component, made where missing, and that component.
    pub fn ensure_parent(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
        let mut components: Vec<_> = normal(path).collect();
        let name = components.pop().ok_or(Errno::EISDIR)?;
        let parent = components.iter().fold(PathBuf::from("/"), |path, component| path.join(component));
        Ok((self.ensure_dir(&parent, Mode::from_bits_truncate(0o755))?, PathBuf::from(name)))
    }
}

/// What an open file still holds, up to `bytes_max`; more is `FileTooLarge`. No more than that is ever kept in memory.
pub fn read_bounded(mut file: &File, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    Read::by_ref(&mut file).take(limit).read_to_end(&mut content)?;
    if content.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("holds more than {bytes_max} bytes")));
    }
    Ok(content)
}

fn regular(fd: OwnedFd) -> io::Result<File> {
    let file = File::from(fd);
    if file.metadata()?.file_type().is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"))
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `openat2` takes an absolute path with RESOLVE_IN_ROOT, but not an empty one.
fn relative(path: &Path) -> PathBuf {
    let stripped = path.strip_prefix("/").unwrap_or(path);
    if stripped.as_os_str().is_empty() { PathBuf::from(".") } else { stripped.to_owned() }
}

/// Names only: `..` is taken lexically here, since what it would leave may not exist yet, and never leaves the root.
fn normal(path: &Path) -> impl Iterator<Item = &std::ffi::OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.into_iter()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leaves_the_root() {
        let outside = tempfile::tempdir().expect("tempdir");
        let inside = tempfile::tempdir().expect("tempdir");
        symlink(outside.path(), inside.path().join("absolute")).expect("symlink");
        symlink("../../../../../..", inside.path().join("up")).expect("symlink");
        symlink("/made/later", inside.path().join("dangling")).expect("symlink");
        let root = Root::open_dir(inside.path()).expect("open");
        let mode = Mode::from_bits_truncate(0o755);
        root.ensure_dir(Path::new("/absolute/x/y"), mode).expect("absolute");
        root.ensure_dir(Path::new("/up/z"), mode).expect("up");
        root.ensure_dir(Path::new("/dangling/w"), mode).expect("dangling");
        root.ensure_file(Path::new("../../file"), mode).expect("file");
        symlink("../../etc/not/here", inside.path().join("missing")).expect("symlink");
        root.ensure_file(Path::new("/missing"), mode).expect("behind a dangling link");
        root.ensure_file_nofollow(Path::new("/missing"), mode).expect("the link itself");
        assert!(inside.path().join("etc/not/here").is_file());
        assert_eq!(root.ensure_plain_parent(Path::new("/up/x")).err(), Some(Errno::ELOOP));
        let below = inside.path().join(outside.path().strip_prefix("/").expect("absolute"));
        assert!(below.join("x/y").is_dir());
        assert!(inside.path().join("z").is_dir());
        assert!(inside.path().join("made/later/w").is_dir());
        assert!(inside.path().join("file").is_file());
        assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
    }

    #[test]
    fn only_regular_files_are_read_and_only_so_much_of_them() {
        let inside = tempfile::tempdir().expect("tempdir");
        let root = Root::open_dir(inside.path()).expect("open");
        nix::unistd::mkfifo(&inside.path().join("fifo"), Mode::from_bits_truncate(0o600)).expect("mkfifo");
        std::fs::create_dir(inside.path().join("directory")).expect("mkdir");
        std::fs::write(inside.path().join("file"), "12345").expect("write");
        symlink("/file", inside.path().join("link")).expect("symlink");
        symlink("/dev/null", inside.path().join("device")).expect("symlink");
        let check = |path: &str, max: usize, expect: Result<&[u8], io::ErrorKind>| {
            let read = root.read_regular(Path::new(path), max);
            assert_eq!(read.as_deref().map_err(io::Error::kind), expect, "{path}");
        };
        check("fifo", 9, Err(io::ErrorKind::InvalidInput));
        check("directory", 9, Err(io::ErrorKind::InvalidInput));
        check("device", 9, Err(io::ErrorKind::NotFound));
        check("file", 5, Ok(b"12345"));
        check("file", 4, Err(io::ErrorKind::FileTooLarge));
        check("link", 5, Ok(b"12345"));
        assert!(root.open_plain_regular(Path::new("link")).is_err());
        let endless = File::open("/dev/zero").expect("open");
        assert!(read_bounded(&endless, 1 << 20).is_err());
    }

    #[test]
    fn magic_links_are_refused() {
        let root = Root::open_dir(Path::new("/")).expect("open");
        assert_eq!(root.open(Path::new("/proc/self/fd/0"), OFlag::O_PATH).err(), Some(Errno::ELOOP));
        assert_eq!(root.open(Path::new("/proc/self/cwd"), OFlag::O_PATH).err(), Some(Errno::ELOOP));
    }
}
