//! Removes a tree that somebody else grew: however deep, wide or strangely named, with a few descriptors and little memory.
//!
//! `std::fs::remove_dir_all` recurses and keeps a descriptor for each level, so 15,000 nested directories end the process that
//! removes them. Here a directory found two levels down is renamed to the top and emptied there, so nothing is ever deep.
//!
//! Invariant: no symlink is followed, and no mount is crossed: what lies on another mount stays and is told as an error.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::rooted;

/// How often a directory is emptied in its own place because the kernel does not let it be moved to the top (EXDEV: another
/// quota project, or a directory of an overlay's lower layer). Beyond it the directory stays and is told.
const NESTED_MAX: u32 = 32;
/// Names tried for a directory that is moved to the top. The first is random, so nobody can have taken them all.
const NAMES_MAX: u32 = 16;

/// What could not be removed: the first of possibly many, everything else is gone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} names no entry of a directory")]
    NoEntry { path: PathBuf },
    #[error("open the directory of {path}")]
    Parent { path: PathBuf, source: Errno },
    #[error("open a directory below {path}")]
    Open { path: PathBuf, source: Errno },
    #[error("list a directory below {path}")]
    List { path: PathBuf, source: Errno },
    #[error("something is mounted at or below {path}")]
    Mounted { path: PathBuf },
    #[error("move a directory below {path}")]
    Move { path: PathBuf, source: Errno },
    #[error("remove an entry of {path}")]
    Unlink { path: PathBuf, source: Errno },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: Errno },
    #[error("{path} nests deeper than its file system lets it be taken apart")]
    Nested { path: PathBuf },
}

impl Error {
    /// For callers whose own error holds an `io::Error`.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::NoEntry { .. } => io::ErrorKind::InvalidInput,
            Self::Mounted { .. } => io::ErrorKind::ResourceBusy,
            Self::Nested { .. } => io::ErrorKind::Other,
            Self::Parent { source, .. }
            | Self::Open { source, .. }
            | Self::List { source, .. }
            | Self::Move { source, .. }
            | Self::Unlink { source, .. }
            | Self::Remove { source, .. } => io::Error::from(*source).kind(),
        };
        io::Error::new(kind, self)
    }
}

/// Removes a file, a symlink or a directory with all that is below it. What is gone already is removed. Goes on past what
/// cannot be removed and returns the first such error.
pub fn remove(path: &Path) -> Result<(), Error> {
    let name = path.file_name().ok_or_else(|| Error::NoEntry { path: path.to_owned() })?;
    let name = CString::new(name.as_bytes()).map_err(|_| Error::NoEntry { path: path.to_owned() })?;
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = match nix::fcntl::open(directory, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::ENOENT) => return Ok(()),
        Err(source) => return Err(Error::Parent { path: path.to_owned(), source }),
    };
    match unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // unlink(2): EISDIR on Linux, EPERM by POSIX.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(source) => return Err(Error::Remove { path: path.to_owned(), source }),
    }
    let mut removal = Removal { path, name: random(), first: None };
    removal.remove_directory(&parent, &name, 0);
    removal.first.map_or(Ok(()), Err)
}

struct Removal<'a> {
    /// As the caller gave it: what errors name.
    path: &'a Path,
    /// The next name at the top.
    name: u64,
    first: Option<Error>,
}

