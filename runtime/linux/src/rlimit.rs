//! Resource limits (`prlimit64(2)`).

use nix::errno::Errno;

use crate::syscall::check;

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
