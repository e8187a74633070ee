//! A blocking netlink socket that sends many messages at once and tells which of them the kernel refused.
//!
//! Knows netlink's framing (length, type, flags, sequence) and nothing of what is inside. Each message of an
//! [`Outgoing`] carries a label; a refusal comes back as that label, the errno and the kernel's own sentence.

use std::fmt;
use std::io;

use netlink_sys::SocketAddr;
use nix::sys::socket::{setsockopt, sockopt};

use crate::attributes::{self, Attributes};

/// Room for the largest datagram the kernel sends (dumps use at most 32 KiB per message).
const RECEIVE_BYTES: usize = 128 * 1024;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;

/// The netlink families used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes.
    Route,
    /// nf_tables and conntrack.
    Netfilter,
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
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    last_offset: usize,
    is_transaction: bool,
}

#[derive(Debug)]
struct Message {
    label: String,
    /// Errors that mean "it is as wanted".
    tolerated: &'static [i32],
    expects_answer: bool,
}

impl Outgoing {
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

    fn frame(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX);
        // The sequence number within the request is the message's index; the socket adds its own base when sending.
        let sequence = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
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
pub struct Socket {
    inner: netlink_sys::Socket,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`SocketError::Open`].
    pub fn open(protocol: Protocol) -> Result<Self, SocketError> {
        let number = match protocol {
            Protocol::Route => netlink_sys::protocols::NETLINK_ROUTE,
            Protocol::Netfilter => netlink_sys::protocols::NETLINK_NETFILTER,
        };
        let prepare = || -> io::Result<netlink_sys::Socket> {
            let mut inner = netlink_sys::Socket::new(number)?;
            inner.bind_auto()?;
            inner.connect(&SocketAddr::new(0, 0))?;
            inner.set_ext_ack(true)?;
            // Without it a refusal repeats the whole refused message, up to 64 KiB of elements.
            inner.set_cap_ack(true)?;
            Ok(inner)
        };
        let inner = prepare().map_err(SocketError::Open)?;
        Ok(Self { inner, buffer: vec![0; RECEIVE_BYTES] })
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
    pub fn exchange(&mut self, outgoing: &Outgoing) -> Result<Vec<Refusal>, SocketError> {
        if outgoing.is_empty() {
            return Ok(Vec::new());
        }
        self.send(&outgoing.bytes)?;
        let mut open: usize = outgoing.messages.iter().filter(|message| message.expects_answer).count();
        let mut refusals: Vec<(usize, Refusal)> = Vec::new();
        while open > 0 {
            for answer in self.receive()? {
                let Some(answer) = answer.acknowledgement else { continue };
                let index = usize::try_from(answer.sequence).unwrap_or(usize::MAX);
                let Some(message) = outgoing.messages.get(index) else { continue };
                open -= usize::from(message.expects_answer);
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
    pub fn apply(&mut self, outgoing: &Outgoing) -> Result<(), SocketError> {
        match self.exchange(outgoing)?.into_iter().next() {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Sends one request and collects its answer: one message, or with `NLM_F_DUMP` all of them.
    ///
    /// # Errors
    /// Transport errors and refusals; `EINTR` of an interrupted dump is a refusal the caller may retry.
    pub fn request(
        &mut self,
        label: &str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Vec<Received>, SocketError> {
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut outgoing = Outgoing::default();
        outgoing.frame(kind, flags | NLM_F_REQUEST | if is_dump { 0 } else { NLM_F_ACK }, payload);
        self.send(&outgoing.bytes)?;
        let mut collected = Vec::new();
        loop {
            for answer in self.receive()? {
                if let Some(end) = answer.acknowledgement {
                    if end.errno == 0 {
                        return Ok(collected);
                    }
                    let refusal = Refusal { label: label.to_owned(), errno: end.errno, explanation: end.explanation };
                    return Err(refusal.into());
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

struct Answer {
    message: Received,
    acknowledgement: Option<Acknowledgement>,
}

struct Acknowledgement {
    sequence: u32,
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
            NLMSG_ERROR | NLMSG_DONE => Some(acknowledgement(kind, flags, sequence, payload)?),
            _ => None,
        };
        if kind != NLMSG_NOOP {
            answers.push(Answer { message: Received { kind, payload: payload.to_vec() }, acknowledgement });
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(answers)
}

fn acknowledgement(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Result<Acknowledgement, SocketError> {
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
            let tail = payload.get(4 + echoed.next_multiple_of(4)..)?;
            let text = attributes::iterate(tail).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)?.1;
            Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        })
        .flatten()
        .unwrap_or_default();
    Ok(Acknowledgement { sequence, errno: -code, explanation })
}

/// The header nfnetlink puts before attributes: family, version, resource id in network order.
pub(crate) fn nfgenmsg(family: u8, resource: u16) -> Attributes {
    let mut attributes = Attributes::default();
    let [high, low] = resource.to_be_bytes();
    attributes.raw(&[family, 0, high, low]);
    attributes
}