impl Removal<'_> {
    fn failed(&mut self, error: impl FnOnce(PathBuf) -> Error) {
        if self.first.is_none() {
            self.first = Some(error(self.path.to_owned()));
        }
    }

    /// Empties and removes the directory `name` of `parent`; says whether anything was removed.
    fn remove_directory(&mut self, parent: &OwnedFd, name: &CStr, nested: u32) -> bool {
        let top = match open_directory(parent, name) {
            Ok(top) => top,
            Err(Errno::ENOENT) => return true,
            Err(Errno::EXDEV) => {
                self.failed(|path| Error::Mounted { path });
                return false;
            }
            Err(source) => {
                self.failed(|path| Error::Open { path, source });
                return false;
            }
        };
        let mut progress = false;
        // Entries that are moved here or that a changing directory hides from a pass are found by the next one.
        while self.pass(&top, nested) {
            progress = true;
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => true,
            Err(Errno::EBUSY) => {
                self.failed(|path| Error::Mounted { path });
                progress
            }
            Err(source) => {
                self.failed(|path| Error::Remove { path, source });
                progress
            }
        }
    }

    /// Goes through `top` once; says whether anything was removed.
    fn pass(&mut self, top: &OwnedFd, nested: u32) -> bool {
        let mut progress = false;
        self.each(top, |this, name, kind| {
            if !may_be_directory(top, name, kind) {
                progress |= this.unlink(top, name);
            } else if !this.flatten(top, name, nested, &mut progress) {
                progress |= this.remove_directory(top, name, nested + 1);
            }
        });
        progress
    }

    /// Empties the directory `name` of `top` by moving its own directories to `top`, and removes it. `false`: they cannot be
    /// moved there, and it has to be taken apart where it is.
    fn flatten(&mut self, top: &OwnedFd, name: &CStr, nested: u32, progress: &mut bool) -> bool {
        let directory = match open_directory(top, name) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return true,
            Err(Errno::EXDEV) => {
                self.failed(|path| Error::Mounted { path });
                return true;
            }
            Err(source) => {
                self.failed(|path| Error::Open { path, source });
                return true;
            }
        };
        let mut movable = true;
        self.each(&directory, |this, child, kind| {
            if !may_be_directory(&directory, child, kind) {
                *progress |= this.unlink(&directory, child);
                return;
            }
            if unlinkat(&directory, child, UnlinkatFlags::RemoveDir).is_ok() {
                *progress = true;
                return;
            }
            match this.move_up(&directory, child, top) {
                Ok(()) | Err(Errno::ENOENT) => *progress = true,
                Err(Errno::EXDEV) => movable = false,
                Err(Errno::EBUSY) => this.failed(|path| Error::Mounted { path }),
                Err(source) => this.failed(|path| Error::Move { path, source }),
            }
        });
        if !movable && nested < NESTED_MAX {
            return false;
        }
        if !movable {
            self.failed(|path| Error::Nested { path });
            return true;
        }
        // ENOTEMPTY: what this pass over it has missed is found by the next, if there was any progress.
        match unlinkat(top, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => *progress = true,
            Err(Errno::ENOTEMPTY) => {}
            Err(Errno::EBUSY) => self.failed(|path| Error::Mounted { path }),
            Err(source) => self.failed(|path| Error::Remove { path, source }),
        }
        true
    }

    fn move_up(&mut self, from: &OwnedFd, name: &CStr, top: &OwnedFd) -> Result<(), Errno> {
        for _ in 0..NAMES_MAX {
            self.name = self.name.wrapping_add(1);
            let moved = CString::new(format!(".removed-{:016x}", self.name)).map_err(|_| Errno::EINVAL)?;
            match renameat(from, name, top, moved.as_c_str()) {
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                other => return other,
            }
        }
        Err(Errno::EEXIST)
    }

    fn unlink(&mut self, directory: &OwnedFd, name: &CStr) -> bool {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => true,
            Err(Errno::ENOENT) => false,
            Err(Errno::EBUSY) => {
                self.failed(|path| Error::Mounted { path });
                false
            }
            Err(source) => {
                self.failed(|path| Error::Unlink { path, source });
                false
            }
        }
    }

    fn each(&mut self, directory: &OwnedFd, mut act: impl FnMut(&mut Self, &CStr, Option<Type>)) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = match Dir::openat(directory, c".", flags, Mode::empty()) {
            Ok(entries) => entries,
            Err(source) => return self.failed(|path| Error::Open { path, source }),
        };
        for entry in entries.iter() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => act(self, entry.file_name(), entry.file_type()),
                Err(source) => return self.failed(|path| Error::List { path, source }),
            }
        }
    }
}

