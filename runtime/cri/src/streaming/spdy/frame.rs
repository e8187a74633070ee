//! SPDY/3.1 frames: bytes to [`Frame`] and back. Pure; header blocks stay compressed, see `headers`.
//!
//! Invariant: `parse` takes a whole frame or nothing from the buffer, and never looks beyond the length a frame states.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version in every control frame's first word.
const VERSION: u16 = 3;

/// Header bytes of any frame.
const HEADER_LENGTH: usize = 8;

/// Largest control frame taken; a header block of this interface is below one kilobyte.
const CONTROL_LENGTH_MAX: usize = 64 * 1024;

/// Largest data frame: all that 24 bits can say. It is taken in pieces, see [`Parser`].
const DATA_LENGTH_MAX: usize = (1 << 24) - 1;

pub(crate) const FLAG_FIN: u8 = 0x01;

/// Why a stream was reset (section 2.6.3).
pub(crate) mod reset {
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const INVALID_STREAM: u32 = 2;
    pub(crate) const REFUSED_STREAM: u32 = 3;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream { stream: u32, associated: u32, priority: u8, fin: bool, block: Bytes },
    SynReply { stream: u32, fin: bool, block: Bytes },
    RstStream { stream: u32, status: u32 },
    Settings { entries: Vec<(u32, u32)> },
    Ping { id: u32 },
    GoAway { last_stream: u32, status: u32 },
    Headers { stream: u32, fin: bool, block: Bytes },
    WindowUpdate { stream: u32, delta: u32 },
    Data { stream: u32, fin: bool, data: Bytes },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("SPDY version {0} is not 3")]
    Version(u16),
    #[error("SPDY control frame type {0} is unknown")]
    UnknownType(u16),
    #[error("SPDY frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("SPDY control frame type {kind} cannot have {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("SPDY stream id 0 in a frame of type {0}")]
    StreamZero(u16),
}

/// Cuts a byte stream into frames. The data of one comes in pieces, as it arrives, so that nobody's frame is held until it is whole:
/// Go's `io.Copy` sends as one frame whatever it is given.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    data: Option<Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Parser {
    /// The next frame or piece; `None` when more must be read first. A frame's FIN comes with its last piece.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if self.data.is_none() {
            let is_data = buffer.first().is_some_and(|first| first & 0x80 == 0);
            if !is_data {
                return Frame::parse(buffer);
            }
            if buffer.len() < HEADER_LENGTH {
                return Ok(None);
            }
            let (stream, word) = (buffer.get_u32(), buffer.get_u32());
            if stream == 0 {
                return Err(FrameError::StreamZero(0));
            }
            let fin = (word >> 24) & u32::from(FLAG_FIN) != 0;
            self.data = Some(Unfinished { stream, fin, left: (word & 0x00ff_ffff) as usize });
        }
        let Some(data) = &mut self.data else { return Ok(None) };
        let length = data.left.min(buffer.len());
        if length == 0 && data.left > 0 {
            return Ok(None);
        }
        data.left = data.left.saturating_sub(length);
        let is_last = data.left == 0;
        let frame =
            Frame::Data { stream: data.stream, fin: data.fin && is_last, data: buffer.split_to(length).freeze() };
        if is_last {
            self.data = None;
        }
        Ok(Some(frame))
    }
}

