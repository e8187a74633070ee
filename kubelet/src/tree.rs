//! Measures trees that containers made: by descriptors, without recursion, whatever the depth. Changes nothing; removal is
//! `runtime_linux::tree`'s. Invariant: two directories are open at a time, no link is followed, no other file system entered, and
//! no more than `ENTRIES_MAX` entries looked at.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

/// What lies beyond is not counted. Ten seconds later it is tried again.
const ENTRIES_MAX: u64 = 1_000_000;
/// A tree that is moved about while it is measured is begun again this often.
const TRIES: u32 = 3;

/// What a tree takes on its own file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub files: u64,
}

impl Size {
    #[allow(clippy::useless_conversion, reason = "the count of links is narrower on other architectures")]
    fn add(&mut self, stat: &FileStat) {
        // stat(2): blocks are of 512 bytes, whatever the file system's are. A hard link counts its share.
        let links = if is_dir(stat) { 1 } else { u64::try_from(stat.st_nlink).unwrap_or(1).max(1) };
        let own = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) / links;
        self.bytes = self.bytes.saturating_add(own);
        self.files = self.files.saturating_add(1);
    }
}

/// A directory on the way down, and what of it has still to be entered.
struct Level {
    place: (u64, u64),
    below: Vec<CString>,
}

/// The size of the tree at `path`; nothing for what is not there. Blocking.
#[must_use]
pub fn measure(path: &Path) -> Size {
    let mut most = Size::default();
    for _ in 0..TRIES {
        let (size, is_whole) = walk(path, ENTRIES_MAX);
        if size.bytes >= most.bytes {
            most = size;
        }
        if is_whole {
            break;
        }
    }
    most
}

fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn place(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

const FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// True if the tree stayed as it was on the way, as far as one could see.
fn walk(path: &Path, entries_max: u64) -> (Size, bool) {
    let mut size = Size::default();
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(root) = open(path, flags, Mode::empty()).and_then(|fd| fstat(&fd)) else { return (size, true) };
    size.add(&root);
    if !is_dir(&root) {
        return (size, true);
    }
    let Ok(mut current) = open(path, FLAGS, Mode::empty()) else { return (size, true) };
    let mut left = entries_max;
    let Ok(first) = enter(&current, root.st_dev, &mut size, &mut left) else { return (size, true) };
    let mut levels = vec![first];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.pop() {
            // What has gone meanwhile, or has become something else, counts no more.
            let Ok(next) = openat(&current, name.as_c_str(), FLAGS, Mode::empty()) else { continue };
            let Ok(level) = enter(&next, root.st_dev, &mut size, &mut left) else { continue };
            levels.push(level);
            current = next;
            continue;
        }
        levels.pop();
        let Some(above) = levels.last() else { break };
        match openat(&current, c"..", FLAGS, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, fd))) {
            Ok((stat, fd)) if place(&stat) == above.place => current = fd,
            // Somebody moved it: the way back leads elsewhere.
            _ => return (size, false),
        }
    }
    if left == 0 {
        tracing::warn!(path = %path.display(), entries_max, "tree measured in part: it has too many entries");
    }
    (size, true)
}

/// Counts the entries of a directory, and notes its directories.
fn enter(dir: &OwnedFd, device: u64, size: &mut Size, left: &mut u64) -> Result<Level, Errno> {
    let here = fstat(dir)?;
    if here.st_dev != device {
        return Err(Errno::EXDEV);
    }
    let mut below = Vec::new();
    let mut list = Dir::from_fd(dir.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?)?;
    for entry in list.iter() {
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if *left == 0 {
            break;
        }
        *left -= 1;
        let Ok(stat) = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        if stat.st_dev != device {
            continue;
        }
        size.add(&stat);
        if is_dir(&stat) {
            below.push(name.to_owned());
        }
    }
    Ok(Level { place: place(&here), below })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::mkdirat;

    use super::*;

    #[test]
    fn trees_are_measured_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.path().join("below/file"), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let size = measure(dir.path());
        assert!((100_000..200_000).contains(&size.bytes), "{size:?}");
        assert_eq!(size.files, 5);
        assert_eq!(measure(&dir.path().join("none")), Size::default());
        assert_eq!(measure(&dir.path().join("link")).files, 1, "a link is not followed at the root either");
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors() {
        const DEPTH: u64 = 15_000;
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(dir.path(), FLAGS, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", FLAGS, Mode::empty()).unwrap();
        }
        // A test's thread has 2 MiB of stack, a small fraction of what a frame per level would take with its buffers.
        assert_eq!(measure(dir.path()).files, DEPTH + 1);
        assert_eq!(walk(dir.path(), 100).0.files, 101, "no more than the budget");
        runtime_linux::tree::remove(dir.path()).unwrap();
    }
}
