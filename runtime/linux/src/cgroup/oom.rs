//! Out of memory: how often, and a descriptor that tells.

use super::hierarchy::Version;
use super::{Cgroup, Error, file};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// A source of out-of-memory events for epoll. After each wake call [`OomWatch::kills`], or the descriptor stays ready.
#[derive(Debug)]
pub struct OomWatch {
    source: Source,
    path: PathBuf,
}

#[derive(Debug)]
enum Source {
    /// `memory.events`: EPOLLPRI after each change.
    Unified(File),
    /// An eventfd fed by `memory.oom_control`: EPOLLIN, also once when the cgroup is removed.
    Legacy(EventFd),
}

impl OomWatch {
    pub(super) fn open(cgroup: &Cgroup) -> Result<Self, Error> {
        let Some((place, version)) = cgroup.hierarchy.locate("memory") else {
            return Err(Error::NoController {
                field: "watching for out of memory".to_owned(),
                controller: "memory".to_owned(),
                path: cgroup.main_directory(),
            });
        };
        let directory = place.join(&cgroup.path);
        let path = directory.join(counter_file(version));
        let file = File::open(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let source = match version {
            Version::Unified => Source::Unified(file),
            Version::Legacy => {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                let event = EventFd::from_value_and_flags(0, flags)
                    .map_err(|source| Error::Wait { path: path.clone(), source })?;
                let value = format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd());
                file::write(&directory.join("cgroup.event_control"), &value)?;
                Source::Legacy(event)
            }
        };
        Ok(Self { source, path })
    }

    /// Whether to wait for EPOLLPRI (v2) or EPOLLIN (v1).
    #[must_use]
    pub fn is_priority(&self) -> bool {
        matches!(self.source, Source::Unified(_))
    }

    /// Takes note of the event and returns how many processes have been killed so far; `None` when the cgroup is gone.
    pub fn kills(&self) -> Result<Option<u64>, Error> {
        use std::os::unix::fs::FileExt;
        let text = match &self.source {
            Source::Unified(file) => {
                let mut buffer = [0; 512];
                match file.read_at(&mut buffer, 0) {
                    Ok(count) => Some(String::from_utf8_lossy(&buffer[..count]).into_owned()),
                    Err(error) if file::is_gone(&error) => None,
                    Err(source) => return Err(Error::Read { path: self.path.clone(), source }),
                }
            }
            Source::Legacy(event) => {
                // EAGAIN: nothing new.
                let _count = event.read();
                file::read_if_present(&self.path)?
            }
        };
        Ok(text.map(|text| file::keyed(&text, "oom_kill").unwrap_or(0)))
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Unified(file) => file.as_fd(),
            Source::Legacy(event) => event.as_fd(),
        }
    }
}

fn counter_file(version: Version) -> &'static str {
    match version {
        Version::Unified => "memory.events",
        Version::Legacy => "memory.oom_control",
    }
}

pub(super) fn kills(cgroup: &Cgroup) -> Result<u64, Error> {
    let Some((place, version)) = cgroup.hierarchy.locate("memory") else { return Ok(0) };
    let text = file::read_if_present(&place.join(&cgroup.path).join(counter_file(version)))?;
    Ok(text.and_then(|text| file::keyed(&text, "oom_kill")).unwrap_or(0))
}
