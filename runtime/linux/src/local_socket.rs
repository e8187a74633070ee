//! Unix sockets that keep message boundaries, at paths of any length.
//!
//! What travels with a message, see `fd_passing`. Invariant: every socket is close-on-exec.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket, socketpair,
};
use nix::sys::stat::Mode;

/// Two ends that keep message boundaries and see each other's death.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Calls `with` with an address for `path` that fits `sun_path` however long the directory's name is.
fn with_address<T>(path: &Path, with: impl FnOnce(&UnixAddr) -> Result<T, Errno>) -> Result<T, Errno> {
    if let Ok(address) = UnixAddr::new(path) {
        return with(&address);
    }
    let (dir, name) = (path.parent().ok_or(Errno::EINVAL)?, path.file_name().ok_or(Errno::EINVAL)?);
    let dir = nix::fcntl::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    with(&UnixAddr::new(&short)?)
}

/// A listening socket at `path`.
pub fn listen_at(path: &Path, kind: SockType) -> Result<OwnedFd, Errno> {
    let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    with_address(path, |address| bind(listener.as_raw_fd(), address))?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}

pub fn connect_to(path: &Path, kind: SockType) -> Result<OwnedFd, Errno> {
    connect_with(path, kind, SockFlag::SOCK_CLOEXEC)
}

/// The same without waiting for a place in the listener's queue, `EAGAIN` where it is full; the socket never waits afterwards either.
pub fn connect_now(path: &Path, kind: SockType) -> Result<OwnedFd, Errno> {
    connect_with(path, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
}

fn connect_with(path: &Path, kind: SockType, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let stream = socket(AddressFamily::Unix, kind, flags, None)?;
    with_address(path, |address| connect(stream.as_raw_fd(), address))?;
    Ok(stream)
}

/// A datagram socket that receives at `path`.
pub fn bind_datagram(path: &Path) -> Result<OwnedFd, Errno> {
    let receiver = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    with_address(path, |address| bind(receiver.as_raw_fd(), address))?;
    Ok(receiver)
}

/// One datagram to a socket at a path, or by the abstract name that an `@` in front means.
pub fn send_datagram(to: &Path, bytes: &[u8]) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let send = |address: &UnixAddr| {
        nix::sys::socket::sendto(sender.as_raw_fd(), bytes, address, nix::sys::socket::MsgFlags::MSG_NOSIGNAL).map(drop)
    };
    match to.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => send(&UnixAddr::new_abstract(name)?),
        None => with_address(to, send),
    }
}

pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    loop {
        match nix::sys::socket::accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: the kernel has just opened this descriptor for us and nobody else knows it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_reached() {
        let dir = tempfile::tempdir().expect("tempdir");
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("mkdir");
        let listener = listen_at(&deep.join("s"), SockType::SeqPacket).expect("listen");
        let _client = connect_to(&deep.join("s"), SockType::SeqPacket).expect("connect");
        accept(&listener).expect("accept");
    }
}
