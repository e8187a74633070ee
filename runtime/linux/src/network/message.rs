//! rtnetlink messages: requests with attributes, their exchange, and the reading of answers. linux/netlink.h, linux/rtnetlink.h.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

pub(super) const NEW_LINK: u16 = 16;
pub(super) const GET_LINK: u16 = 18;
pub(super) const NEW_ADDRESS: u16 = 20;
pub(super) const GET_ADDRESS: u16 = 22;

pub(super) const ACKNOWLEDGE: u16 = 0x04;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE_NEW: u16 = 0x600; // NLM_F_CREATE | NLM_F_EXCL
const REQUEST: u16 = 0x01;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// One read of an answer; the kernel's own dumps fit.
const BUFFER_BYTES: usize = 32 * 1024;
/// Messages that one exchange takes before it gives up: more interfaces and addresses than any host has.
const ANSWERS_MAX: usize = 100_000;

pub(super) fn open() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
}

/// A message under construction: its fixed part, then attributes.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self(bytes)
    }

    /// `ifinfomsg` of one interface; 0 for none.
    pub(super) fn link(kind: u16, flags: u16, index: u32, set: u32) -> Self {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..12].copy_from_slice(&set.to_ne_bytes());
        fixed[12..16].copy_from_slice(&set.to_ne_bytes());
        Self::new(kind, flags, &fixed)
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Sends it and reads every answer: (type, payload). A refusal is its errno.
    pub(super) fn exchange(mut self, socket: &OwnedFd) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
        let length = u32::try_from(self.0.len()).map_err(|_| Errno::EMSGSIZE)?;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        send(socket.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        while answers.len() < ANSWERS_MAX {
            let read = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..read];
            while let Some((kind, payload, behind)) = message(rest) {
                match kind {
                    ERROR => return answer(payload).map(|()| answers),
                    DONE => return Ok(answers),
                    _ => answers.push((kind, payload.to_vec())),
                }
                rest = behind;
            }
        }
        Err(Errno::EMSGSIZE)
    }
}

/// The first message: its type, its payload, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// `nlmsgerr`: 0 is an acknowledgement, otherwise a negative errno.
fn answer(payload: &[u8]) -> Result<(), Errno> {
    let code = payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes).ok_or(Errno::EPROTO)?;
    if code == 0 { Ok(()) } else { Err(Errno::from_raw(code.saturating_neg())) }
}

/// The attributes of a payload, behind its fixed part.
pub(super) fn attributes(payload: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(fixed..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_no_message() {
        let whole = Request::new(NEW_LINK, 0, &[1, 2, 3, 4]).text(3, "lo").0;
        let mut sized = whole.clone();
        sized[..4].copy_from_slice(&u32::try_from(whole.len()).expect("length").to_ne_bytes());
        let (kind, payload, behind) = message(&sized).expect("message");
        assert_eq!((kind, behind.len()), (NEW_LINK, 0));
        assert_eq!(attributes(payload, 4).collect::<Vec<_>>(), [(3, &b"lo\0"[..])]);
        for length in 0..sized.len() {
            assert!(message(&sized[..length]).is_none(), "{length}");
        }
        for length in 0..8 {
            assert!(attributes(&payload[..4 + length.min(6)], 4).next().is_none(), "{length}");
        }
        assert_eq!(answer(&0i32.to_ne_bytes()), Ok(()));
        assert_eq!(answer(&(-17i32).to_ne_bytes()), Err(Errno::EEXIST));
        assert_eq!(answer(&[]), Err(Errno::EPROTO));
    }
}