impl Frame {
    /// Takes one frame off the front of `buffer`; `None` when it is not there as a whole yet.
    pub(crate) fn parse(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        if buffer.len() < HEADER_LENGTH {
            return Ok(None);
        }
        let first = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        let flags = buffer[4];
        let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
        let control = first & 0x8000_0000 != 0;
        // The limit is checked before the body is waited for, so that a liar costs no memory.
        if length > if control { CONTROL_LENGTH_MAX } else { DATA_LENGTH_MAX } {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEADER_LENGTH + length {
            return Ok(None);
        }
        buffer.advance(HEADER_LENGTH);
        let body = buffer.split_to(length).freeze();
        if !control {
            if first == 0 {
                return Err(FrameError::StreamZero(0));
            }
            return Ok(Some(Self::Data { stream: first, fin: flags & FLAG_FIN != 0, data: body }));
        }
        let version = u16::try_from((first >> 16) & 0x7fff).expect("fifteen bits fit");
        let kind = u16::try_from(first & 0xffff).expect("sixteen bits fit");
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        Self::parse_control(kind, flags, body).map(Some)
    }

    fn parse_control(kind: u16, flags: u8, mut body: Bytes) -> Result<Self, FrameError> {
        let length = body.len();
        let need = match kind {
            1 => 10,
            2 | 8 => 4,
            3 | 7 | 9 => 8,
            4 | 6 => 4,
            other => return Err(FrameError::UnknownType(other)),
        };
        let fixed = matches!(kind, 3 | 6 | 7 | 9);
        if length < need || (fixed && length != need) {
            return Err(FrameError::Length { kind, length });
        }
        let fin = flags & FLAG_FIN != 0;
        let id = |word: u32| word & 0x7fff_ffff;
        let frame = match kind {
            1 => {
                let (stream, associated) = (id(body.get_u32()), id(body.get_u32()));
                let priority = body.get_u8() >> 5;
                body.advance(1);
                Self::SynStream { stream, associated, priority, fin, block: body }
            }
            2 => Self::SynReply { stream: id(body.get_u32()), fin, block: body },
            3 => Self::RstStream { stream: id(body.get_u32()), status: body.get_u32() },
            4 => {
                let count = body.get_u32() as usize;
                if body.len() != count.saturating_mul(8) {
                    return Err(FrameError::Length { kind, length });
                }
                let entries = (0..count).map(|_| (body.get_u32() & 0x00ff_ffff, body.get_u32())).collect();
                Self::Settings { entries }
            }
            6 => Self::Ping { id: body.get_u32() },
            7 => Self::GoAway { last_stream: id(body.get_u32()), status: body.get_u32() },
            8 => Self::Headers { stream: id(body.get_u32()), fin, block: body },
            _ => Self::WindowUpdate { stream: id(body.get_u32()), delta: id(body.get_u32()) },
        };
        match frame {
            Self::SynStream { stream: 0, .. }
            | Self::SynReply { stream: 0, .. }
            | Self::RstStream { stream: 0, .. }
            | Self::Headers { stream: 0, .. } => Err(FrameError::StreamZero(kind)),
            frame => Ok(frame),
        }
    }

    /// Appends the frame's bytes. Blocks and data must respect the limits that `parse` holds peers to.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::SynStream { stream, associated, priority, fin, block } => {
                control(out, 1, *fin, 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(*associated);
                out.put_u8(priority << 5);
                out.put_u8(0);
                out.put_slice(block);
            }
            Self::SynReply { stream, fin, block } => stream_block(out, 2, *stream, *fin, block),
            Self::Headers { stream, fin, block } => stream_block(out, 8, *stream, *fin, block),
            Self::RstStream { stream, status } => two_words(out, 3, *stream, *status),
            Self::GoAway { last_stream, status } => two_words(out, 7, *last_stream, *status),
            Self::WindowUpdate { stream, delta } => two_words(out, 9, *stream, *delta),
            Self::Settings { entries } => {
                control(out, 4, false, 4 + 8 * entries.len());
                out.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for (id, value) in entries {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Self::Ping { id } => {
                control(out, 6, false, 4);
                out.put_u32(*id);
            }
            Self::Data { stream, fin, data } => {
                out.put_u32(*stream);
                put_length(out, *fin, data.len());
                out.put_slice(data);
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(out, fin, length);
}

fn put_length(out: &mut BytesMut, fin: bool, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    let flags = if fin { u32::from(FLAG_FIN) << 24 } else { 0 };
    out.put_u32(flags | length);
}

fn stream_block(out: &mut BytesMut, kind: u16, stream: u32, fin: bool, block: &[u8]) {
    control(out, kind, fin, 4 + block.len());
    out.put_u32(stream);
    out.put_slice(block);
}

fn two_words(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = 1_u32..0x8000_0000;
        let block = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), 0_u32..0x8000_0000, 0_u8..8, any::<bool>(), block()).prop_map(
                |(stream, associated, priority, fin, block)| Frame::SynStream {
                    stream,
                    associated,
                    priority,
                    fin,
                    block
                }
            ),
            (stream.clone(), any::<bool>(), block()).prop_map(|(stream, fin, block)| Frame::SynReply {
                stream,
                fin,
                block
            }),
            (stream.clone(), any::<bool>(), block()).prop_map(|(stream, fin, block)| Frame::Headers {
                stream,
                fin,
                block
            }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            (0_u32..0x8000_0000, any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
            (0_u32..0x8000_0000, 0_u32..0x8000_0000).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            proptest::collection::vec((0_u32..0x0100_0000, any::<u32>()), 0..9)
                .prop_map(|entries| Frame::Settings { entries }),
            (stream, any::<bool>(), block()).prop_map(|(stream, fin, data)| Frame::Data { stream, fin, data }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed(sent in proptest::collection::vec(frames(), 0..8), cut in 1_usize..40) {
            let mut wire = BytesMut::new();
            for frame in &sent {
                frame.encode(&mut wire);
            }
            // Fed in small pieces: a partial frame is never an error.
            let (mut buffer, mut received) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::parse(&mut buffer).unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn data_comes_in_pieces_and_nothing_else_changes(
            sent in proptest::collection::vec(frames(), 0..8), cut in 1_usize..40,
        ) {
            let mut wire = BytesMut::new();
            for frame in &sent {
                frame.encode(&mut wire);
            }
            // Data as (stream, byte) and ends, so that it does not matter how it was cut.
            let flat = |frames: &[Frame]| {
                let mut flat = Vec::new();
                for frame in frames {
                    match frame {
                        Frame::Data { stream, fin, data } => {
                            flat.extend(data.iter().map(|byte| format!("{stream} {byte}")));
                            flat.extend(fin.then(|| format!("{stream} fin")));
                        }
                        other => flat.push(format!("{other:?}")),
                    }
                }
                flat
            };
            let (mut parser, mut buffer, mut received) = (Parser::default(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = parser.next(&mut buffer).unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(flat(&received), flat(&sent));
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::parse(&mut buffer) {}
        }
    }

    #[test]
    fn refused() {
        let check = |bytes: &[u8], expect: FrameError| {
            assert_eq!(Frame::parse(&mut BytesMut::from(bytes)), Err(expect));
        };
        check(&[0x80, 2, 0, 1, 0, 0, 0, 0], FrameError::Version(2));
        check(&[0x80, 3, 0, 5, 0, 0, 0, 0], FrameError::UnknownType(5));
        check(&[0x80, 3, 0, 6, 0, 0, 0, 3, 1, 2, 3], FrameError::Length { kind: 6, length: 3 });
        check(&[0x80, 3, 0, 1, 0, 1, 0, 1], FrameError::TooLong(0x0001_0001));
        check(&[0, 0, 0, 0, 0, 0, 0, 0], FrameError::StreamZero(0));
        // A count of settings that no frame could hold.
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        check(&settings, FrameError::Length { kind: 4, length: 4 });
    }
}
