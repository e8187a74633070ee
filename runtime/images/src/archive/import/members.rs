//! The members of an archive by name: files of a directory, or ranges of a tar.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tar::EntryType;

use super::super::Error;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::{Budgeted, HEADER_BYTES_MAX, decompressed};

/// Links among members (old docker-archives share layers so) are followed this often.
const LINKS_MAX: u32 = 8;
/// Images have tens of members; more than this is no archive of images.
const MEMBERS_MAX: usize = 100_000;
const NAME_BYTES_MAX: usize = 4096;

pub(super) struct Members {
    shown: String,
    place: Place,
}

enum Place {
    Directory(File),
    Tar { file: PathBuf, members: HashMap<String, Member>, _spool: Option<Spool> },
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// A compressed archive laid out flat, gone when no longer read.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        // Swept at the next start otherwise.
        let _ = fs::remove_file(&self.0);
    }
}

impl Members {
    /// `spool` is where a compressed archive may be laid out.
    pub(super) fn open(path: &Path, spool: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let failed = |source: io::Error| Error::Read { path: shown.clone(), source: Arc::new(source) };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_dir() {
            return Ok(Self { shown, place: Place::Directory(file) });
        }
        let mut start = [0; 4];
        let have = if meta.is_file() { (&file).read(&mut start).map_err(failed)? } else { 0 };
        // A pipe cannot be read twice.
        let flat = meta.is_file() && !matches!(start, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]);
        let (file, _spool) = if flat && have == start.len() {
            (path.to_owned(), None)
        } else {
            let source = if meta.is_file() { File::open(path).map_err(failed)? } else { file };
            let guard = Spool(spool.to_owned());
            let mut out = File::create(spool).map_err(failed)?;
            io::copy(&mut decompressed(source).map_err(failed)?, &mut out).map_err(|source| {
                if crate::error::is_no_space(&source) {
                    Error::Write { path: spool.display().to_string(), source: Arc::new(source) }
                } else {
                    failed(source)
                }
            })?;
            (spool.to_owned(), Some(guard))
        };
        let members =
            scan(&file).map_err(|error| Error::NotAnArchive { path: shown.clone(), reason: error.to_string() })?;
        Ok(Self { shown, place: Place::Tar { file, members, _spool } })
    }

    pub(super) fn shown(&self) -> String {
        self.shown.clone()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.open_member(name).is_ok()
    }

    pub(super) fn reader(&self, name: &str) -> Result<Box<dyn Read + Send>, Error> {
        self.open_member(name).map(|(reader, _)| reader)
    }

    /// A whole small member.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let (mut reader, size) = self.open_member(name)?;
        if size > limit {
            let reason = format!("it has {size} bytes, more than {limit} are not taken");
            return Err(Error::Malformed { path: self.shown(), member: name.to_owned(), reason });
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    /// The first bytes, to tell a compression by.
    pub(super) fn start(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.reader(name)?.take(4).read_to_end(&mut bytes).map_err(|source| self.failed(source))?;
        Ok(bytes)
    }

    pub(super) fn digest(&self, name: &str) -> Result<(Digest, u64), Error> {
        let (mut reader, size) = self.open_member(name)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = reader.read(&mut buffer).map_err(|source| self.failed(source))?;
            if count == 0 {
                return Ok((hasher.finish(), size));
            }
            hasher.update(&buffer[..count]);
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Read { path: self.shown(), source: Arc::new(source) }
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingMember { path: self.shown(), member: name.to_owned() }
    }

    fn open_member(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), Error> {
        match &self.place {
            Place::Directory(dir) => {
                let how = OpenHow::new()
                    .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
                    .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                let file = File::from(openat2(dir, name, how).map_err(|_| self.missing(name))?);
                let meta = file.metadata().map_err(|source| self.failed(source))?;
                if !meta.is_file() {
                    return Err(self.missing(name));
                }
                Ok((Box::new(file), meta.len()))
            }
            Place::Tar { file, members, .. } => {
                let mut wanted = clean(name);
                for _ in 0..LINKS_MAX {
                    match members.get(&wanted) {
                        None => break,
                        Some(Member::Link(target)) => wanted.clone_from(target),
                        Some(&Member::File { offset, size }) => {
                            let mut file = File::open(file).map_err(|source| self.failed(source))?;
                            file.seek(SeekFrom::Start(offset)).map_err(|source| self.failed(source))?;
                            return Ok((Box::new(file.take(size)), size));
                        }
                    }
                }
                Err(self.missing(name))
            }
        }
    }
}

fn scan(path: &Path) -> io::Result<HashMap<String, Member>> {
    let (stream, budget) = Budgeted::new(BufReader::with_capacity(64 << 10, File::open(path)?));
    let mut archive = tar::Archive::new(stream);
    let mut members = HashMap::new();
    let mut entries = archive.entries_with_seek()?;
    loop {
        // What lies between two entries is passed over by seeking, so all that is read are headers.
        budget.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        if members.len() >= MEMBERS_MAX {
            return Err(io::Error::other(format!("it has more than {MEMBERS_MAX} members")));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.len() > NAME_BYTES_MAX {
            return Err(io::Error::other(format!("a member's name has {} bytes", name.len())));
        }
        let link = |name: &str, relative: bool| {
            let target = entry
                .link_name()
                .ok()
                .flatten()
                .map(|target| String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned());
            let target = target.unwrap_or_default();
            match name.rsplit_once('/').filter(|_| relative && !target.starts_with('/')) {
                Some((dir, _)) => clean(&format!("{dir}/{target}")),
                None => clean(&target),
            }
        };
        let member = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                Member::File { offset: entry.raw_file_position(), size: entry.size() }
            }
            EntryType::Symlink => Member::Link(link(&name, true)),
            EntryType::Link => Member::Link(link(&name, false)),
            _ => continue,
        };
        members.insert(clean(&name), member);
    }
    Ok(members)
}

/// Names are keys here, never paths on disk.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