fn open_directory(at: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    rooted::open_beneath(at.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

/// readdir(3): a file system may not say what an entry is.
fn may_be_directory(at: &OwnedFd, name: &CStr, kind: Option<Type>) -> bool {
    match kind {
        Some(kind) => kind == Type::Directory,
        None => fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR),
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    match File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Whoever has no /dev still has a process id; names that are taken are passed over anyway.
        Err(_) => u64::from(std::process::id()) << 32,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// In memory: these trees are large, and what is tested is no disk.
    fn tempdir() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("tempdir")
    }

    /// Nested directories named `d`, with a file in each; made by descriptors, as a path of this length cannot be opened.
    fn nest(top: &Path, levels: usize) {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o755);
        let mut directory = nix::fcntl::open(top, flags, Mode::empty()).expect("open");
        for _ in 0..levels {
            nix::sys::stat::mkdirat(&directory, c"d", mode).expect("mkdir");
            directory = nix::fcntl::openat(&directory, c"d", flags, Mode::empty()).expect("openat");
            nix::sys::stat::mknodat(&directory, c"file", SFlag::S_IFREG, mode, 0).expect("mknod");
        }
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_on_a_small_stack() {
        let outside = tempdir();
        let top = outside.path().join("top");
        fs::create_dir(&top).expect("mkdir");
        nest(&top, 20_000);
        let path = top.clone();
        let removed = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || remove(&path)).expect("spawn");
        removed.join().expect("no overflow").expect("remove");
        assert!(!top.exists());
    }

    #[test]
    fn wide_and_strangely_named_trees_are_removed() {
        let outside = tempdir();
        let top = outside.path().join("top");
        for name in ["..a", "a\nb", "-rf", ".removed-0000000000000001", "\u{fffd}", " "] {
            fs::create_dir_all(top.join(name).join("x/y/z")).expect("mkdir");
        }
        for number in 0..3000 {
            fs::write(top.join(number.to_string()), "").expect("write");
            fs::create_dir_all(top.join("wide").join(number.to_string()).join("deep")).expect("mkdir");
        }
        remove(&top).expect("remove");
        assert!(!top.exists());
    }

    #[test]
    fn symlinks_are_removed_and_never_followed() {
        let outside = tempdir();
        let kept = outside.path().join("kept");
        fs::create_dir_all(kept.join("inner")).expect("mkdir");
        let top = outside.path().join("top");
        fs::create_dir_all(top.join("a/b")).expect("mkdir");
        for link in ["one", "a/two", "a/b/three"] {
            symlink(&kept, top.join(link)).expect("symlink");
        }
        remove(&top).expect("remove");
        assert!(kept.join("inner").is_dir());
        symlink(&kept, &top).expect("symlink");
        remove(&top).expect("remove the link");
        assert!(kept.join("inner").is_dir());
        assert!(!top.is_symlink());
    }

    #[test]
    fn what_is_gone_is_removed_and_a_root_is_refused() {
        let outside = tempdir();
        remove(&outside.path().join("missing")).expect("missing");
        remove(&outside.path().join("missing/below")).expect("missing parent");
        assert!(matches!(remove(Path::new("/")), Err(Error::NoEntry { .. })));
        assert!(matches!(remove(Path::new("/tmp/..")), Err(Error::NoEntry { .. })));
    }

    #[test]
    fn few_descriptors_are_open_at_once() {
        let outside = tempdir();
        let top = outside.path().join("top");
        fs::create_dir(&top).expect("mkdir");
        nest(&top, 200);
        let before = fs::read_dir("/proc/self/fd").expect("list").count();
        remove(&top).expect("remove");
        assert_eq!(fs::read_dir("/proc/self/fd").expect("list").count(), before);
    }
}
