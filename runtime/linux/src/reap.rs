//! Reaping whatever child has ended: for a subreaper and for pid 1 of a namespace.

use crate::pidfd::Exit;
use nix::errno::Errno;

/// Reaps one ended child of any kind without waiting; `None` when there is none (now, or at all).
///
/// By hand, because nix reaps a child that died of a real-time signal and then fails to name the signal: its exit would be lost.
pub fn next() -> Result<Option<(i32, Exit)>, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int.
        match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) }) {
            Ok(0) | Err(Errno::ECHILD) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => return Ok(Some((pid, Exit::Code(libc::WEXITSTATUS(status))))),
            Ok(pid) if libc::WIFSIGNALED(status) => return Ok(Some((pid, Exit::Signal(libc::WTERMSIG(status))))),
            // Stopped or continued is not asked for.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
