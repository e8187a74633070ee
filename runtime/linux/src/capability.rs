//! Capabilities: the five sets as masks, changed with as few calls as the kernel allows.
//!
//! Names and numbers come from `caps`; its one-call-per-capability setters do not serve here (41 calls a start).

use std::str::FromStr;

use nix::errno::Errno;

use crate::syscall::check;

/// A set of capabilities; bit n is capability number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    pub const EMPTY: Self = Self(0);

    pub fn insert(&mut self, number: u8) {
        self.0 |= 1u64.checked_shl(u32::from(number)).unwrap_or(0);
    }

    pub fn contains(self, number: u8) -> bool {
        1u64.checked_shl(u32::from(number)).is_some_and(|bit| self.0 & bit != 0)
    }

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn numbers(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |number| self.contains(*number))
    }

    fn halves(self) -> (u32, u32) {
        let low = u32::try_from(self.0 & 0xffff_ffff).unwrap_or(0);
        (low, u32::try_from(self.0 >> 32).unwrap_or(0))
    }
}

/// The kernel's number of `CAP_NAME`, any case, with or without the prefix.
pub fn number(name: &str) -> Option<u8> {
    caps::Capability::from_str(&caps::to_canonical(name)).ok().map(|capability| capability.index())
}

/// The names of all capabilities known here, in the kernel's order.
pub fn names() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_by_key(|capability| capability.index());
    all.into_iter().map(|capability| capability.to_string()).collect()
}

/// The five sets of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: Set,
    pub effective: Set,
    pub inheritable: Set,
    pub permitted: Set,
    pub ambient: Set,
}

/// The last capability that this kernel knows.
pub fn last() -> u8 {
    (0..64).rev().find(|number| in_bounding(*number).is_ok()).unwrap_or(40)
}

fn in_bounding(number: u8) -> Result<bool, Errno> {
    // SAFETY: PR_CAPBSET_READ takes one integer.
    let answer = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) };
    Ok(check(libc::c_long::from(answer))? == 1)
}

/// Drops from the bounding set all that `keep` does not hold; needs CAP_SETPCAP where there is something to drop.
pub fn limit_bounding(keep: Set) -> Result<(), Errno> {
    for number in (0..64).filter(|number| !keep.contains(*number)) {
        // SAFETY: PR_CAPBSET_DROP takes one integer.
        let answer = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match check(libc::c_long::from(answer)) {
            Ok(_) => {}
            // PR_CAPBSET_DROP(2const): beyond the last capability that this kernel knows.
            Err(Errno::EINVAL) => return Ok(()),
            // Who may not drop may lack it already.
            Err(Errno::EPERM) => match in_bounding(number) {
                Ok(false) => {}
                Ok(true) => return Err(Errno::EPERM),
                Err(_) => return Ok(()),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3: two words a set.
const VERSION_3: u32 = 0x2008_0522;

/// Sets the effective, permitted and inheritable sets of this process.
pub fn set(effective: Set, permitted: Set, inheritable: Set) -> Result<(), Errno> {
    let header = Header { version: VERSION_3, pid: 0 };
    let ((e0, e1), (p0, p1), (i0, i1)) = (effective.halves(), permitted.halves(), inheritable.halves());
    let data = [
        Data { effective: e0, permitted: p0, inheritable: i0 },
        Data { effective: e1, permitted: p1, inheritable: i1 },
    ];
    // SAFETY: version 3 reads one header and two data words, both of the kernel's layout.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// The effective and permitted sets of this process.
pub fn current() -> Result<(Set, Set), Errno> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 writes two data words.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| Set(u64::from(low) | u64::from(high) << 32);
    Ok((join(data[0].effective, data[1].effective), join(data[0].permitted, data[1].permitted)))
}

/// Replaces the ambient set; each must be permitted and inheritable by now.
pub fn set_ambient(ambient: Set) -> Result<(), Errno> {
    let change = |operation: libc::c_int, number: u8| {
        let operation = libc::c_ulong::try_from(operation).map_err(|_| Errno::EINVAL)?;
        // SAFETY: PR_CAP_AMBIENT takes integers.
        let answer = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, libc::c_ulong::from(number), 0, 0) };
        check(libc::c_long::from(answer))
    };
    change(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for number in ambient.numbers() {
        change(libc::PR_CAP_AMBIENT_RAISE, number)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_NONSENSE"), None);
        assert_eq!(names().len(), 41);
    }

    #[test]
    fn sets_are_masks() {
        let mut set = Set::EMPTY;
        set.insert(0);
        set.insert(40);
        set.insert(200);
        assert!(set.contains(40) && !set.contains(39) && !set.contains(200));
        assert_eq!(set.halves(), (1, 1 << 8));
    }
}
