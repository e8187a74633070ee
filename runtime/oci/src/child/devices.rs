//! /dev: nodes, symlinks, the terminal. Every path below the root is opened through it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use runtime_linux::mount::{self, Tree};
use runtime_linux::terminal::{self, Size};

use super::steps::take_terminal;
use super::{Child, Done, Held, Refusal, mounts};
use crate::plan::{DeviceNode, Step};

pub(super) fn execute(step: &Step, child: &mut Child<'_>, held: &mut Held) -> Done {
    match step {
        Step::Device(node) => device(node, child, held),
        Step::Link(path, target) => link(path, target, held),
        Step::Console { bind, columns, rows } => console(*bind, Size { columns: *columns, rows: *rows }, child, held),
        other => Err(Refusal::words(format!("{other} is not a step of /dev"))),
    }
}

/// An image's own /dev may be a symlink, and then its devices would be made elsewhere (CVE-2026-41579).
fn parent_of<'held>(path: &Path, held: &'held mut Held) -> Result<(BorrowedFd<'held>, PathBuf), Refusal> {
    let (directory, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name());
    if let Some(name) = name.filter(|_| held.directory.as_ref().is_some_and(|(open, _)| open == directory)) {
        let (_, open) = held.directory.as_ref().ok_or(Errno::ENOENT)?;
        return Ok((open.as_fd(), PathBuf::from(name)));
    }
    let root = held.root.as_ref().ok_or(Errno::ENOENT)?;
    let (open, name) = if path.starts_with("/dev") {
        root.ensure_plain_parent(path).map_err(|errno| match errno {
            Errno::ELOOP | Errno::ENOTDIR => {
                Refusal::said(errno, "its directory must be an ordinary one, without symlinks")
            }
            errno => errno.into(),
        })?
    } else {
        root.ensure_parent(path)?
    };
    let open: &OwnedFd = &held.directory.insert((directory.to_owned(), open)).1;
    Ok((open.as_fd(), name))
}

fn device(node: &DeviceNode, child: &mut Child<'_>, held: &mut Held) -> Done {
    if let Some(source) = node.bind {
        let is_open = child.sources.get(source).is_some_and(Option::is_some);
        let tree = mounts::take(source, child)?;
        if !is_open {
            crate::devices::restrict(&tree)?;
        }
        return attach_device(&tree, node, held);
    }
    let (parent, name) = parent_of(&node.path, held)?;
    let (kind, number) = kind_and_number(node);
    // mknod(2) follows no symlink at the last step; the mode is exact since the umask is 0 by then.
    match mknodat(parent, name.as_path(), kind, Mode::from_bits_truncate(node.mode), number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let found = fstatat(parent, name.as_path(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            // What the image put there must be just that device, or it would pass for it.
            if !is_device(&found, node) {
                return Err(Refusal::said(Errno::EEXIST, "something else is there"));
            }
            return Ok(());
        }
        // A user namespace has no nodes of its own, and our caller may be in one, as a podman of a user is; user_namespaces(7).
        Err(Errno::EPERM) => return host_device(node, held),
        Err(errno) => return Err(errno.into()),
    }
    if node.uid != 0 || node.gid != 0 {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        nix::unistd::fchownat(parent, name.as_path(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// What the host has at the same path.
fn host_device(node: &DeviceNode, held: &mut Held) -> Done {
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, &node.path, Tree::Clone).map_err(|errno| {
        Refusal::said(Errno::EPERM, format!("and the host's own cannot be bound: {}", errno.desc()))
    })?;
    crate::devices::restrict(&tree)?;
    attach_device(&tree, node, held)
}

fn attach_device(tree: &OwnedFd, node: &DeviceNode, held: &mut Held) -> Done {
    // The host may have anything at that path.
    if !is_device(&fstat(tree)?, node) {
        return Err(Refusal::said(Errno::ENODEV, "the host has something else there"));
    }
    parent_of(&node.path, held)?;
    let root = held.root.as_ref().ok_or(Errno::ENOENT)?;
    let target = root.ensure_file_nofollow(&node.path, Mode::from_bits_truncate(0o666))?;
    Ok(mount::attach(tree, &target)?)
}

fn kind_and_number(node: &DeviceNode) -> (SFlag, u64) {
    match node.letter {
        'b' => (SFlag::S_IFBLK, makedev(node.major, node.minor)),
        'c' => (SFlag::S_IFCHR, makedev(node.major, node.minor)),
        _ => (SFlag::S_IFIFO, 0),
    }
}

fn is_device(found: &FileStat, node: &DeviceNode) -> bool {
    let (kind, number) = kind_and_number(node);
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == kind && found.st_rdev == number
}

fn link(path: &Path, target: &Path, held: &mut Held) -> Done {
    let (parent, name) = parent_of(path, held)?;
    match nix::unistd::symlinkat(target, parent, name.as_path()) {
        Err(Errno::EEXIST) => {}
        other => return Ok(other?),
    }
    if nix::fcntl::readlinkat(parent, name.as_path()).is_ok_and(|found| Path::new(&found) == target) {
        return Ok(());
    }
    // An image may bring its own; only the multiplexer must be the container's own devpts's, or terminals would be the host's.
    if path != Path::new("/dev/ptmx") {
        return Ok(());
    }
    nix::unistd::unlinkat(parent, name.as_path(), UnlinkatFlags::NoRemoveDir)?;
    Ok(nix::unistd::symlinkat(target, parent, name.as_path())?)
}

fn console(bind: bool, size: Size, child: &Child<'_>, held: &mut Held) -> Done {
    let root = held.root.as_ref().ok_or(Errno::ENOENT)?;
    // By the directory, so that nothing is opened before it is known to be a devpts (CVE-2025-52565).
    let said = |errno: Errno| Refusal::said(errno, "/dev/pts/ptmx");
    let pts = root.open(Path::new("/dev/pts"), OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(said)?;
    let ptmx = terminal::multiplexer(&pts).map_err(said)?;
    let slave = take_terminal(ptmx, size, child)?;
    if bind {
        parent_of(Path::new("/dev/console"), held)?;
        let root = held.root.as_ref().ok_or(Errno::ENOENT)?;
        let target = root.ensure_file_nofollow(Path::new("/dev/console"), Mode::from_bits_truncate(0o600))?;
        let tree = mount::open_tree(slave.as_fd(), Path::new(""), Tree::Clone)?;
        mount::attach(&tree, &target)?;
    }
    Ok(())
}

/// A detached copy of the host's /dev/null, verified to be it (CVE-2025-31133).
pub(super) fn host_null() -> Result<OwnedFd, Errno> {
    let tree = mount::open_tree(nix::fcntl::AT_FDCWD, Path::new("/dev/null"), Tree::Clone)?;
    let status = fstat(&tree)?;
    let is_device = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if is_device && status.st_rdev == makedev(1, 3) { Ok(tree) } else { Err(Errno::ENODEV) }
}
