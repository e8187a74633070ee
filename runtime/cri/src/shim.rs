//! A pod's shim as this server sees it: whether it lives, and its async answers.
//!
//! Invariant: a shim is dead when its lock is free, and for no other reason. A deadline missed, a connection closed, an answer not
//! understood are a shim in trouble, or one of another release.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use runtime_shim::protocol::{Call, Message, Reply, Request};
use runtime_shim::wire::{self, Decoder};
use runtime_shim::{ClientError, ExitRecord, Target, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::node::Sandbox;
use crate::status::Error;
use crate::streaming::StreamError;

/// What a shim that is well answers in milliseconds.
pub(crate) const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The kernel lets go of the lock when the process ends. Without its file nobody can reach that shim any more, so its pod is to be
/// cleared away like that of a dead one.
pub(crate) fn is_dead(dir: &Path) -> bool {
    match File::options().write(true).open(dir.join("shim.pid")) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

impl Sandbox {
    /// Whether a call failed because there is no shim any more.
    pub(crate) fn is_gone(&self, error: &Error) -> bool {
        let may_be = matches!(error, Error::Shim(error) if error.is_gone() || matches!(error, ClientError::Closed));
        may_be && is_dead(&self.dir)
    }
}

/// A connection on which the end of a command will be asked for; made before the command, so that its end is not missed for want of
/// a connection.
#[derive(Debug)]
pub(crate) struct ExitWaiter(BlockingStream);

impl ExitWaiter {
    /// Blocks for as long as a connect takes.
    pub(crate) fn connect(dir: &Path) -> Result<Self, Error> {
        let failed = |source| ClientError::Connect { dir: dir.to_owned(), source };
        let stream = socket::connect(dir).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok(Self(stream))
    }

    /// The end of a container or command, however long that takes.
    pub(crate) async fn wait(self, target: Target) -> Result<ExitRecord, Error> {
        let lost = |_: io::Error| Error::Stream(StreamError::Lost);
        let mut stream = UnixStream::from_std(self.0).map_err(lost)?;
        let call = Call { seq: 1, request: Request::Wait { id: target.id, exec_id: target.exec_id } };
        let frame = wire::encode(&call).map_err(ClientError::from)?;
        stream.write_all(&frame).await.map_err(lost)?;
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 4096];
        loop {
            match decoder.decode::<Message>().map_err(ClientError::from)? {
                Some(Message::Reply { result, .. }) => {
                    return match result.map_err(ClientError::from)? {
                        Reply::Exited(record) => Ok(record),
                        _ => Err(ClientError::Mismatch.into()),
                    };
                }
                Some(Message::Event(_)) => {}
                None => match stream.read(&mut buffer).await.map_err(lost)? {
                    0 => return Err(Error::Stream(StreamError::Lost)),
                    count => decoder.push(&buffer[..count]),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_lives_as_long_as_its_lock_is_held_whatever_its_socket_says() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_dead(dir.path()));
        let file = File::create(dir.path().join("shim.pid")).unwrap();
        assert!(is_dead(dir.path()));
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(!is_dead(dir.path()));
        let gone = Error::Shim(
            socket::connect(dir.path())
                .map_err(|source| ClientError::Connect { dir: dir.path().to_owned(), source })
                .unwrap_err(),
        );
        let record = serde_json::from_str(r#"{"version":1,"id":"s","config":{},"created_at_ns":0}"#).unwrap();
        let sandbox = Sandbox::for_tests(dir.path(), record);
        assert!(!sandbox.is_gone(&gone) && !sandbox.is_gone(&Error::Shim(ClientError::Closed)));
        drop(held);
        assert!(sandbox.is_gone(&gone) && sandbox.is_gone(&Error::Shim(ClientError::Closed)));
        assert!(!sandbox.is_gone(&Error::Shim(ClientError::Deadline)));
    }
}
