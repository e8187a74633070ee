//! Frames on the shim's socket: four bytes of length (big endian), then JSON. Descriptors ride on a frame's first byte.
//!
//! Knows nothing of sockets' blocking or of async: an async caller feeds [`Decoder`] with what it read and writes what
//! [`encode`] returns.
//!
//! Invariant: a frame longer than [`FRAME_BYTES_MAX`] is refused on both sides before memory is taken for it.

use serde::{Serialize, de::DeserializeOwned};

/// Room for a large process environment and for the Info of a thousand containers. A longer frame ends the connection.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {bytes} bytes exceeds the limit of {FRAME_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("a frame is not a valid message")]
    Parse(#[source] serde_json::Error),
    #[error("a message cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

/// A message as the bytes of one frame.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(WireError::Encode)?;
    let bytes = frame.len() - 4;
    match u32::try_from(bytes) {
        Ok(length) if bytes <= FRAME_BYTES_MAX => frame[..4].copy_from_slice(&length.to_be_bytes()),
        _ => return Err(WireError::TooLong { bytes }),
    }
    Ok(frame)
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if its bytes are there. After [`WireError::Parse`] the next one follows; after another error the stream is
    /// out of step: close it.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        self.frame()?.map(|body| serde_json::from_slice(&body).map_err(WireError::Parse)).transpose()
    }

    /// The next whole frame's body, whatever it says.
    pub fn frame(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*head) as usize;
        if bytes > FRAME_BYTES_MAX {
            return Err(WireError::TooLong { bytes });
        }
        let Some(body) = rest.get(..bytes) else { return Ok(None) };
        let body = body.to_vec();
        self.buffer.drain(..body.len().saturating_add(4));
        if self.buffer.is_empty() {
            // An idle connection holds no memory.
            self.buffer = Vec::new();
        }
        Ok(Some(body))
    }

    /// Bytes that wait for the rest of their message, or to be decoded.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether part of a message is waiting for its rest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Call, Request};

    #[test]
    fn frames_survive_any_cut() {
        let call = Call { seq: 7, request: Request::Wait { id: "c1".into(), exec_id: Some("e1".into()) } };
        let mut bytes = encode(&call).unwrap();
        bytes.extend(encode(&Call { seq: 8, request: Request::Info }).unwrap());
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.push(part);
                while let Some(call) = decoder.decode::<Call>().unwrap() {
                    seen.push(call.seq);
                }
            }
            assert_eq!(seen, [7, 8], "cut at {cut}");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn rubbish_is_refused_without_taking_memory() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 8]);
        assert!(matches!(decoder.decode::<Call>(), Err(WireError::TooLong { .. })));
        let mut decoder = Decoder::default();
        decoder.push(b"\0\0\0\x02{]");
        decoder.push(&encode(&Call { seq: 3, request: Request::Info }).unwrap());
        assert!(matches!(decoder.decode::<Call>(), Err(WireError::Parse(_))));
        // The frame was whole: the next one is in step.
        assert_eq!(decoder.decode::<Call>().unwrap().unwrap().seq, 3);
        assert!(encode(&"x".repeat(FRAME_BYTES_MAX)).is_err());
    }

    #[test]
    fn the_wire_format_is_as_documented() {
        let call = Call { seq: 1, request: Request::Signal { id: "c".into(), exec_id: None, signal: 15, all: false } };
        assert_eq!(
            &encode(&call).unwrap()[4..],
            br#"{"seq":1,"request":{"op":"signal","id":"c","signal":15,"all":false}}"#
        );
    }
}
