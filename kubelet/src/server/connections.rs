//! Connections to the kubelet's port: how many, for how long, and what happens when there are no descriptors left. Who has not shown
//! who he is is a stranger; of strangers there are few, and when a new one comes the oldest of the address that has the most goes.
//! Invariant: however many come, whoever comes next is heard, and one address takes no room from the others.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Body;
use crate::counters::Counters;

/// Strangers at a time; the next one takes the place of the oldest of the greediest address.
const STRANGERS_MAX: usize = 256;
const STRANGERS_PER_ADDRESS_MAX: usize = 64;
/// A head of a request larger than this is none.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A stranger has this long for the head of each request, and is idle no longer in between.
pub(super) const STRANGER_IDLE: Duration = Duration::from_secs(30);
/// The same for who has shown a certificate.
pub(super) const KNOWN_IDLE: Duration = Duration::from_secs(300);
/// No new connection is taken for this long when there is no descriptor for it.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Strangers {
    next: u64,
    count: usize,
    /// Oldest first.
    by_address: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
}

impl Strangers {
    fn evict_from(&mut self, address: IpAddr) {
        let Some(list) = self.by_address.get_mut(&address) else { return };
        if let Some((_, evicted)) = list.pop_front() {
            evicted.cancel();
            self.count -= 1;
        }
        if list.is_empty() {
            self.by_address.remove(&address);
        }
    }

    fn leave(&mut self, address: IpAddr, number: u64) {
        let Some(list) = self.by_address.get_mut(&address) else { return };
        let before = list.len();
        list.retain(|(own, _)| *own != number);
        self.count -= before - list.len();
        if list.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

/// Where connections come in.
#[derive(Clone)]
pub(super) struct Gate {
    strangers: Arc<Mutex<Strangers>>,
    counters: Arc<Counters>,
}

/// A connection's place; given back when dropped.
pub(super) struct Seat {
    gate: Gate,
    address: IpAddr,
    number: u64,
    /// The place has gone to somebody else.
    pub evicted: CancellationToken,
}

impl Gate {
    pub(super) fn new(counters: Arc<Counters>) -> Gate {
        Gate { strangers: Arc::default(), counters }
    }

    fn lock(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, address: IpAddr) -> Seat {
        let mut strangers = self.lock();
        let own = strangers.by_address.get(&address).map_or(0, VecDeque::len);
        let greediest = if own >= STRANGERS_PER_ADDRESS_MAX {
            Some(address)
        } else if strangers.count >= STRANGERS_MAX {
            strangers.by_address.iter().max_by_key(|(_, list)| list.len()).map(|(address, _)| *address)
        } else {
            None
        };
        if let Some(greediest) = greediest {
            strangers.evict_from(greediest);
            self.counters.connection_refused();
            tracing::debug!(address = %greediest, "a connection has been closed to make room for another");
        }
        let (number, evicted) = (strangers.next, CancellationToken::new());
        strangers.next = strangers.next.wrapping_add(1);
        strangers.count += 1;
        strangers.by_address.entry(address).or_default().push_back((number, evicted.clone()));
        Seat { gate: self.clone(), address, number, evicted }
    }
}

impl Seat {
    /// No stranger any more: the place is free for another, and the connection stays.
    pub(super) fn known(&self) {
        self.gate.lock().leave(self.address, self.number);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.lock().leave(self.address, self.number);
    }
}

/// The next connection. Errors of one connection are passed over; when descriptors have run out there is a pause.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer.ip().to_canonical()),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !told {
                    tracing::warn!(%error, "no connection can be taken; trying again");
                    told = true;
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// accept(2): errors that were pending on the new socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Serves one connection to its end. `idle` bounds each wait for the head of a request.
pub(super) async fn serve<S, F, R>(stream: S, idle: Duration, answer: F)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::trace!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_flood_from_one_address_takes_no_room_from_others() {
        let gate = Gate::new(Arc::default());
        let other = gate.enter(address(1));
        let flood: Vec<Seat> = (0..1000).map(|_| gate.enter(address(2))).collect();
        let open = flood.iter().filter(|seat| !seat.evicted.is_cancelled()).count();
        assert_eq!(open, STRANGERS_PER_ADDRESS_MAX);
        assert!(!other.evicted.is_cancelled() && !flood[999].evicted.is_cancelled(), "the newest is heard");
        // Many addresses: the greediest gives way, and who is known takes no place.
        let known = gate.enter(address(3));
        known.known();
        let crowd: Vec<Seat> = (10..250).map(|last| gate.enter(address(last))).collect();
        assert!(crowd.iter().all(|seat| !seat.evicted.is_cancelled()));
        assert!(!other.evicted.is_cancelled() && !known.evicted.is_cancelled());
        assert_eq!(gate.lock().count, STRANGERS_MAX);
        drop((other, flood, known, crowd));
        let strangers = gate.lock();
        assert_eq!((strangers.count, strangers.by_address.len()), (0, 0));
    }

    #[tokio::test]
    async fn who_sends_no_head_or_half_of_one_is_let_go() {
        for said in ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(said.as_bytes()).await.unwrap();
            let served = tokio::spawn(serve(ours, Duration::from_millis(50), async |_| {
                super::super::text(http::StatusCode::OK, "ok")
            }));
            served.await.unwrap();
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer.starts_with(b"HTTP/1.1 200"), said.ends_with("\r\n\r\n"), "{said:?}");
        }
    }
}
