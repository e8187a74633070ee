//! The pipes of a process in a user namespace, given to its user from outside.
//!
//! A pipe belongs to who made it, who is nobody in there; `/dev/stdout`, opened again by a program of the image, is refused then, and the
//! process itself may not take what is not its own (user_namespaces(7)). Only pipes: a file of the host's stays the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use runtime_linux::{proc, process};

use crate::options::Stdio;

/// A map has at most 340 lines; user_namespaces(7).
const LINES_MAX: usize = 340;

/// Copies of those standard streams that are pipes, the caller's own where it is to inherit them.
pub(crate) fn pipes(stdio: &Stdio) -> Result<Vec<OwnedFd>, Errno> {
    let mut pipes = Vec::new();
    for (stream, number) in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().zip(0..) {
        let own = process::standard_stream(number);
        let Some(stream) = stream.as_ref().map(AsFd::as_fd).or(own) else { continue };
        if SFlag::from_bits_truncate(fstat(stream)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO {
            pipes.push(stream.try_clone_to_owned().map_err(|_| Errno::EMFILE)?);
        }
    }
    Ok(pipes)
}

/// Gives them to a user of the namespace that `pid` lives in.
pub(crate) fn give(pipes: &[OwnedFd], pid: i32, uid: u32, gid: u32) -> Result<(), Errno> {
    if pipes.is_empty() {
        return Ok(());
    }
    let read = |name: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        let text = proc::read_text(&path);
        text.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    let (Some(uid), Some(gid)) = (outside(&read("uid_map")?, uid), outside(&read("gid_map")?, gid)) else {
        return Ok(());
    };
    for pipe in pipes {
        match process::give(pipe, uid, Some(gid)) {
            // Not ours to give, as for a runtime without root's rights; its process works without.
            Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Who an id of a namespace is for us; `None` for one that is not mapped.
fn outside(map: &str, id: u32) -> Option<u32> {
    map.lines().take(LINES_MAX).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, to, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let offset = id.checked_sub(first).filter(|offset| *offset < count)?;
        to.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_maps() {
        let map = "         0     200000      65536\n     70000       1000          1\n";
        for (id, expect) in [
            (0, Some(200_000)),
            (65_535, Some(265_535)),
            (65_536, None),
            (70_000, Some(1000)),
            (70_001, None),
            (u32::MAX, None),
        ] {
            assert_eq!(outside(map, id), expect, "{id}");
        }
        assert_eq!(outside("0 4294967295 4294967295", 7), None);
        assert_eq!(outside("rubbish", 0), None);
    }
}
