//! Lets in clients whose `:authority` is no authority.
//!
//! gRPC's C core (Python, C++, Ruby) sends the escaped path of a Unix socket, `run%2Fsampan%2Fcri.sock`, where RFC 3986, section 3.2,
//! has no `%2F`; the HTTP/2 library answers such a request with PROTOCOL_ERROR, and other runtimes take it. Nobody here looks at the
//! authority, so its value is replaced by one byte before the library reads it.
//!
//! Invariants: of all other bytes none is changed. A replaced value is never longer, so the library's dynamic table (RFC 7541, section
//! 4.4) evicts no earlier than the client's, and indices, which count from the newest entry, mean the same to both.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`, RFC 9113, section 3.4.
const PREFACE_LENGTH: usize = 24;
const HEAD_LENGTH: usize = 9;
/// The largest frame that a server takes unless it says otherwise, which ours does not; RFC 9113, section 4.2.
const FRAME_LENGTH_MAX: usize = 16_384;
/// Header blocks in more frames than fit here end the connection; the library's own limit is a quarter of it.
const BLOCK_LENGTH_MAX: usize = 64 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const NAME: &[u8] = b":authority";
/// The same by the code of RFC 7541, appendix B.
const NAME_CODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// Its index in the static table, RFC 7541, appendix A.
const NAME_INDEX: u32 = 1;
const REPLACEMENT: u8 = b'x';

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an HTTP/2 header block is longer than {BLOCK_LENGTH_MAX} bytes, or interrupted")]
struct Broken;

/// What comes next in the stream of frames.
#[derive(Debug)]
enum Next {
    /// So many bytes that are not looked at.
    Pass(usize),
    Head,
    /// The rest of a header block.
    Continued(Block),
}

#[derive(Debug)]
struct Block {
    stream: u32,
    flags: u8,
    priority: Bytes,
    fields: BytesMut,
}

#[derive(Debug)]
struct Rewriter {
    next: Next,
}

impl Rewriter {
    fn new() -> Self {
        Self { next: Next::Pass(PREFACE_LENGTH) }
    }

    /// Moves what can be judged from `input` to `out`.
    fn feed(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<(), Broken> {
        loop {
            if let Next::Pass(left) = &mut self.next {
                let length = (*left).min(input.len());
                out.put(input.split_to(length));
                *left = left.saturating_sub(length);
                if *left > 0 {
                    return Ok(());
                }
                self.next = Next::Head;
            }
            if input.len() < HEAD_LENGTH {
                return Ok(());
            }
            let length = usize::from(input[0]) << 16 | usize::from(input[1]) << 8 | usize::from(input[2]);
            let (kind, flags) = (input[3], input[4]);
            let stream = u32::from_be_bytes([input[5], input[6], input[7], input[8]]);
            let is_continued = matches!(self.next, Next::Continued(_));
            if !is_continued && (kind != HEADERS || length > FRAME_LENGTH_MAX) {
                // The library judges what is too long.
                self.next = Next::Pass(HEAD_LENGTH.saturating_add(length));
                continue;
            }
            if is_continued && (kind != CONTINUATION || length > FRAME_LENGTH_MAX) {
                return Err(Broken);
            }
            if input.len() < HEAD_LENGTH.saturating_add(length) {
                return Ok(());
            }
            let mut frame = input.split_to(HEAD_LENGTH.saturating_add(length));
            let block = match std::mem::replace(&mut self.next, Next::Head) {
                Next::Continued(mut block) => {
                    if block.stream != stream {
                        return Err(Broken);
                    }
                    frame.advance(HEAD_LENGTH);
                    block.fields.unsplit(frame);
                    block
                }
                _ => match Block::begin(stream, flags, frame.clone().freeze()) {
                    Some(block) => block,
                    // Padding or priority that do not fit: for the library to refuse.
                    None => {
                        out.put(frame);
                        continue;
                    }
                },
            };
            if block.fields.len() > BLOCK_LENGTH_MAX {
                return Err(Broken);
            }
            if flags & END_HEADERS == 0 {
                self.next = Next::Continued(block);
            } else {
                block.write(out);
            }
        }
    }
}

impl Block {
    /// A HEADERS frame without its padding; RFC 9113, section 6.2.
    fn begin(stream: u32, flags: u8, mut frame: Bytes) -> Option<Self> {
        frame.advance(HEAD_LENGTH);
        if flags & PADDED != 0 {
            let padding = usize::from(frame.first().copied()?);
            frame.advance(1);
            frame.truncate(frame.len().checked_sub(padding)?);
        }
        let priority = if flags & PRIORITY == 0 {
            Bytes::new()
        } else if frame.len() >= 5 {
            frame.split_to(5)
        } else {
            return None;
        };
        Some(Self { stream, flags, priority, fields: BytesMut::from(&frame[..]) })
    }

