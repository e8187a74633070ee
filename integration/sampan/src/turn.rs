//! One `up` of this machine at a time: each chooses ports and networks that are free, and must be seen to have them before the next
//! one chooses.
//!
//! Whoever listens at an abstract socket address has the turn (unix(7)); it belongs to the network namespace, as ports and
//! networks do, and goes with the process. Waiting is a connection that nobody accepts and that ends with the listener.

use std::io::{ErrorKind, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use crate::report::say;

const ADDRESS: &[u8] = b"sampan-up";
/// An `up` takes seconds; one that takes longer is waiting for something else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dropping it, also by dying, lets the next one go on.
#[derive(Debug)]
pub(crate) struct Turn {
    _listener: UnixListener,
}

/// The turn, once it is free. `None` where it cannot be had: then `up` goes on without, as if it were alone.
pub(crate) fn take() -> Option<Turn> {
    let address = SocketAddr::from_abstract_name(ADDRESS).ok()?;
    let mut has_said = false;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(listener) => return Some(Turn { _listener: listener }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(_) => return None,
        }
        if !std::mem::replace(&mut has_said, true) {
            say("Waiting for another `sampan up` of this machine.");
        }
        // Refused: it went in between.
        let Ok(mut waiting) = UnixStream::connect_addr(&address) else { continue };
        waiting.set_read_timeout(Some(PATIENCE)).ok()?;
        match waiting.read(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let first = take().unwrap();
        let second = std::thread::spawn(|| take().is_some());
        assert!(!second.is_finished());
        drop(first);
        assert!(second.join().unwrap());
    }
}
