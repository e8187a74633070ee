//! Writes a layer's entries into its directory, whiteouts as overlayfs wants them: a removed name is a character device 0:0,
//! a directory that hides all below it carries `trusted.overlay.opaque=y`.
//! (OCI image specification, layer.md, "Whiteouts"; kernel, filesystems/overlayfs.rst.)

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use nix::unistd::{linkat, symlinkat};
use tar::{Archive, Entry, EntryType};

use super::Error;
use super::budget::{Budgeted, HEADER_BYTES_MAX};
use super::metadata::Metadata;
use super::rooted::{Root, normalize, path_in, remove_in, split, stat_in};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const COPY_BUFFER_BYTES: usize = 256 << 10;
/// PATH_MAX: an entry with a longer name would be out of every program's reach.
const PATH_BYTES_MAX: usize = 4096;
/// Directories are set right last, and links into other layers are made then, so their names are kept: about two million of
/// usual length. A layer that wants more is refused.
const REMEMBERED_BYTES_MAX: usize = 256 << 20;
const REMEMBERED_OVERHEAD_BYTES: usize = 100;
/// What a file takes on disk is rounded up to this.
const BLOCK_BYTES: u64 = 4096;

/// What a layer took, and what `settle` has to look up in the layers below.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories without an entry of their own; the root is the empty path.
    pub(super) implicit: BTreeSet<Vec<u8>>,
    /// Hard links whose target is not in this layer: link to target.
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Unpacks a plain tar stream and reads it to its very end, for the digest's sake.
pub(crate) fn unpack(stream: impl Read, dir: &Path) -> Result<Unpacked, Error> {
    let mut unpacker = Unpacker {
        root: Root::open(dir)?,
        done: Unpacked::default(),
        dir_times: BTreeMap::new(),
        remembered_bytes: 0,
        root_seen: false,
        buffer: vec![0; COPY_BUFFER_BYTES].into_boxed_slice(),
    };
    let (stream, budget) = Budgeted::new(stream);
    let mut archive = Archive::new(stream);
    let mut entries = archive.entries().map_err(Error::read)?;
    loop {
        budget.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(Error::read)?;
        budget.lift();
        unpacker.entry(&mut entry)?;
        // What an entry has that is not looked at must not count for the headers of the next.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(Error::read)?;
    }
    budget.lift();
    let mut rest = archive.into_inner();
    while rest.read(&mut unpacker.buffer).map_err(Error::read)? > 0 {}
    unpacker.finish()
}

