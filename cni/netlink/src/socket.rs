//! A blocking netlink socket that sends many messages at once and tells which of them the kernel refused.
//!
//! Knows netlink's framing (length, type, flags, sequence) and nothing of what is inside. Each message of an
//! [`Outgoing`] carries a label; a refusal comes back as that label, the errno and the kernel's own sentence.
//! Answers to anything but the request at hand (by sequence number) are not looked at; a dump that was interrupted is
//! asked for again; what an answer may take of memory and time is bounded. The protocol is a type, so that a route
//! socket cannot send a netfilter message.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::SocketAddr;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::attributes::{self, Attributes};

/// Room for the largest datagram the kernel sends (dumps use at most 32 KiB per message).
const RECEIVE_BYTES: usize = 128 * 1024;
/// What one answer may hold altogether: some 400,000 elements of a map. Beyond it the answer is an error, not memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How often a dump that raced with a change is asked for again.
const DUMPS_MAX: usize = 16;
/// The kernel answers while it takes the request; who waits longer waits for ever.
const ANSWER_SECONDS_MAX: i64 = 30;
/// Sequence numbers that one request may use.
const SEQUENCES: u32 = 1 << 20;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// On any message of a dump: what is listed changed meanwhile (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;

mod protocol {
    /// A netlink family: what a socket of it can be told.
    pub trait Protocol: std::fmt::Debug {
        /// `NETLINK_*`.
        const NUMBER: isize;
    }
}
pub use protocol::Protocol;

/// Links, addresses, routes.
#[derive(Debug)]
pub enum Route {}
/// nf_tables and conntrack.
#[derive(Debug)]
pub enum Netfilter {}
/// Sockets of this namespace's processes.
#[derive(Debug)]
pub enum Diagnosis {}

impl Protocol for Route {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_ROUTE;
}

impl Protocol for Netfilter {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_NETFILTER;
}

impl Protocol for Diagnosis {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_SOCK_DIAG;
}

/// Why talking to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No socket, usually for want of privileges.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The request did not leave.
    #[error("send {bytes} bytes of netlink messages")]
    Send { bytes: usize, source: io::Error },
    /// The answer did not come.
    #[error("receive a netlink answer")]
    Receive(#[source] io::Error),
    /// The answer is not netlink.
    #[error("the kernel's netlink answer is cut short")]
    Framing,
    /// More than anybody has use for.
    #[error("the kernel's answer to `{label}` is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong { label: String },
    /// Every dump raced with a change.
    #[error("what `{label}` lists changes faster than it can be read")]
    Unsteady { label: String },
    /// The kernel refused a message.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl SocketError {
    /// The errno of a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

/// A message the kernel did not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What the message was for.
    pub label: String,
    /// Positive errno.
    pub errno: i32,
    /// The kernel's explanation, when it gave one.
    pub explanation: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.label, io::Error::from_raw_os_error(self.errno))?;
        if self.explanation.is_empty() { Ok(()) } else { write!(f, " ({})", self.explanation) }
    }
}

impl std::error::Error for Refusal {}

/// One message as received, without its netlink header.
#[derive(Debug, Clone)]
pub struct Received {
    /// Message type.
    pub kind: u16,
    /// Everything after the header.
    pub payload: Vec<u8>,
}

/// Messages to be sent in one call.
#[derive(Debug)]
pub struct Outgoing<P> {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    last_offset: usize,
    is_transaction: bool,
    /// Sequence number of the first message; the others follow.
    first_sequence: u32,
    protocol: PhantomData<P>,
}

impl<P> Default for Outgoing<P> {
    fn default() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let first_sequence = NEXT.fetch_add(SEQUENCES, Ordering::Relaxed);
        Self {
            bytes: Vec::new(),
            messages: Vec::new(),
            last_offset: 0,
            is_transaction: false,
            first_sequence,
            protocol: PhantomData,
        }
    }
}

#[derive(Debug)]
struct Message {
    label: String,
    /// Errors that mean "it is as wanted".
    tolerated: &'static [i32],
    expects_answer: bool,
}

impl<P> Outgoing<P> {
    /// Appends a message that the kernel acknowledges. Errors in `tolerated` count as success.
    pub fn push(&mut self, label: String, kind: u16, flags: u16, payload: &[u8], tolerated: &'static [i32]) {
        self.frame(kind, flags | NLM_F_REQUEST | NLM_F_ACK, payload);
        self.messages.push(Message { label, tolerated, expects_answer: true });
    }

