//! One client's connection: frames in, frames out, neither ever waited for.
//!
//! A client that does not read its answers is not read from either beyond [`QUEUE_BYTES_MAX`]; events for it are then dropped and counted,
//! and it is told how many once it reads again.

use super::reactor::{Reactor, Watched};
use super::server::Source;
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use runtime_linux::fd_passing;
use runtime_shim::protocol::{Call, Message, OLDEST, PROTOCOL};
use runtime_shim::wire::{Decoder, encode};
use runtime_shim::{Event, Failure, FailureCode, Reply};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// What may wait for one client.
const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// What is read of the next requests while one is being worked on.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
/// Descriptors sent ahead of their request's last byte; more is a broken client.
const FDS_WAITING_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Connection {
    socket: Watched<UnixStream, Source>,
    decoder: Decoder,
    pub(crate) fds: VecDeque<OwnedFd>,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    pub(crate) subscribed: bool,
    /// What its client speaks.
    pub(crate) protocol: u32,
    /// A request is being worked on; the next is taken once it is answered.
    pub(crate) waits: bool,
    lost: u64,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    fd: Option<OwnedFd>,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Gone;

/// What a frame asks.
#[derive(Debug)]
pub(crate) enum Asked {
    Call(Call),
    /// Not understood: the request's number, and the answer to it.
    Refused(u64, Failure),
}

/// `None` for what has not even a number.
fn parse(body: &[u8]) -> Option<Asked> {
    /// Of any version's request.
    #[derive(serde::Deserialize)]
    struct Envelope {
        seq: u64,
    }
    let error = match serde_json::from_slice::<Call>(body) {
        Ok(call) => return Some(Asked::Call(call)),
        Err(error) => error,
    };
    let envelope: Envelope = serde_json::from_slice(body).ok()?;
    let message = format!("this shim (protocol {PROTOCOL}) does not understand the request: {error}");
    Some(Asked::Refused(envelope.seq, Failure { code: FailureCode::Unsupported, message }))
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, source: Source, reactor: &mut Reactor<Source>) -> Result<Self, Gone> {
        stream.set_nonblocking(true).map_err(|_| Gone)?;
        let mut socket = Watched::new(stream, source);
        socket.watch(reactor, EpollFlags::EPOLLIN).map_err(|_| Gone)?;
        Ok(Self {
            socket,
            decoder: Decoder::default(),
            fds: VecDeque::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            subscribed: false,
            protocol: OLDEST,
            waits: false,
            lost: 0,
        })
    }

    /// Reads once what is there.
    pub(crate) fn receive(&mut self) -> Result<(), Gone> {
        let mut buffer = [0; 8192];
        match fd_passing::receive(self.socket.get(), &mut buffer, &mut self.fds) {
            Ok(0) => Err(Gone),
            Ok(count) if self.fds.len() <= FDS_WAITING_MAX => {
                self.decoder.push(&buffer[..count]);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Ok(_) | Err(_) => Err(Gone),
        }
    }

    /// The next whole request, unless answers have piled up or the last one is being worked on; or the number of one that cannot be
    /// understood, with the answer to it.
    pub(crate) fn next_call(&mut self) -> Result<Option<Asked>, Gone> {
        if self.queued_bytes > QUEUE_BYTES_MAX || self.waits {
            return Ok(None);
        }
        let Some(body) = self.decoder.frame().map_err(|_| Gone)? else { return Ok(None) };
        match parse(&body) {
            Some(Asked::Refused(seq, failure)) => {
                // Whose they are is not known, so they are nobody's.
                self.fds.clear();
                Ok(Some(Asked::Refused(seq, failure)))
            }
            Some(call) => Ok(Some(call)),
            None => Err(Gone),
        }
    }

    /// Bytes of requests that are not whole yet, or wait.
    pub(crate) fn buffered(&self) -> usize {
        self.decoder.buffered()
    }

    pub(crate) fn answer(&mut self, seq: u64, result: Result<Reply, Failure>, fd: Option<OwnedFd>) {
        self.push(&Message::Reply { seq, result }, fd);
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        if self.queued_bytes > QUEUE_BYTES_MAX {
            self.lost += 1;
        } else {
            self.push(&Message::Event(event.clone()), None);
        }
    }

    fn push(&mut self, message: &Message, fd: Option<OwnedFd>) {
        let bytes = match (encode(message), message) {
            (Ok(bytes), _) => bytes,
            (Err(error), Message::Reply { seq, .. }) => {
                // Beyond the frame limit: its client must not wait for ever.
                let failure =
                    Failure { code: FailureCode::Exhausted, message: format!("the answer is too long: {error}") };
                match encode(&Message::Reply { seq: *seq, result: Err(failure) }) {
                    Ok(bytes) => bytes,
                    Err(_) => return,
                }
            }
            (Err(_), Message::Event(_)) => return self.lost = self.lost.saturating_add(1),
        };
        self.queued_bytes += bytes.len();
        self.queue.push_back(Frame { bytes, sent: 0, fd });
    }

    /// Sends what is taken and sets what to wait for.
    pub(crate) fn flush(&mut self, reactor: &mut Reactor<Source>) -> Result<(), Gone> {
        while let Some(frame) = self.queue.front_mut() {
            let fds: Vec<_> = frame.fd.iter().map(AsFd::as_fd).collect();
            match fd_passing::send(self.socket.get(), &frame.bytes[frame.sent..], &fds) {
                Ok(count) => {
                    frame.sent += count;
                    frame.fd = None;
                    self.queued_bytes -= count;
                    if frame.sent == frame.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Gone),
            }
            if self.queue.is_empty() && self.lost > 0 {
                let events = std::mem::take(&mut self.lost);
                self.push(&Message::Event(Event::Lost { events }), None);
            }
        }
        let mut flags = EpollFlags::empty();
        // Who waits for an answer is still seen to go, but what it asks meanwhile stays in its socket beyond a frame's worth.
        let is_full = self.waits && self.decoder.buffered() > AHEAD_BYTES_MAX;
        if self.queued_bytes <= QUEUE_BYTES_MAX && !is_full {
            flags |= EpollFlags::EPOLLIN;
        }
        if !self.queue.is_empty() {
            flags |= EpollFlags::EPOLLOUT;
        }
        self.socket.watch(reactor, flags).map_err(|_| Gone)
    }

    pub(crate) fn close(self, reactor: &mut Reactor<Source>) {
        self.socket.close(reactor);
    }
}
