//! Pseudo-terminals: a master from a chosen devpts, its slave without any path, sizes, raw mode.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::termios::{self, SetArg, Termios};

use crate::rooted;
use crate::syscall::{check, check_fd};

/// linux/magic.h, DEVPTS_SUPER_MAGIC.
const DEVPTS_MAGIC: FsType = FsType(0x1cd1);

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// The multiplexer of a mounted devpts; `ENOTTY` where the directory is none.
pub fn multiplexer(pts: impl AsFd) -> Result<OwnedFd, Errno> {
    if fstatfs(pts.as_fd())?.filesystem_type() != DEVPTS_MAGIC {
        return Err(Errno::ENOTTY);
    }
    rooted::open_beneath(pts, Path::new("ptmx"), OFlag::O_RDWR | OFlag::O_NOCTTY)
}

/// A fresh terminal from the multiplexer `ptmx`, which must be a devpts's own: (master, slave).
///
/// The slave comes from the master itself (TIOCGPTPEER), so no path of the container is trusted (CVE-2025-52565).
pub fn open(ptmx: OwnedFd) -> Result<(OwnedFd, OwnedFd), Errno> {
    if fstatfs(&ptmx)?.filesystem_type() != DEVPTS_MAGIC {
        return Err(Errno::ENOTTY);
    }
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(libc::c_long::from(unsafe { libc::ioctl(ptmx.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a descriptor.
    let slave = check_fd(libc::c_long::from(unsafe { libc::ioctl(ptmx.as_raw_fd(), libc::TIOCGPTPEER, flags) }))?;
    Ok((ptmx, slave))
}

/// Makes the terminal the controlling one of this session, whose leader we are.
pub fn set_controlling(slave: impl AsFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer; 0: do not steal it from another session.
    check(libc::c_long::from(unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }))?;
    Ok(())
}

pub fn set_size(terminal: impl AsFd, size: Size) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }))?;
    Ok(())
}

pub fn size(terminal: impl AsFd) -> Result<Size, Errno> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    Ok(Size { columns: size.ws_col, rows: size.ws_row })
}

/// A terminal in raw mode; its former mode comes back on drop.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// `ENOTTY` where the descriptor is not a terminal.
    pub fn enter(terminal: impl AsFd) -> Result<Self, Errno> {
        Self::enter_but(terminal, termios::OutputFlags::empty())
    }

    /// What is written still has its newlines translated: for who relays a terminal that does not, see [`clear_newline_translation`].
    pub fn enter_for_input(terminal: impl AsFd) -> Result<Self, Errno> {
        Self::enter_but(terminal, termios::OutputFlags::OPOST)
    }

    fn enter_but(terminal: impl AsFd, kept: termios::OutputFlags) -> Result<Self, Errno> {
        let terminal = terminal.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        raw.output_flags |= before.output_flags & kept;
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing to be done where the terminal has gone.
        let _gone = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// Output newlines as a container's programs expect them: `\n` stays `\n` on the master's side, as runc has it.
pub fn clear_newline_translation(terminal: impl AsFd) -> Result<(), Errno> {
    let mut mode = termios::tcgetattr(&terminal)?;
    mode.output_flags.remove(termios::OutputFlags::ONLCR);
    termios::tcsetattr(&terminal, SetArg::TCSANOW, &mode)
}
