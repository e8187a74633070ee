//! Resource limits (`prlimit64(2)`).

use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::syscall::check;

/// The soft limit of descriptors that this process came with; `RAISED_NOT` where it still has it.
static DESCRIPTORS_BEFORE: AtomicU64 = AtomicU64::new(RAISED_NOT);
/// No soft limit has this value: the kernel caps it far below (`fs.nr_open`).
const RAISED_NOT: u64 = u64::MAX;

/// asm-generic/resource.h: the place in the list is the number. (mips and sparc differ and are not served.)
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// RLIMIT_NOFILE.
const DESCRIPTORS: Resource = Resource(7);

/// One of the kernel's sixteen, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource(u32);

impl Resource {
    /// By the name `RLIMIT_...`.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, number)| Self(number))
    }
}

#[repr(C)]
struct Limit {
    soft: u64,
    hard: u64,
}

/// Sets both limits of this process; `u64::MAX` is no limit.
pub fn set(resource: Resource, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = Limit { soft, hard };
    let old = std::ptr::null_mut::<Limit>();
    // SAFETY: `limit` has the layout of rlimit64 and outlives the call; a null old limit is allowed.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource.0, &raw const limit, old) })?;
    Ok(())
}

fn get(resource: Resource) -> Result<Limit, Errno> {
    let mut limit = Limit { soft: 0, hard: 0 };
    let new = std::ptr::null::<Limit>();
    // SAFETY: `limit` has the layout of rlimit64 and outlives the call; a null new limit changes nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource.0, new, &raw mut limit) })?;
    Ok(limit)
}

/// As many descriptors as the hard limit allows. A program that uses select(2) breaks beyond 1,024, so whoever is made by this process has
/// to get the soft limit back that it came with: [`restore_descriptors`].
pub fn raise_descriptors() -> Result<(), Errno> {
    let limit = get(DESCRIPTORS)?;
    if limit.soft < limit.hard {
        set(DESCRIPTORS, limit.hard, limit.hard)?;
        DESCRIPTORS_BEFORE.store(limit.soft, Ordering::Relaxed);
    }
    Ok(())
}

/// In a child: the soft limit as it was before [`raise_descriptors`]; no call at all where that never raised it.
pub fn restore_descriptors() -> Result<(), Errno> {
    let before = DESCRIPTORS_BEFORE.load(Ordering::Relaxed);
    if before == RAISED_NOT {
        return Ok(());
    }
    let hard = get(DESCRIPTORS)?.hard;
    set(DESCRIPTORS, before.min(hard), hard)
}
