//! Seccomp: an OCI profile becomes a classic BPF program, and the program a filter of this process.
//!
//! The compiler is pure. Within an architecture a binary tree over call numbers leads to the decision, so a call costs about nine
//! comparisons whatever the profile's length. Invariant: an architecture or call number that no rule names never gets `ALLOW` unless
//! that is the default action.

mod architecture;
mod compile;
mod listener;
mod program;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use oci_spec::runtime::LinuxSeccompFilterFlag;

pub use compile::{Error, compile};
pub use listener::load_and_hand_over;
pub use program::Instruction;

use crate::syscall::check;

const SECCOMP_SET_MODE_FILTER: u32 = 1;
const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;
const FLAG_NEW_LISTENER: u32 = 8;
const FLAG_WAIT_KILLABLE_RECV: u32 = 32;

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<Instruction>,
    pub flags: u32,
    /// Names that no architecture of the profile knows; ignored, for a warning.
    pub unknown: Vec<String>,
}

impl Filter {
    /// Whether loading gives a descriptor that answers notifications.
    pub fn notifies(&self) -> bool {
        self.flags & FLAG_NEW_LISTENER != 0
    }
}

fn flag(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
        // For the other threads of who loads it: we have one.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
    }
}

/// Puts this process under the filter, for good; needs no_new_privs or CAP_SYS_ADMIN. The descriptor is the notifications'.
pub fn load(filter: &Filter) -> Result<Option<OwnedFd>, Errno> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    let length = u16::try_from(filter.program.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { length, instructions: filter.program.as_ptr() };
    // SAFETY: `program` has the layout of sock_fprog, its instructions that of sock_filter; both outlive the call.
    let answer =
        check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, filter.flags, &raw const program) })?;
    if filter.notifies() { crate::syscall::check_fd(answer).map(Some) } else { Ok(None) }
}
