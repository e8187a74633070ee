//! The host's own procfs and sysfs, where a root changes without `pivot_root` and they would stay in the mount namespace.
//!
//! A whole one that nothing covers is what the kernel looks for before it lets a user namespace mount one of its own, without any mask
//! (mount_namespaces(7), "Restrictions on mount namespaces"): inside the container, anybody could. Invariant: afterwards the only ones
//! in the namespace are the container's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub(super) fn take_away_outside(root: &Path) -> Result<(), Errno> {
    let table = crate::proc::read_text(Path::new("/proc/self/mountinfo"))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // The last was mounted on top.
    whole(&table, root).iter().rev().try_for_each(|path| take_away(path))
}

/// Where a whole procfs or sysfs is mounted outside of `root`; proc_pid_mountinfo(5).
fn whole(table: &str, root: &Path) -> Vec<PathBuf> {
    let view = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (part, place) = (fields.next()?, fields.next()?);
        let is_view = part == "/" && matches!(right.split(' ').next()?, "proc" | "sysfs");
        is_view.then(|| unescape(place)).filter(|path| !path.starts_with(root))
    };
    table.lines().filter_map(view).collect()
}

/// proc_pid_mountinfo(5): space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &str) -> PathBuf {
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
            "25 27 0:21 / /b/root/proc rw - proc proc rw\n",
            "26 27 0:21 / /odd\\040place rw shared:1 - proc proc rw\n",
            "27 1 8:1 / / rw - ext4 /dev/vda rw\n",
        );
        assert_eq!(whole(table, Path::new("/b/root")), ["/proc", "/sys", "/odd place"].map(PathBuf::from));
        assert_eq!(unescape("a\\134b\\01"), Path::new("a\\b\\01"));
    }
}