    /// Appends a message of which only a refusal is reported.
    pub fn push_unacknowledged(&mut self, label: String, kind: u16, flags: u16, payload: &[u8]) {
        self.frame(kind, flags | NLM_F_REQUEST, payload);
        self.messages.push(Message { label, tolerated: &[], expects_answer: false });
    }

    /// Has the last message acknowledged, so that the end of all of them is seen.
    pub(crate) fn acknowledge_last(&mut self) {
        if let Some(message) = self.messages.last_mut() {
            message.expects_answer = true;
            let flags = self.last_offset + 6;
            let [low, high] =
                (u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK).to_ne_bytes();
            (self.bytes[flags], self.bytes[flags + 1]) = (low, high);
        }
    }

    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes so far.
    pub(crate) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// All or nothing: a refusal of the first message (nfnetlink's begin) answers for all of them.
    pub(crate) fn into_transaction(mut self) -> Self {
        self.is_transaction = true;
        self
    }

    /// The message that an answer is for; `None` for an answer to another request.
    fn index_of(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.first_sequence)).ok().filter(|index| *index < self.messages.len())
    }

    fn frame(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX);
        let sequence = self.first_sequence.wrapping_add(u32::try_from(self.messages.len()).unwrap_or(u32::MAX));
        self.last_offset = self.bytes.len();
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket<P> {
    inner: netlink_sys::Socket,
    buffer: Vec<u8>,
    protocol: PhantomData<P>,
}

