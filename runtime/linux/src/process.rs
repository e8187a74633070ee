//! What a process sets on itself between clone and exec, and its end of life as a runtime: exec.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

use crate::syscall::check;

const CLOSE_RANGE_CLOEXEC: u32 = 4;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const IOPRIO_WHO_PROCESS: libc::c_long = 1;

/// Marks every descriptor from `first` on as close-on-exec.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    let first = u32::try_from(first).map_err(|_| Errno::EBADF)?;
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now, so no owner loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Closes every descriptor from 3 on but those in `keep`.
///
/// For the child of a clone, which never comes back to the code that owns the others: a container that the child is about to enter could
/// reach them while the child lives in it.
pub fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut next = 3;
    for kept in keep.into_iter().filter(|fd| *fd >= 3) {
        if kept > next {
            close_range(next, kept - 1)?;
        }
        next = next.max(kept + 1);
    }
    close_range(next, u32::MAX)
}

/// Closes every descriptor, the standard streams too: for a process that never opens or uses one again.
pub fn close_all() -> Result<(), Errno> {
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the contract of `close_all_but`: nobody in this process uses an owner of these descriptors again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Lets these descriptors survive exec.
pub fn keep_over_exec(numbers: &[RawFd]) -> Result<(), Errno> {
    for number in numbers {
        // SAFETY: F_SETFD takes an integer.
        check(libc::c_long::from(unsafe { libc::fcntl(*number, libc::F_SETFD, 0) }))?;
    }
    Ok(())
}

/// Makes `target` a copy of `source` that survives exec, whatever `target` was.
///
/// For the standard streams and preserved descriptors of a child that is about to exec.
pub fn place(source: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    if source.as_raw_fd() == target {
        // dup2 would leave close-on-exec set.
        // SAFETY: F_SETFD takes an integer.
        check(libc::c_long::from(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }))?;
        return Ok(());
    }
    // SAFETY: only a child that is about to exec calls this, for descriptor numbers that no owner holds.
    check(libc::c_long::from(unsafe { libc::dup2(source.as_raw_fd(), target) }))?;
    Ok(())
}

/// The standard streams, for what borrows them.
pub fn standard_stream(number: RawFd) -> Option<BorrowedFd<'static>> {
    if !(0..=2).contains(&number) {
        return None;
    }
    // SAFETY: 0 to 2 are open for the process's whole life: `ensure_standard_streams` runs first in every program.
    Some(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Opens /dev/null on those of 0, 1, 2 that the caller left closed, so that no later descriptor takes their place.
pub fn ensure_standard_streams() -> Result<(), Errno> {
    for number in 0..=2 {
        // SAFETY: F_GETFD takes no argument.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            // The lowest free number is the one that is missing.
            // SAFETY: the path is NUL-terminated.
            check(libc::c_long::from(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) }))?;
        }
    }
    Ok(())
}

/// Joins a new session keyring of this name; `ENOSYS` where the kernel has no keys.
pub fn join_session_keyring(name: &CStr) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// The supplementary, then the primary group, then the user: after this the old identity is gone.
pub fn set_identity(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Errno> {
    if let Some(groups) = groups {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&groups)?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

/// I/O priority: `class` 1 real-time, 2 best effort, 3 idle; `level` 0 to 7.
pub fn set_io_priority(class: u8, level: u8) -> Result<(), Errno> {
    let value = libc::c_long::from(class) << 13 | libc::c_long::from(level);
    // SAFETY: ioprio_set takes three integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// linux/sched/types.h, `struct sched_attr`, version 0 (48 bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn set_scheduling(scheduling: &Scheduling) -> Result<(), Errno> {
    let size = u32::try_from(size_of::<Scheduling>()).map_err(|_| Errno::EINVAL)?;
    let attributes = Scheduling { size, ..*scheduling };
    // SAFETY: `attributes` has the kernel's layout, says its size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}

/// CPUs of the process `pid` (0: this one); numbers from 0.
pub fn set_cpu_affinity(pid: i32, cpus: &[usize]) -> Result<(), Errno> {
    let mut mask = vec![0u64; 16];
    for cpu in cpus {
        let word = cpu / 64;
        if word >= mask.len() {
            mask.resize(word + 1, 0);
        }
        mask[word] |= 1 << (cpu % 64);
    }
    // SAFETY: the mask is as long as is said and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, mask.len() * 8, mask.as_ptr()) })?;
    Ok(())
}

/// Every CPU that the cgroup allows: of a mask with all bits the kernel takes those.
pub fn reset_cpu_affinity() -> Result<(), Errno> {
    /// More CPUs than Linux has (`CONFIG_NR_CPUS`), and no allocation.
    const WORDS: usize = 8192 / 64;
    let mask = [u64::MAX; WORDS];
    // SAFETY: the mask is as long as is said and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) })?;
    Ok(())
}

/// NUMA memory policy of this process; `mode` with its flags, `nodes` as numbers.
pub fn set_memory_policy(mode: i32, nodes: &[usize]) -> Result<(), Errno> {
    let mut mask = [0u64; 16];
    for node in nodes {
        *mask.get_mut(node / 64).ok_or(Errno::EINVAL)? |= 1 << (node % 64);
    }
    let bits = if nodes.is_empty() { 0 } else { mask.len() * 64 };
    let pointer = if nodes.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // SAFETY: the mask holds `bits` bits and outlives the call; null with 0 bits is an empty set.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}

/// personality(2).
pub fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: personality takes one integer.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })?;
    Ok(())
}

/// Every signal back to its default and none blocked, whatever the caller of the runtime ignored.
pub fn reset_signals() -> Result<(), Errno> {
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP refuse, and so do the two that libc keeps to itself; all of those are at their default.
        // SAFETY: SIG_DFL is always a sound handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&nix::sys::signal::SigSet::empty()),
        None,
    )
}

/// Becomes the program at `path`; comes back only with an errno.
pub fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Whether the descriptor came from whoever executed us: it is open, and survives an exec as none of our own does.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no argument.
    unsafe { libc::fcntl(number, libc::F_GETFD) == 0 }
}

/// Gives an open file to a user, as the standard streams of a container go to its user.
pub fn give(file: impl AsFd, uid: u32, gid: Option<u32>) -> Result<(), Errno> {
    nix::unistd::fchown(file, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw))
}

/// The NIS domain name of this UTS namespace.
pub fn set_domainname(name: &str) -> Result<(), Errno> {
    // SAFETY: the kernel reads `len` bytes of a string that outlives the call.
    check(libc::c_long::from(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }))?;
    Ok(())
}
