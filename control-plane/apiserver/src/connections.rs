//! Connections: counted, bounded, and ended when they idle, so that nobody without credentials holds what others need.
//!
//!     accepted --handshake--> stranger --certificate, or a request with a good token--> known
//!        `----- too many: the stranger that idles longest goes first; without one, the new connection does
//!
//! Invariant: what a connection holds is given back when its stream is dropped, upgraded or not; strangers never hold more than
//! their share of the places.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Open connections, when the process may open that many files.
const OPEN_MAX: usize = 4096;
/// The part of the process's descriptors that connections may take: the store, the runtime and the kubelet live in it too.
const DESCRIPTORS_SHARE: usize = 4;
/// Fewer than this make no server.
const OPEN_MIN: usize = 64;
/// The part of the places that who has not proven who he is may take.
const STRANGERS_SHARE: usize = 2;
/// A connection without a request that nobody has proven anything on is ended after this.
pub(crate) const STRANGER_IDLE_MAX: Duration = Duration::from_secs(30);
/// A connection without a request is ended after this; upstream's.
pub(crate) const KNOWN_IDLE_MAX: Duration = Duration::from_secs(90);

/// All connections of a listener.
#[derive(Debug)]
pub(crate) struct Connections {
    open_max: usize,
    strangers_max: usize,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    shed: AtomicU64,
    refused: AtomicU64,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Somebody has proven who he is on it.
    known: AtomicBool,
    /// Requests that are being answered.
    requests: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// Cancelled when its place is needed.
    pub(crate) closing: CancellationToken,
}

/// A place among the connections; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    all: Arc<Connections>,
    id: u64,
    pub(crate) connection: Arc<Connection>,
}

/// How many there are: for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) known: usize,
    pub(crate) strangers: usize,
    pub(crate) shed: u64,
    pub(crate) refused: u64,
}

impl Connections {
    /// As many as a process with so many descriptors can afford.
    pub(crate) fn within(descriptors: usize) -> Arc<Self> {
        Self::new((descriptors / DESCRIPTORS_SHARE).clamp(OPEN_MIN, OPEN_MAX))
    }

    fn new(open_max: usize) -> Arc<Self> {
        Arc::new(Self {
            open_max,
            strangers_max: (open_max / STRANGERS_SHARE).max(1),
            next: AtomicU64::new(0),
            open: Mutex::new(BTreeMap::new()),
            shed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection. When there is none left, the stranger that idles longest loses its own; when no stranger idles,
    /// there is no place.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let mut open = self.open();
        let strangers = open.values().filter(|one| !one.is_known()).count();
        if strangers >= self.strangers_max || open.len() >= self.open_max {
            let idle = open.iter().filter(|(_, one)| !one.is_known() && one.requests() == 0);
            let longest = idle.min_by_key(|(_, one)| one.idle_since()).map(|(id, _)| *id);
            let Some(victim) = longest.and_then(|id| open.remove(&id)) else {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            };
            victim.closing.cancel();
            self.shed.fetch_add(1, Ordering::Relaxed);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            known: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            idle_since: Mutex::new(now),
            closing: CancellationToken::new(),
        });
        open.insert(id, Arc::clone(&connection));
        Some(Place { all: Arc::clone(self), id, connection })
    }

    pub(crate) fn counts(&self) -> Counts {
        let open = self.open();
        let known = open.values().filter(|one| one.is_known()).count();
        Counts {
            known,
            strangers: open.len().saturating_sub(known),
            shed: self.shed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open().remove(&self.id);
    }
}

impl Connection {
    /// Somebody has proven who he is.
    pub(crate) fn set_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins; it lasts as long as what is returned.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }

    /// When the connection will have idled for too long, as things are; while a request runs, no sooner than from now on.
    pub(crate) fn idle_until(&self, now: Instant) -> Instant {
        let limit = if self.is_known() { KNOWN_IDLE_MAX } else { STRANGER_IDLE_MAX };
        let since = if self.requests() > 0 { now } else { self.idle_since() };
        since.checked_add(limit).unwrap_or(now)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream that holds its place as long as it is open, whoever has it.
#[derive(Debug)]
pub(crate) struct Placed<S> {
    stream: S,
    _place: Place,
}

impl<S> Placed<S> {
    pub(crate) fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_strangers_make_room_and_nobody_else_does() {
        let all = Connections::new(8);
        let start = Instant::now();
        let strangers: Vec<Place> = (0..4).map(|_| all.admit(start).unwrap()).collect();
        // Their share is taken: the next stranger pushes out the one that idles longest.
        let busy = strangers[0].connection.begin();
        let fifth = all.admit(start).unwrap();
        let closed: Vec<bool> = strangers.iter().map(|one| one.connection.closing.is_cancelled()).collect();
        assert_eq!(closed, [false, true, false, false], "one that asks is not idle");
        assert_eq!(all.counts(), Counts { known: 0, strangers: 4, shed: 1, refused: 0 });
        // Who is known takes no stranger's place.
        let known: Vec<Place> = (0..4)
            .map(|_| {
                let place = all.admit(start).unwrap();
                place.connection.set_known();
                place
            })
            .collect();
        assert!(known.iter().all(|one| !one.connection.closing.is_cancelled()));
        assert!(!strangers[0].connection.closing.is_cancelled());
        drop((busy, fifth, strangers, known));
        assert_eq!(all.counts().known + all.counts().strangers, 0, "places are given back");
        // All of them ask: the new one goes.
        let asking: Vec<(Place, Busy)> = (0..4)
            .map(|_| {
                let place = all.admit(start).unwrap();
                let busy = place.connection.begin();
                (place, busy)
            })
            .collect();
        assert!(all.admit(start).is_none());
        assert_eq!(all.counts().refused, 1);
        drop(asking);
    }

    #[test]
    fn a_connection_idles_from_the_end_of_its_last_request() {
        let all = Connections::new(8);
        let start = Instant::now();
        let place = all.admit(start).unwrap();
        let connection = &place.connection;
        let plus = |at: Instant, duration: Duration| at.checked_add(duration).unwrap();
        assert_eq!(connection.idle_until(start), plus(start, STRANGER_IDLE_MAX));
        let busy = connection.begin();
        connection.set_known();
        let later = plus(start, Duration::from_secs(1000));
        assert_eq!(connection.idle_until(later), plus(later, KNOWN_IDLE_MAX), "a long request is no idling");
        let ended = Instant::now();
        drop(busy);
        let until = connection.idle_until(later);
        assert!(until >= plus(ended, KNOWN_IDLE_MAX) && until < plus(later, KNOWN_IDLE_MAX));
    }
}
