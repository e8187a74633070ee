//! The host's own procfs and sysfs, where a root changes without `pivot_root` and they would stay in the mount namespace.
//!
//! A whole one that nothing covers is what the kernel looks for before it lets a user namespace mount one of its own, without any mask
//! (mount_namespaces(7), "Restrictions on mount namespaces"): inside the container, anybody could. Invariant: afterwards the only ones
//! in the namespace are the container's.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// All but what lies in the tree of mounts of `root`, the mount that the descriptor is in.
pub(super) fn take_away_outside(root: &impl AsFd) -> Result<(), Errno> {
    let read = |path: &str| {
        crate::proc::read_text(Path::new(path))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    };
    let about = read(&format!("/proc/self/fdinfo/{}", root.as_fd().as_raw_fd()))?;
    let root = mount_id(&about).ok_or(Errno::ENOSYS)?;
    // The last was mounted on top.
    whole(&read("/proc/self/mountinfo")?, root).iter().rev().try_for_each(|path| take_away(path))
}

/// proc_pid_fdinfo(5).
fn mount_id(about: &str) -> Option<u32> {
    about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Where a whole procfs or sysfs is mounted that has the mount `root` not above it; proc_pid_mountinfo(5). By numbers: a root that lies
/// over the old one has the same paths below it.
fn whole(table: &str, root: u32) -> Vec<PathBuf> {
    let mut parents: HashMap<u32, u32> = HashMap::new();
    let mut views = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = left.split(' ').collect();
        let [id, parent, _, part, place, ..] = fields[..] else { continue };
        let (Ok(id), Ok(parent)) = (id.parse(), parent.parse()) else { continue };
        parents.insert(id, parent);
        if part == "/" && right.split(' ').next().is_some_and(|kind| matches!(kind, "proc" | "sysfs")) {
            views.push((id, unescape(place)));
        }
    }
    let is_inside = |id: &u32| {
        // No chain is longer than the table; the root of all is its own parent, or has one that is not there.
        let chain = std::iter::successors(Some(*id), |id| parents.get(id).copied());
        chain.take(parents.len() + 1).any(|id| id == root)
    };
    views.into_iter().filter(|(id, _)| !is_inside(id)).map(|(_, path)| path).collect()
}

/// proc_pid_mountinfo(5): space, tab, newline and backslash are written as a backslash and three octal digits.
pub fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

fn take_away(path: &Path) -> Result<(), Errno> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // One that came with a user namespace is locked, but can be covered.
        Err(Errno::EINVAL | Errno::EPERM) => {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("nr_inodes=1"))
        }
        // Below another that is gone already.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_the_kernel_are_found() {
        let table = concat!(
            "22 27 0:21 / /proc rw - proc proc rw\n",
            "23 27 0:22 / /sys rw - sysfs sysfs rw\n",
            "24 22 0:21 /sys /proc/sys ro - proc proc rw\n",
            "25 40 0:21 / /b/root/proc rw - proc proc rw\n",
            "28 41 0:21 / /proc rw - proc proc rw\n",
            "26 27 0:21 / /odd\\040place rw shared:1 - proc proc rw\n",
            "27 1 8:1 / / rw - ext4 /dev/vda rw\n",
            "40 27 8:1 /b/root / rw - ext4 /dev/vda rw\n",
            "41 40 0:50 / / rw - tmpfs tmpfs rw\n",
        );
        // One of the same path lies in the new root, which is over the old one.
        assert_eq!(whole(table, 40), ["/proc", "/sys", "/odd place"].map(PathBuf::from));
        assert_eq!(whole(table, 41).len(), 4);
        assert_eq!(mount_id("pos:\t0\nflags:\t012100000\nmnt_id:\t40\nino:\t2\n"), Some(40));
        assert_eq!(unescape("a\\134b\\01"), Path::new("a\\b\\01"));
    }
}