    /// As frames again, each of a length that is allowed.
    fn write(self, out: &mut BytesMut) {
        let mut fields = replace(&self.fields).map_or(self.fields.freeze(), Bytes::from);
        let room = FRAME_LENGTH_MAX.saturating_sub(self.priority.len());
        let mut part = fields.split_to(fields.len().min(room));
        let ends = |rest: &Bytes| if rest.is_empty() { END_HEADERS } else { 0 };
        let flags = (self.flags & (END_STREAM | PRIORITY)) | ends(&fields);
        head(out, self.priority.len().saturating_add(part.len()), HEADERS, flags, self.stream);
        out.put(self.priority);
        out.put(part);
        while !fields.is_empty() {
            part = fields.split_to(fields.len().min(FRAME_LENGTH_MAX));
            head(out, part.len(), CONTINUATION, ends(&fields), self.stream);
            out.put(part);
        }
    }
}

fn head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.put_slice(&length[1..]);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

/// The fields with another authority; `None` where there is nothing to replace, or what is no header block.
fn replace(fields: &[u8]) -> Option<Vec<u8>> {
    let mut rest = fields;
    let mut written = Vec::with_capacity(fields.len());
    let mut replaced = false;
    while let Some(first) = rest.first().copied() {
        let before = rest;
        // RFC 7541, sections 6.1 to 6.3: indexed, literal with indexing, table size, literal without.
        let name_bits = match first {
            0x80.. => {
                integer(&mut rest, 7)?;
                None
            }
            0x40.. => Some(6),
            0x20.. => {
                integer(&mut rest, 5)?;
                None
            }
            _ => Some(4),
        };
        let mut is_authority = false;
        if let Some(bits) = name_bits {
            let index = integer(&mut rest, bits)?;
            is_authority = index == NAME_INDEX;
            if index == 0 {
                let (coded, name) = string(&mut rest)?;
                is_authority = name == if coded { NAME_CODED } else { NAME };
            }
        }
        let named = &before[..before.len().saturating_sub(rest.len())];
        written.extend_from_slice(named);
        if name_bits.is_some() {
            let before = rest;
            let (_, value) = string(&mut rest)?;
            if is_authority && !value.is_empty() {
                replaced = true;
                written.extend_from_slice(&[1, REPLACEMENT]);
            } else {
                written.extend_from_slice(&before[..before.len().saturating_sub(rest.len())]);
            }
        }
    }
    replaced.then_some(written)
}

/// RFC 7541, section 5.1.
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Option<u32> {
    let mask = u32::MAX >> 32_u32.checked_sub(prefix_bits)?;
    let mut value = u32::from(take(rest)?) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = u32::from(take(rest)?);
        value = value.checked_add((byte & 0x7f) << shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541, section 5.2: whether it is coded, and its bytes.
fn string<'a>(rest: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let coded = rest.first()? & 0x80 != 0;
    let length = usize::try_from(integer(rest, 7)?).ok()?;
    let (found, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some((coded, found))
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

/// A connection whose client may call the server what it likes.
#[derive(Debug)]
pub(crate) struct AnyAuthority<S> {
    inner: S,
    rewriter: Rewriter,
    unread: BytesMut,
    judged: BytesMut,
}

impl<S> AnyAuthority<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, rewriter: Rewriter::new(), unread: BytesMut::new(), judged: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.judged.is_empty() {
            let mut chunk = [0; 8192];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.unread.extend_from_slice(read.filled());
            let fed = this.rewriter.feed(&mut this.unread, &mut this.judged);
            fed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        let length = this.judged.len().min(buffer.remaining());
        buffer.put_slice(&this.judged.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `:path`, `:authority`, `:method` and `content-type` as grpc-python 1.85 sends them.
    const C_CORE: &[u8] =
        b"\x40\x05:path\x22/runtime.v1.RuntimeService/Version\x40\x0a:authority\x13tmp%2Fcap-test.sock\
        \x83\x86\x40\x0ccontent-type\x10application/grpc";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        head(&mut out, payload.len(), kind, flags, stream);
        out.put_slice(payload);
        out.to_vec()
    }

    fn rewrite(frames: &[Vec<u8>], cut: usize) -> Result<Vec<u8>, Broken> {
        let wire = [vec![b'P'; PREFACE_LENGTH], frames.concat()].concat();
        let (mut rewriter, mut input, mut out) = (Rewriter::new(), BytesMut::new(), BytesMut::new());
        for piece in wire.chunks(cut) {
            input.extend_from_slice(piece);
            rewriter.feed(&mut input, &mut out)?;
        }
        Ok(out.split_off(PREFACE_LENGTH).to_vec())
    }

    #[test]
    fn the_authority_is_replaced_and_nothing_else() {
        let check = |fields: &[u8], expect: Option<&[u8]>| assert_eq!(replace(fields).as_deref(), expect, "{fields:?}");
        let expect = b"\x40\x05:path\x22/runtime.v1.RuntimeService/Version\x40\x0a:authority\x01x\
            \x83\x86\x40\x0ccontent-type\x10application/grpc";
        check(C_CORE, Some(expect));
        // By the static table, with and without indexing, and never indexed.
        check(b"\x41\x09localhost\x83", Some(b"\x41\x01x\x83"));
        check(b"\x01\x05a%2Fb", Some(b"\x01\x01x"));
        check(b"\x11\x05a%2Fb", Some(b"\x11\x01x"));
        let coded = [&[0x40, 0x80 | 8], NAME_CODED, b"\x05a%2Fb"].concat();
        check(&coded, Some(&[&[0x40, 0x80 | 8], NAME_CODED, b"\x01x"].concat()));
        // Nothing there, an empty one (a longer one would evict more), or no header block at all.
        check(b"\x83\x86\x20", None);
        check(b"\x41\x00", None);
        check(b"\x41\x7f\xff\xff\xff\xff\xff", None);
        check(b"\x41\x09local", None);
    }

    #[test]
    fn frames_are_kept_whatever_they_are_cut_into() {
        let padded = [&[3], C_CORE, &[0, 0, 0]].concat();
        let urgent = [b"\0\0\0\0\x10", C_CORE].concat();
        let short = replace(C_CORE).unwrap();
        for cut in [1, 2, 7, 10_000] {
            let check = |frames: &[Vec<u8>], expect: &[Vec<u8>]| {
                assert_eq!(rewrite(frames, cut).unwrap(), expect.concat(), "cut into {cut}");
            };
            let settings = frame(4, 0, 0, &[0; 6]);
            let data = frame(0, END_STREAM, 1, &[7; 5]);
            let one = frame(HEADERS, END_HEADERS, 1, C_CORE);
            let expect = frame(HEADERS, END_HEADERS, 1, &short);
            check(&[settings.clone(), one, data.clone()], &[settings, expect.clone(), data]);
            check(&[frame(HEADERS, END_HEADERS | PADDED, 1, &padded)], &[expect]);
            let expect = frame(HEADERS, END_HEADERS | PRIORITY, 1, &[b"\0\0\0\0\x10", short.as_slice()].concat());
            check(&[frame(HEADERS, END_HEADERS | PRIORITY, 1, &urgent)], &[expect]);
            let (left, right) = C_CORE.split_at(50);
            let parts = [frame(HEADERS, END_STREAM, 3, left), frame(CONTINUATION, END_HEADERS, 3, right)];
            check(&parts, &[frame(HEADERS, END_STREAM | END_HEADERS, 3, &short)]);
        }
    }

    #[test]
    fn a_block_without_end_ends_the_connection() {
        let begin = frame(HEADERS, 0, 1, b"\x83");
        let more = frame(CONTINUATION, 0, 1, &[0x83; FRAME_LENGTH_MAX]);
        assert_eq!(rewrite(&[vec![begin.clone()], vec![more; 5]].concat(), 10_000), Err(Broken));
        assert_eq!(rewrite(&[begin.clone(), frame(0, 0, 1, b"x")], 10_000), Err(Broken));
        assert_eq!(rewrite(&[begin, frame(CONTINUATION, END_HEADERS, 3, b"")], 10_000), Err(Broken));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1_usize..50) {
            let _ = replace(&bytes);
            let _ = rewrite(std::slice::from_ref(&bytes), cut);
        }

        #[test]
        fn what_is_replaced_is_no_longer_than_before(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(written) = replace(&bytes) {
                prop_assert!(written.len() <= bytes.len());
            }
        }
    }
}