impl<P> AsFd for Socket<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl<P: Protocol> Socket<P> {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`SocketError::Open`].
    pub fn open() -> Result<Self, SocketError> {
        let prepare = || -> io::Result<netlink_sys::Socket> {
            let mut inner = netlink_sys::Socket::new(P::NUMBER)?;
            inner.bind_auto()?;
            // Only what the kernel sends arrives.
            inner.connect(&SocketAddr::new(0, 0))?;
            inner.set_ext_ack(true)?;
            // Without it a refusal repeats the whole refused message, up to 64 KiB of elements.
            inner.set_cap_ack(true)?;
            setsockopt(&inner, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS_MAX))?;
            Ok(inner)
        };
        let inner = prepare().map_err(SocketError::Open)?;
        Ok(Self { inner, buffer: vec![0; RECEIVE_BYTES], protocol: PhantomData })
    }

    /// Opens a socket that hears of what these multicast groups tell, and never blocks.
    ///
    /// # Errors
    /// [`SocketError::Open`].
    pub(crate) fn subscribe(groups: &[u32]) -> Result<Self, SocketError> {
        let prepare = || -> io::Result<netlink_sys::Socket> {
            let mut inner = netlink_sys::Socket::new(P::NUMBER)?;
            inner.bind_auto()?;
            for group in groups {
                inner.add_membership(*group)?;
            }
            inner.set_non_blocking(true)?;
            Ok(inner)
        };
        let inner = prepare().map_err(SocketError::Open)?;
        Ok(Self { inner, buffer: vec![0; RECEIVE_BYTES], protocol: PhantomData })
    }

    /// The messages of one datagram of a socket made by [`Socket::subscribe`]; `None` when there is none now.
    ///
    /// # Errors
    /// [`SocketError::Receive`] with `ENOBUFS` when some were lost.
    pub(crate) fn heard(&mut self) -> Result<Option<Vec<Received>>, SocketError> {
        match self.receive() {
            Ok(answers) => Ok(Some(answers.into_iter().map(|answer| answer.message).collect())),
            Err(SocketError::Receive(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Allows requests of `bytes` and room for many refusals; needs `CAP_NET_ADMIN`.
    pub(crate) fn grow(&self, bytes: usize) -> Result<(), SocketError> {
        let set = || {
            setsockopt(&self.inner, sockopt::SndBufForce, &bytes)?;
            setsockopt(&self.inner, sockopt::RcvBufForce, &(4 << 20))
        };
        set().map_err(|errno| SocketError::Open(errno.into()))
    }

    /// Sends all and waits for the answers; returns what was refused and not tolerated, in order.
    ///
    /// # Errors
    /// Only transport errors; refusals are values.
    pub fn exchange(&mut self, outgoing: &Outgoing<P>) -> Result<Vec<Refusal>, SocketError> {
        if outgoing.is_empty() {
            return Ok(Vec::new());
        }
        self.send(&outgoing.bytes)?;
        let mut open: usize = outgoing.messages.iter().filter(|message| message.expects_answer).count();
        let mut refusals: Vec<(usize, Refusal)> = Vec::new();
        while open > 0 {
            for answer in self.receive()? {
                // Anything else is the late answer to a request that was given up.
                let Some(index) = outgoing.index_of(answer.sequence) else { continue };
                let Some(answer) = answer.acknowledgement else { continue };
                let Some(message) = outgoing.messages.get(index) else { continue };
                open = open.saturating_sub(usize::from(message.expects_answer));
                if outgoing.is_transaction && index == 0 && answer.errno != 0 {
                    open = 0;
                }
                if answer.errno != 0 && !message.tolerated.contains(&answer.errno) {
                    let (label, explanation) = (message.label.clone(), answer.explanation);
                    refusals.push((index, Refusal { label, errno: answer.errno, explanation }));
                }
            }
        }
        refusals.sort_by_key(|(index, _)| *index);
        Ok(refusals.into_iter().map(|(_, refusal)| refusal).collect())
    }

    /// Like [`Socket::exchange`], the first refusal being the error.
    ///
    /// # Errors
    /// Transport errors and refusals.
    pub fn apply(&mut self, outgoing: &Outgoing<P>) -> Result<(), SocketError> {
        match self.exchange(outgoing)?.into_iter().next() {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Sends one request and collects its answer: one message, or with `NLM_F_DUMP` all of them, asked for again when they
    /// changed while they were read.
    ///
    /// # Errors
    /// Transport errors, refusals and answers without bounds.
    pub fn request(
        &mut self,
        label: &str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Vec<Received>, SocketError> {
        for _ in 0..DUMPS_MAX {
            if let Some(received) = self.request_once(label, kind, flags, payload)? {
                return Ok(received);
            }
        }
        Err(SocketError::Unsteady { label: label.to_owned() })
    }

    /// `None` when a dump was interrupted.
    fn request_once(
        &mut self,
        label: &str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Option<Vec<Received>>, SocketError> {
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let flags = flags | NLM_F_REQUEST | if is_dump { 0 } else { NLM_F_ACK };
        let mut outgoing = Outgoing::<P>::default();
        outgoing.frame(kind, flags, payload);
        self.send(&outgoing.bytes)?;
        let (mut collected, mut bytes, mut is_interrupted) = (Vec::new(), 0_usize, false);
        loop {
            for answer in self.receive()? {
                if answer.sequence != outgoing.first_sequence {
                    continue;
                }
                is_interrupted |= answer.is_interrupted;
                if let Some(end) = answer.acknowledgement {
                    if is_dump && (is_interrupted || end.errno == libc::EINTR) {
                        return Ok(None);
                    }
                    if end.errno == 0 {
                        return Ok(Some(collected));
                    }
                    let refusal = Refusal { label: label.to_owned(), errno: end.errno, explanation: end.explanation };
                    return Err(refusal.into());
                }
                bytes = bytes.saturating_add(answer.message.payload.len());
                if bytes > ANSWER_BYTES_MAX {
                    return Err(SocketError::TooLong { label: label.to_owned() });
                }
                collected.push(answer.message);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), SocketError> {
        self.inner.send(bytes, 0).map_err(|source| SocketError::Send { bytes: bytes.len(), source })?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<Answer>, SocketError> {
        let length = loop {
            match self.inner.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SocketError::Receive(error)),
            }
        };
        let datagram = self.buffer.get(..length).ok_or(SocketError::Framing)?;
        split(datagram)
    }
}

#[derive(Debug)]
struct Answer {
    message: Received,
    sequence: u32,
    is_interrupted: bool,
    acknowledgement: Option<Acknowledgement>,
}

#[derive(Debug)]
struct Acknowledgement {
    errno: i32,
    explanation: String,
}

/// Cuts a datagram into messages.
fn split(mut rest: &[u8]) -> Result<Vec<Answer>, SocketError> {
    let mut answers = Vec::new();
    while rest.len() >= HEADER_BYTES {
        let length = attributes::read_u32_ne(&rest[..4]).ok_or(SocketError::Framing)? as usize;
        if length < HEADER_BYTES || length > rest.len() {
            return Err(SocketError::Framing);
        }
        let (header, payload) = rest[..length].split_at(HEADER_BYTES);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = attributes::read_u32_ne(&header[8..12]).ok_or(SocketError::Framing)?;
        let acknowledgement = match kind {
            NLMSG_ERROR | NLMSG_DONE => Some(acknowledgement(kind, flags, payload)?),
            _ => None,
        };
        if kind != NLMSG_NOOP {
            let (message, is_interrupted) =
                (Received { kind, payload: payload.to_vec() }, flags & NLM_F_DUMP_INTR != 0);
            answers.push(Answer { message, sequence, is_interrupted, acknowledgement });
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(answers)
}

fn acknowledgement(kind: u16, flags: u16, payload: &[u8]) -> Result<Acknowledgement, SocketError> {
    let code = match payload.get(..4).and_then(attributes::read_u32_ne) {
        Some(code) => code.cast_signed(),
        None if kind == NLMSG_DONE => 0,
        None => return Err(SocketError::Framing),
    };
    // netlink(7): an error carries the refused header (or all of the message, unless capped), then attributes.
    let explanation = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| {
            let echoed = if kind == NLMSG_DONE {
                0
            } else if flags & NLM_F_CAPPED != 0 {
                HEADER_BYTES
            } else {
                payload.get(4..8).and_then(attributes::read_u32_ne)? as usize
            };
            let tail = payload.get(4_usize.checked_add(echoed.checked_next_multiple_of(4)?)?..)?;
            let text = attributes::iterate(tail).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?.1;
            Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        })
        .flatten()
        .unwrap_or_default();
    Ok(Acknowledgement { errno: code.checked_neg().unwrap_or(libc::EIO), explanation })
}

/// The header nfnetlink puts before attributes: family, version, resource id in network order.
pub(crate) fn nfgenmsg(family: u8, resource: u16) -> Attributes {
    let mut attributes = Attributes::default();
    let [high, low] = resource.to_be_bytes();
    attributes.raw(&[family, 0, high, low]);
    attributes
}

/// What a test or a fuzzer calls: the kernel's bytes cut into messages; how many, or `None` for bytes that are not netlink.
#[doc(hidden)]
#[must_use]
pub fn count_messages(bytes: &[u8]) -> Option<usize> {
    split(bytes).ok().map(|answers| answers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &sequence.to_ne_bytes()];
        [&head.concat(), &[0; 4][..], payload].concat()
    }

    #[test]
    fn answers_are_cut_and_bad_ones_refused() {
        let good = [message(24, 0, 7, &[1; 8]), message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &[0; 4])].concat();
        let cut = split(&good).unwrap();
        assert_eq!(cut.iter().map(|answer| answer.sequence).collect::<Vec<_>>(), [7, 7]);
        assert_eq!(cut.iter().map(|answer| answer.is_interrupted).collect::<Vec<_>>(), [false, true]);
        for bad in [&good[..20], &[255; 16][..], &message(NLMSG_ERROR, 0, 1, &[])] {
            assert!(matches!(split(bad), Err(SocketError::Framing)), "{bad:?}");
        }
        let smallest = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, &[&i32::MIN.to_ne_bytes()[..], &[255; 4]].concat());
        let answers = split(&smallest).unwrap();
        assert_eq!(answers[0].acknowledgement.as_ref().unwrap().errno, libc::EIO);
    }

    #[test]
    fn an_answer_to_another_request_is_not_looked_at() {
        let (mut first, mut second) = (Outgoing::<Route>::default(), Outgoing::<Route>::default());
        first.push("one".into(), 16, 0, &[], &[]);
        second.push("two".into(), 16, 0, &[], &[]);
        second.push("three".into(), 16, 0, &[], &[]);
        let sequence = second.first_sequence;
        assert_eq!((second.index_of(sequence), second.index_of(sequence.wrapping_add(1))), (Some(0), Some(1)));
        assert_eq!((second.index_of(sequence.wrapping_add(2)), first.index_of(sequence)), (None, None));
    }
}