struct Unpacker {
    root: Root,
    done: Unpacked,
    /// Applied last, innermost first: writing into a directory changes its time.
    dir_times: BTreeMap<Vec<u8>, Metadata>,
    /// What the names kept until the end take in memory.
    remembered_bytes: usize,
    root_seen: bool,
    buffer: Box<[u8]>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        if raw.len() > PATH_BYTES_MAX {
            return Err(Error::entry(&raw, "has a name that no container could open"));
        }
        if raw.contains(&0) {
            return Err(Error::entry(&raw, "has a NUL byte in its name"));
        }
        let path = normalize(&raw).ok_or_else(|| Error::entry(&raw, "leads out of the layer"))?;
        if path.is_empty() {
            return self.root_entry(kind, entry);
        }
        let (parent_path, name) = split(&path);
        let parent = self.root.ensure_dir(parent_path)?;
        let parent_fd = parent.as_fd();
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(&path, parent_fd, name);
        }
        match kind {
            EntryType::Directory => self.directory(&path, parent_fd, name, entry)?,
            EntryType::Link => return self.hard_link(&path, parent_fd, name, entry),
            EntryType::Symlink => {
                let target = entry.link_name_bytes();
                let target = target.ok_or_else(|| Error::entry(&path, "is a symbolic link to nothing"))?.into_owned();
                let metadata = Metadata::of(&path, entry)?;
                self.replacing(&path, parent_fd, name, |dir| {
                    symlinkat(OsStr::from_bytes(&target), dir, OsStr::from_bytes(name))
                })?;
                metadata.apply_in(&path, parent_fd, name, true)?;
            }
            EntryType::Fifo => self.node(&path, parent_fd, name, SFlag::S_IFIFO, entry)?,
            EntryType::Char => self.node(&path, parent_fd, name, SFlag::S_IFCHR, entry)?,
            EntryType::Block => self.node(&path, parent_fd, name, SFlag::S_IFBLK, entry)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(&path, parent_fd, name, entry)?;
            }
            _ => return Err(Error::entry(&path, "is of a kind that layers do not have")),
        }
        self.done.inodes += 1;
        Ok(())
    }

    fn root_entry<R: Read>(&mut self, kind: EntryType, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        if kind != EntryType::Directory {
            return Err(Error::entry(b"/", "is the root and must be a directory"));
        }
        let metadata = Metadata::of(b"/", entry)?;
        metadata.apply_in(b"/", self.root.fd(), b".", false)?;
        self.dir_times.insert(Vec::new(), metadata);
        self.root_seen = true;
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8], parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        if name == OPAQUE_MARKER {
            return set_opaque(path, parent, b"");
        }
        if name.starts_with(WHITEOUT_META_PREFIX) {
            // Bookkeeping of the aufs driver of old.
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::entry(path, "hides nothing that could be there"));
        }
        match mknodat(parent, OsStr::from_bytes(hidden), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
            Ok(()) => self.done.inodes += 1,
            // A whiteout hides what is below, never what this layer brings itself.
            Err(Errno::EEXIST) => {
                let stat = stat_in(parent, hidden).map_err(|errno| Error::write("look at", path, errno))?;
                if is_kind(stat.st_mode, SFlag::S_IFDIR) {
                    set_opaque(path, parent, hidden)?;
                }
            }
            Err(errno) => return Err(Error::write("create whiteout", path, errno)),
        }
        Ok(())
    }

    fn directory<R: Read>(
        &mut self,
        path: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &mut Entry<'_, R>,
    ) -> Result<(), Error> {
        let metadata = Metadata::of(path, entry)?;
        let os_name = OsStr::from_bytes(name);
        let mode = Mode::from_bits_truncate(0o755);
        match mkdirat(parent, os_name, mode) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                let stat = stat_in(parent, name).map_err(|errno| Error::write("look at", path, errno))?;
                if is_kind(stat.st_mode, SFlag::S_IFDIR) {
                    self.root.implicit.remove(path);
                } else {
                    let was_whiteout = is_kind(stat.st_mode, SFlag::S_IFCHR) && stat.st_rdev == 0;
                    self.replacing(path, parent, name, |dir| mkdirat(dir, os_name, mode))?;
                    if was_whiteout {
                        set_opaque(path, parent, name)?;
                    }
                }
            }
            Err(errno) => return Err(Error::write("create directory", path, errno)),
        }
        metadata.apply_in(path, parent, name, false)?;
        self.remember(path)?;
        self.dir_times.insert(path.to_owned(), metadata);
        self.done.bytes += BLOCK_BYTES;
        Ok(())
    }

    fn regular<R: Read>(
        &mut self,
        path: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &mut Entry<'_, R>,
    ) -> Result<(), Error> {
        let metadata = Metadata::of(path, entry)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = self.replacing(path, parent, name, |dir| openat(dir, OsStr::from_bytes(name), flags, mode))?;
        let mut file = File::from(fd);
        let mut size = 0;
        loop {
            let count = entry.read(&mut self.buffer).map_err(Error::read)?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count]).map_err(|error| Error::write("write", path, error))?;
            size += count as u64;
        }
        metadata.apply_to_file(path, file.as_fd())?;
        self.done.bytes += size.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        path: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry<'_, R>,
    ) -> Result<(), Error> {
        let target = entry.link_name_bytes().ok_or_else(|| Error::entry(path, "is a hard link to nothing"))?;
        let target = normalize(&target).filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| Error::entry(path, "is a hard link that leads out of the layer"))?;
        if target == path {
            return Ok(());
        }
        let (target_parent, target_name) = split(&target);
        let from = match self.root.lookup(target_parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(from) if stat_in(from.as_fd(), target_name).is_ok() => from,
            // The file may be in a layer below.
            _ => {
                self.remember(path)?;
                self.remember(&target)?;
                self.done.links.insert(path.to_owned(), target);
                return Ok(());
            }
        };
        self.replacing(path, parent, name, |dir| {
            linkat(&from, OsStr::from_bytes(target_name), dir, OsStr::from_bytes(name), AtFlags::empty())
        })
    }

    fn node<R: Read>(
        &mut self,
        path: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        kind: SFlag,
        entry: &mut Entry<'_, R>,
    ) -> Result<(), Error> {
        let number = |part: std::io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
        let device =
            makedev(number(entry.header().device_major()).into(), number(entry.header().device_minor()).into());
        let device = if kind == SFlag::S_IFIFO { 0 } else { device };
        let metadata = Metadata::of(path, entry)?;
        let mode = Mode::from_bits_truncate(0o600);
        self.replacing(path, parent, name, |dir| mknodat(dir, OsStr::from_bytes(name), kind, mode, device))?;
        metadata.apply_in(path, parent, name, false)
    }

    /// Counts a name that is kept until the layer's end.
    fn remember(&mut self, path: &[u8]) -> Result<(), Error> {
        self.remembered_bytes =
            self.remembered_bytes.saturating_add(path.len()).saturating_add(REMEMBERED_OVERHEAD_BYTES);
        if self.remembered_bytes > REMEMBERED_BYTES_MAX {
            return Err(Error::entry(path, "is one directory or link more than a layer may have"));
        }
        Ok(())
    }

    /// Creates a name, after removing what an earlier entry of this layer had there.
    fn replacing<T>(
        &mut self,
        path: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
        create: impl Fn(BorrowedFd<'_>) -> nix::Result<T>,
    ) -> Result<T, Error> {
        match create(parent) {
            Err(Errno::EEXIST) => {
                remove_in(parent, name).map_err(|error| Error::write("replace", path, error))?;
                self.root.forget();
                // Everything below begins with `path/`, and so stands together between that and `path0`.
                let (below, behind) = ([path, b"/"].concat(), [path, b"0"].concat());
                self.root.implicit.remove(path);
                self.dir_times.remove(path);
                let implicit: Vec<_> = self.root.implicit.range(below.clone()..behind.clone()).cloned().collect();
                for gone in implicit {
                    self.root.implicit.remove(&gone);
                }
                let timed: Vec<_> =
                    self.dir_times.range(below.clone()..behind.clone()).map(|(path, _)| path.clone()).collect();
                for gone in timed {
                    self.dir_times.remove(&gone);
                }
                self.done.links.remove(path);
                let linked: Vec<_> = self.done.links.range(below..behind).map(|(link, _)| link.clone()).collect();
                for gone in linked {
                    self.done.links.remove(&gone);
                }
                create(parent).map_err(|errno| Error::write("create", path, errno))
            }
            other => other.map_err(|errno| Error::write("create", path, errno)),
        }
    }

    fn finish(mut self) -> Result<Unpacked, Error> {
        for (path, metadata) in std::mem::take(&mut self.dir_times).iter().rev() {
            if path.is_empty() {
                metadata.apply_time_in(b"/", self.root.fd(), b".")?;
                continue;
            }
            let (parent, name) = split(path);
            let parent: Rc<_> = self.root.ensure_dir(parent)?;
            metadata.apply_time_in(path, parent.as_fd(), name)?;
        }
        let mut done = self.done;
        done.implicit = self.root.implicit;
        done.inodes += done.implicit.len() as u64;
        done.bytes += done.implicit.len() as u64 * BLOCK_BYTES;
        if !self.root_seen {
            done.implicit.insert(Vec::new());
        }
        Ok(done)
    }
}

fn set_opaque(path: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
    let target = path_in(dir, if name.is_empty() { b"." } else { name });
    xattr::set(&target, OPAQUE_XATTR, b"y").map_err(|error| Error::write("mark as opaque", path, error))
}

pub(super) fn is_kind(mode: u32, kind: SFlag) -> bool {
    mode & SFlag::S_IFMT.bits() == kind.bits()
}
