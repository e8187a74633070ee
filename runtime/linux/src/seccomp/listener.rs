//! The notifications' descriptor to whoever answers them, when nothing that sends may be called any more.
//!
//! From the moment a filter is loaded, any call of its process may be one that waits for the answer of somebody who has no descriptor yet:
//! a profile with SCMP_ACT_NOTIFY for `sendmsg` would wait for ever. So another process sends it, one that shares the table of descriptors
//! and is not under the filter; crun does that too, while runc has the parent fetch it with pidfd_getfd(2), asks for that with `write`, and
//! so refuses to notify of `write`. Invariant: between the load and the word to that process there is no system call.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::unistd::getppid;

use super::{Filter, load};
use crate::clone::{CLONE_FILES, Cloned, clone, exit_now};
use crate::pidfd::{self, Exit};

const NOT_YET: i32 = -1;
const NEVER: i32 = -2;

/// Like [`load`], for a filter that notifies; `send` gets the descriptor, in a process of its own that ends with it.
pub fn load_and_hand_over(
    filter: &Filter,
    send: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let number = shared()?;
    let own = nix::unistd::getpid();
    match clone(CLONE_FILES, None)? {
        Cloned::Child => exit_now(hand_over(number, send, || getppid() == own)),
        Cloned::Parent { pidfd: sender, .. } => {
            let loaded = load(filter);
            let descriptor = match &loaded {
                Ok(Some(listener)) => listener.as_raw_fd(),
                Ok(None) | Err(_) => NEVER,
            };
            number.store(descriptor, Ordering::Release);
            // From here on the agent can answer, also for this wait. Where the filter refuses it, the sender does its work all the same:
            // the table that it shares stays its own when we exec.
            let sent = match pidfd::wait(&sender) {
                Ok(Exit::Code(0)) | Err(_) => Ok(()),
                Ok(Exit::Code(errno)) => Err(Errno::from_raw(errno)),
                Ok(Exit::Signal(_)) => Err(Errno::EPIPE),
            };
            // Closed by the exec that follows: a call less for the filter to see.
            let _number = sender.into_raw_fd();
            let _number = loaded?.map(IntoRawFd::into_raw_fd);
            sent
        }
    }
}

/// A number that this process and its children see alike.
fn shared() -> Result<&'static AtomicI32, Errno> {
    let size = std::num::NonZeroUsize::MIN.saturating_add(size_of::<AtomicI32>() - 1);
    let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: new memory at an address of the kernel's choice.
    let page = unsafe { mmap_anonymous(None, size, access, flags)? };
    // SAFETY: a page is aligned and large enough for one number, zeroed, and never unmapped: an exec follows.
    let number = unsafe { page.cast::<AtomicI32>().as_ref() };
    number.store(NOT_YET, Ordering::Release);
    Ok(number)
}

/// In the sender: its exit code is an errno.
fn hand_over(
    number: &AtomicI32,
    send: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    is_awaited: impl Fn() -> bool,
) -> i32 {
    loop {
        match number.load(Ordering::Acquire) {
            // No event can tell of it, since the other may make no call; it is one call away.
            NOT_YET if is_awaited() => {
                let _always_works = nix::sched::sched_yield();
            }
            NOT_YET => return Errno::EPIPE as i32,
            NEVER => return 0,
            listener => {
                // SAFETY: open in the table that we share, and closed by nobody before its owner's exec, which leaves the table to us.
                let listener = unsafe { BorrowedFd::borrow_raw(listener) };
                return send(listener).map_or_else(|errno| errno as i32, |()| 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd_passing;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    /// linux/seccomp.h: `SECCOMP_IOCTL_NOTIF_RECV`, `SECCOMP_IOCTL_NOTIF_SEND`, `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
    const RECEIVE: u64 = 0xc050_2100;
    const ANSWER: u64 = 0xc018_2101;
    const CONTINUE: u32 = 1;

    #[repr(C)]
    #[derive(Default)]
    struct Question {
        id: u64,
        pid: u32,
        flags: u32,
        /// Its number, the architecture, where from, and its arguments.
        call: [u64; 8],
    }

    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }

    /// Lets everything through until nobody is left to ask; the calls that were asked for.
    fn let_through(listener: &OwnedFd) -> Vec<i64> {
        let mut calls = Vec::new();
        loop {
            let mut question = Question::default();
            // SAFETY: `question` has the layout and the zeros that the kernel wants.
            let asked = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut question) };
            if asked != 0 {
                match Errno::last() {
                    Errno::EINTR => continue,
                    _ => return calls,
                }
            }
            calls.push((question.call[0] & 0xffff_ffff).cast_signed());
            let answer = Answer { id: question.id, value: 0, error: 0, flags: CONTINUE };
            // SAFETY: `answer` has the kernel's layout. Who asked may have died meanwhile.
            unsafe { libc::ioctl(listener.as_raw_fd(), ANSWER as _, &raw const answer) };
        }
    }

    fn filter(names: &str) -> Filter {
        let rule = format!(r#"{{"names":[{names}],"action":"SCMP_ACT_NOTIFY"}}"#);
        let profile = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
        super::super::compile(&serde_json::from_str(&profile).expect("json")).expect("compile")
    }

    /// Loads the filter in a process of its own, which then writes; how it ended, and the calls that the agent was asked for.
    fn check(names: &str, expect: &[i64]) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let filter = filter(names);
        match clone(0, None).expect("clone") {
            Cloned::Child => {
                let loaded = load_and_hand_over(&filter, |fd| fd_passing::send(&theirs, b"x", &[fd]).map(drop));
                let written = nix::unistd::write(theirs.as_fd(), b"done");
                exit_now(i32::from(loaded.is_err() || written.is_err()));
            }
            Cloned::Parent { pidfd: child, .. } => {
                drop(theirs);
                let mut descriptors: Vec<OwnedFd> = Vec::new();
                assert_eq!(fd_passing::receive(&ours, &mut [0; 1], &mut descriptors), Ok(1));
                let calls = let_through(&descriptors.pop().expect("a descriptor"));
                assert_eq!(pidfd::wait(&child).expect("wait"), Exit::Code(0));
                assert_eq!(calls, expect, "{names}");
            }
        }
    }

    #[test]
    fn the_agent_has_it_before_it_is_asked() {
        check(r#""write""#, &[libc::SYS_write]);
        check(r#""sendmsg", "write", "close""#, &[libc::SYS_write]);
        // Even the wait for who sends it.
        check(r#""waitid", "sched_yield", "sendto", "write""#, &[libc::SYS_waitid, libc::SYS_write]);
    }

    #[test]
    fn a_filter_or_an_agent_that_refuses_is_told() {
        let unloadable = Filter { program: Vec::new(), ..filter(r#""write""#) };
        let never = |_: BorrowedFd<'_>| -> Result<(), Errno> { Err(Errno::EBADF) };
        assert_eq!(load_and_hand_over(&unloadable, never), Err(Errno::EINVAL));
        match clone(0, None).expect("clone") {
            Cloned::Child => {
                let refused = load_and_hand_over(&filter(r#""write""#), |_| Err(Errno::ECONNREFUSED));
                exit_now(i32::from(refused != Err(Errno::ECONNREFUSED)));
            }
            Cloned::Parent { pidfd: child, .. } => {
                assert_eq!(pidfd::wait(&child).expect("wait"), Exit::Code(0));
            }
        }
    }
}
