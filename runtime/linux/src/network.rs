//! Network interfaces, as far as a container runtime touches them: loopback up, and devices moved from one namespace to another.
//!
//! Speaks just the few rtnetlink messages that this takes, so that a program that is started once per container need not carry a library
//! for all of them. Invariant: what is received is never trusted to be as long as it says.

mod device;
mod message;

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

pub use device::{Error as DeviceError, Moved, move_device};

use crate::syscall::check;

/// Brings up `lo` of this network namespace.
pub fn bring_up_loopback() -> Result<(), Errno> {
    // netdevice(7) takes any socket; this family is in every kernel.
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq that outlives the call; the cast fits the C library's own type of request numbers.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check(libc::c_long::from(answer))?;
    Ok(())
}
