//! `clone3(2)` as a fork: new namespaces, a pidfd, straight into a cgroup.
//!
//! The child is a copy of the caller's memory. Invariant (rule 33 of the house): the caller has one thread, so the child may go on using
//! the allocator; nothing of another thread can be half done.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::syscall::check;

/// `clone3` flags, by their kernel names.
pub const CLONE_NEWTIME: u64 = 0x80;
pub const CLONE_PARENT: u64 = 0x8000;
/// One table of descriptors for both.
pub const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// linux/sched.h, `struct clone_args`, version 2 (88 bytes, kernel 5.7).
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which of the two we are.
#[derive(Debug)]
pub enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// Forks into the namespaces of `flags` (`CLONE_NEW*`, `CLONE_PARENT`, `CLONE_FILES`); `cgroup` is a cgroup v2 directory.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: i32 = -1;
    let mut arguments = Arguments {
        flags: flags | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd).addr() as u64,
        // With CLONE_PARENT the kernel uses the caller's own exit signal and refuses another.
        exit_signal: if flags & CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..Arguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    }
    // SAFETY: `arguments` and `pidfd` outlive the call and have the kernel's layout; without CLONE_VM and a stack this is a fork, so
    // the child runs on a private copy of our memory.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<Arguments>()) };
    match check(answer)? {
        0 => Ok(Cloned::Child),
        pid => {
            let pid = i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
            // SAFETY: CLONE_PIDFD made the kernel store a descriptor that only we know.
            Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
    }
}

/// Ends this process at once: no destructors, no exit handlers, nothing of the parent's is flushed twice.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pidfd;

    #[test]
    fn a_child_is_seen_through_its_pidfd() {
        match clone(0, None).expect("clone3") {
            Cloned::Child => exit_now(7),
            Cloned::Parent { pid, pidfd } => {
                assert!(pid > 0);
                assert_eq!(pidfd::wait(&pidfd).expect("wait"), pidfd::Exit::Code(7));
            }
        }
    }
}
