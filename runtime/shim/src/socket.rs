//! Where the shim listens, and how to get there when the path is longer than the 107 bytes of a unix address: through
//! `/proc/self/fd/<directory>/<name>`.

use nix::sys::socket::SockType;
use runtime_linux::local_socket;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket's name in the pod's directory.
pub const NAME: &str = "shim.sock";

/// An address short enough for the kernel. It is valid while the directory handle beside it lives.
fn address(dir: &Path) -> io::Result<(PathBuf, File)> {
    let handle = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{NAME}", handle.as_raw_fd())), handle))
}

/// Listens in `dir`, replacing what a dead shim left there. The caller holds the pod's lock.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let (path, _handle) = address(dir)?;
    match std::fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Connects to the shim of the pod at `dir`, without waiting: `WouldBlock` where its queue of connections is full.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::from(local_socket::connect_now(&dir.join(NAME), SockType::Stream)?);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_far_longer_than_an_address_work_and_a_stale_socket_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(connect(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listen(&dir).unwrap());
        assert_eq!(connect(&dir).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&dir).unwrap();
        connect(&dir).unwrap();
        listener.accept().unwrap();
    }
}
