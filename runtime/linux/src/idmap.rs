//! Id maps: writing a process's, and a user namespace that carries maps for an idmapped mount.

use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::clone::{Cloned, clone, exit_now};
use crate::local_socket;
use crate::namespace::Kind;
use crate::pidfd;
use crate::proc::Proc;

/// `length` ids from `inside` on are the ids from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// The maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

/// Whether processes of the new namespace may call setgroups(2); an unprivileged writer of a gid map must deny it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setgroups {
    Allow,
    Deny,
}

fn lines(ranges: &[Range]) -> String {
    let mut text = String::new();
    for range in ranges {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{} {} {}", range.inside, range.outside, range.length);
    }
    text
}

/// Writes the maps of `pid`, a child in a new user namespace that has none yet.
pub fn write(proc: &Proc, pid: i32, maps: &Maps, setgroups: Setgroups) -> Result<(), Errno> {
    let file = |name: &str| PathBuf::from(pid.to_string()).join(name);
    proc.write(file("uid_map"), lines(&maps.uids).as_bytes())?;
    if setgroups == Setgroups::Deny {
        proc.write(file("setgroups"), b"deny")?;
    }
    proc.write(file("gid_map"), lines(&maps.gids).as_bytes())
}

/// A user namespace of these maps that no process lives in; for `mount_setattr(MOUNT_ATTR_IDMAP)`.
pub fn user_namespace(maps: &Maps) -> Result<OwnedFd, Errno> {
    let (ours, theirs) = local_socket::pair()?;
    match clone(Kind::User.flag(), None)? {
        Cloned::Child => {
            drop(ours);
            // Stays until the parent has its descriptor, or is gone.
            let _end = nix::unistd::read(&theirs, &mut [0; 1]);
            exit_now(0)
        }
        Cloned::Parent { pid, pidfd: child } => {
            drop(theirs);
            let result = Proc::host().and_then(|proc| {
                write(&proc, pid, maps, Setgroups::Allow)?;
                // A namespace file is reached through a magic link, so not through Proc; `pid` is our own unreaped child.
                let path = format!("/proc/{pid}/ns/user");
                nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
            });
            drop(ours);
            pidfd::wait(&child)?;
            result
        }
    }
}

/// Whether this process's user namespace is the first one, where ids mean what they say; user_namespaces(7), "/proc/PID/uid_map".
pub fn is_initial() -> bool {
    let map = crate::proc::read_text(std::path::Path::new("/proc/self/uid_map")).unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_carries_its_maps() {
        let range = Range { inside: 0, outside: 100_000, length: 65_536 };
        let maps = Maps { uids: vec![range], gids: vec![range] };
        let namespace = user_namespace(&maps).expect("namespace");
        let own = crate::namespace::open_path(std::path::Path::new("/proc/self/ns/user")).expect("own");
        assert!(!crate::namespace::same(namespace, own).expect("same"));
    }

    #[test]
    fn lines_are_the_kernels() {
        let ranges = [Range { inside: 0, outside: 7, length: 1 }, Range { inside: 1, outside: 100, length: 2 }];
        assert_eq!(lines(&ranges), "0 7 1\n1 100 2\n");
    }
}
