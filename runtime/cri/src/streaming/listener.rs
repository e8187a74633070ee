//! Where the stream server listens: a socket of the file system, or a port of loopback that is no pod's host port.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::StreamError;
use crate::config::StreamListen;
use crate::status::Error;

/// Free ports that are looked at before giving up; each taken one is a pod's.
const PORTS_TRIED_MAX: usize = 64;

/// What URLs name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Socket(PathBuf),
    Loopback(SocketAddr),
}

#[derive(Debug)]
pub(crate) enum Listener {
    Unix { listener: UnixListener, path: PathBuf },
    Tcp { listener: TcpListener, address: SocketAddr },
}

/// `taken` are ports of the host that lead to pods: CNI translates connections to them on loopback too, so a listener there would
/// never see its clients, and the pod would.
pub(crate) async fn open(wanted: &StreamListen, taken: &HashSet<u16>) -> Result<Listener, Error> {
    let address = match wanted {
        StreamListen::Socket(path) => {
            let listener = crate::server::listen(path)?;
            return Ok(Listener::Unix { listener, path: path.clone() });
        }
        StreamListen::Loopback(address) if !address.ip().is_loopback() => {
            return Err(StreamError::NotLoopback(*address).into());
        }
        StreamListen::Loopback(address) => *address,
    };
    let failed = |source| StreamError::Listen { address, source };
    // Those that cannot be used are held meanwhile, or the kernel would offer them again.
    let mut held = Vec::new();
    for _ in 0..PORTS_TRIED_MAX {
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        if !taken.contains(&bound.port()) {
            return Ok(Listener::Tcp { listener, address: bound });
        }
        if address.port() != 0 {
            break;
        }
        held.push(listener);
    }
    Err(StreamError::NoPort.into())
}

impl Listener {
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Unix { path, .. } => Place::Socket(path.clone()),
            Self::Tcp { address, .. } => Place::Loopback(*address),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Either<UnixStream, TcpStream>> {
        match self {
            Self::Unix { listener, .. } => Ok(Either::Left(listener.accept().await?.0)),
            Self::Tcp { listener, .. } => {
                let (socket, _) = listener.accept().await?;
                let _ = socket.set_nodelay(true);
                Ok(Either::Right(socket))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_owner_alone_and_a_port_for_loopback_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams.sock");
        let listener = open(&StreamListen::Socket(path.clone()), &HashSet::new()).await.unwrap();
        assert_eq!(listener.place(), Place::Socket(path.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let anywhere = StreamListen::Loopback(([0, 0, 0, 0], 0).into());
        assert!(matches!(open(&anywhere, &HashSet::new()).await, Err(Error::Stream(StreamError::NotLoopback(_)))));
    }

    #[tokio::test]
    async fn a_port_that_a_pod_has_mapped_is_never_listened_on() {
        let first = open(&StreamListen::any_loopback_port(), &HashSet::new()).await.unwrap();
        let Place::Loopback(address) = first.place() else { panic!("{first:?}") };
        drop(first);
        let taken = HashSet::from([address.port()]);
        let fixed = open(&StreamListen::Loopback(address), &taken).await;
        assert!(matches!(fixed, Err(Error::Stream(StreamError::NoPort))));
        // All but one of the ports that may be given out belong to pods.
        let second = open(&StreamListen::any_loopback_port(), &taken).await.unwrap();
        assert_ne!(second.place(), Place::Loopback(address));
    }
}
