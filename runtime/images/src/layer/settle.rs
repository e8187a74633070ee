//! Looks up in the layers below what a layer's archive left open: owner and mode of directories it has no entry for (or the
//! upper one would hide the lower one's), and files that it only links to.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::time::TimeSpec;

use super::Error;
use super::metadata::{Metadata, is_overlay_xattr};
use super::rooted::{Root, path_in, remove_in, split};
use super::unpack::{Unpacked, is_kind};

/// `below` holds the directories of the layers below, topmost first.
pub(crate) fn settle(unpacked: &mut Unpacked, dir: &Path, below: &[PathBuf]) -> Result<(), Error> {
    if unpacked.implicit.is_empty() && unpacked.links.is_empty() {
        return Ok(());
    }
    let below: Vec<Root> = below.iter().map(|dir| Root::open(dir)).collect::<Result<_, _>>()?;
    let mut root = Root::open(dir)?;
    for (link, target) in std::mem::take(&mut unpacked.links) {
        let Some((source, stat)) = find(&below, &target).filter(|(_, stat)| is_kind(stat.st_mode, SFlag::S_IFREG))
        else {
            return Err(Error::entry(&link, "is a hard link to a file that no layer has"));
        };
        unpacked.bytes += copy(&mut root, &link, &source, &stat)?;
        unpacked.inodes += 1;
    }
    // Making way for a link may have made directories too.
    unpacked.implicit.append(&mut root.implicit);
    // Innermost first, for setting a directory's time must come after writing into it.
    for path in unpacked.implicit.iter().rev() {
        let Some((source, stat)) = find(&below, path).filter(|(_, stat)| is_kind(stat.st_mode, SFlag::S_IFDIR)) else {
            continue;
        };
        let metadata = metadata_of(path, &source, &stat)?;
        if path.is_empty() {
            metadata.apply_in(b"/", root.fd(), b".", false)?;
        } else {
            let (parent, name) = split(path);
            let parent = root.ensure_dir(parent)?;
            metadata.apply_in(path, parent.as_fd(), name, false)?;
        }
    }
    Ok(())
}

fn find(below: &[Root], path: &[u8]) -> Option<(OwnedFd, FileStat)> {
    below.iter().find_map(|root| {
        let fd = root.lookup(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        let stat = fstat(&fd).ok()?;
        Some((fd, stat))
    })
}

fn metadata_of(path: &[u8], source: &OwnedFd, stat: &FileStat) -> Result<Metadata, Error> {
    let failed = |error: io::Error| Error::write("read attributes of", path, error);
    // A descriptor opened with O_PATH has no attributes of its own; its link in /proc leads to the file.
    let file = path_in(source.as_fd(), b"");
    let mut xattrs = Vec::new();
    for name in xattr::list_deref(&file).map_err(failed)? {
        if !is_overlay_xattr(name.as_bytes())
            && let Some(value) = xattr::get_deref(&file, &name).map_err(failed)?
        {
            xattrs.push((name, value));
        }
    }
    Ok(Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        xattrs,
    })
}

fn copy(root: &mut Root, link: &[u8], source: &OwnedFd, stat: &FileStat) -> Result<u64, Error> {
    let failed = |error: io::Error| Error::write("copy from a layer below", link, error);
    let (parent, name) = split(link);
    let parent = root.ensure_dir(parent)?;
    remove_in(parent.as_fd(), name).map_err(failed)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let target = openat(&*parent, OsStr::from_bytes(name), flags, Mode::from_bits_truncate(0o600));
    let mut target = File::from(target.map_err(|errno| failed(errno.into()))?);
    let from = path_in(source.as_fd(), b"");
    let mut from = File::open(&from).map_err(failed)?;
    let size = io::copy(&mut from, &mut target).map_err(failed)?;
    metadata_of(link, source, stat)?.apply_to_file(link, target.as_fd())?;
    Ok(size)
}
