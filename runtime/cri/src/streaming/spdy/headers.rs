//! Name/value blocks of SPDY/3 (section 2.6.10), compressed with one zlib stream per direction and connection.
//!
//! Invariant: after an error the state is unknown, so the connection must end.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Names in lower case; several values of one name are joined by NUL on the wire, and kept so.
pub(crate) type Headers = BTreeMap<String, String>;

/// Headers of one stream; kubectl sends three.
const HEADERS_MAX: usize = 64;

/// Largest block once decompressed: a bomb ends here.
const BLOCK_LENGTH_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadersError {
    #[error("SPDY header block does not decompress")]
    Decompress(#[source] flate2::DecompressError),
    #[error("SPDY header block does not compress")]
    Compress(#[source] flate2::CompressError),
    #[error("SPDY header block is longer than {BLOCK_LENGTH_MAX} bytes")]
    TooLong,
    #[error("SPDY header block has {0} headers, more than {HEADERS_MAX}")]
    TooMany(usize),
    #[error("SPDY header block ends in the middle of a header")]
    Truncated,
    #[error("SPDY header block has {0} bytes too many")]
    Trailing(usize),
    #[error("SPDY header name is empty, not lower case, or twice in a block")]
    Name,
    #[error("SPDY header is not UTF-8")]
    NotText,
}

#[derive(Debug)]
pub(crate) struct Decoder {
    inflate: Decompress,
    dictionary: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(true), dictionary: dictionary() }
    }

    pub(crate) fn decode(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        parse(Bytes::from(self.inflate(block)?))
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, HeadersError> {
        let mut plain = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let (taken, made) = (self.inflate.total_in(), self.inflate.total_out());
            let outcome = self.inflate.decompress(input, &mut chunk, FlushDecompress::Sync);
            let consumed = usize::try_from(self.inflate.total_in() - taken).unwrap_or(usize::MAX);
            let produced = usize::try_from(self.inflate.total_out() - made).unwrap_or(usize::MAX);
            input = input.get(consumed..).unwrap_or_default();
            plain.extend_from_slice(&chunk[..produced.min(chunk.len())]);
            if plain.len() > BLOCK_LENGTH_MAX {
                return Err(HeadersError::TooLong);
            }
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&self.dictionary).map_err(HeadersError::Decompress)?;
                }
                Err(error) => return Err(HeadersError::Decompress(error)),
                Ok(Status::StreamEnd) => return Ok(plain),
                // Neither taken nor made: the block is used up.
                Ok(_) if produced < chunk.len() && (input.is_empty() || consumed == 0) => return Ok(plain),
                Ok(_) => {}
            }
        }
    }
}

fn parse(mut block: Bytes) -> Result<Headers, HeadersError> {
    let word = |block: &mut Bytes| -> Result<usize, HeadersError> {
        if block.len() < 4 { Err(HeadersError::Truncated) } else { Ok(block.get_u32() as usize) }
    };
    let text = |block: &mut Bytes| -> Result<String, HeadersError> {
        let length = word(block)?;
        if block.len() < length {
            return Err(HeadersError::Truncated);
        }
        String::from_utf8(block.split_to(length).to_vec()).map_err(|_| HeadersError::NotText)
    };
    let count = word(&mut block)?;
    if count > HEADERS_MAX {
        return Err(HeadersError::TooMany(count));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let (name, value) = (text(&mut block)?, text(&mut block)?);
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(HeadersError::Name);
        }
        if headers.insert(name, value).is_some() {
            return Err(HeadersError::Name);
        }
    }
    if block.is_empty() { Ok(headers) } else { Err(HeadersError::Trailing(block.len())) }
}

#[derive(Debug)]
pub(crate) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(crate) fn new() -> Result<Self, HeadersError> {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary()).map_err(HeadersError::Compress)?;
        Ok(Self { deflate })
    }

    pub(crate) fn encode(&mut self, headers: &Headers) -> Result<Bytes, HeadersError> {
        let mut plain = BytesMut::new();
        let length = |length: usize| u32::try_from(length).map_err(|_| HeadersError::TooLong);
        plain.put_u32(length(headers.len())?);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(length(text.len())?);
            plain.put_slice(text.as_bytes());
        }
        // With room left over after a sync flush, zlib has nothing more to say.
        let mut block = Vec::with_capacity(plain.len() * 2 + 64);
        let before = self.deflate.total_in();
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).map_err(HeadersError::Compress)?;
        let taken = usize::try_from(self.deflate.total_in() - before).unwrap_or(usize::MAX);
        if taken != plain.len() || block.len() == block.capacity() {
            return Err(HeadersError::TooLong);
        }
        Ok(Bytes::from(block))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_follow_each_other(
            blocks in proptest::collection::vec(
                proptest::collection::btree_map("[a-z-]{1,12}", "\\PC{0,80}", 0..6), 1..6)
        ) {
            let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new());
            for headers in blocks {
                let block = encoder.encode(&headers).unwrap();
                prop_assert_eq!(decoder.decode(&block).unwrap(), headers);
            }
        }

        #[test]
        fn any_block_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(Bytes::from(bytes.clone()));
            let _ = Decoder::new().decode(&bytes);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        let mut block = Vec::with_capacity(1 << 20);
        deflate.compress_vec(&vec![0; 8 << 20], &mut block, FlushCompress::Sync).unwrap();
        assert!(matches!(Decoder::new().decode(&block), Err(HeadersError::TooLong)));
    }

    #[test]
    fn names_are_checked() {
        let check = |pairs: &[(&str, &str)]| {
            let mut block = BytesMut::new();
            block.put_u32(u32::try_from(pairs.len()).unwrap());
            for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
                block.put_u32(u32::try_from(text.len()).unwrap());
                block.put_slice(text.as_bytes());
            }
            parse(block.freeze())
        };
        assert!(check(&[("port", "80")]).is_ok());
        assert!(matches!(check(&[("a", "1"); 65]), Err(HeadersError::TooMany(65))));
        assert!(matches!(check(&[("Port", "80")]), Err(HeadersError::Name)));
        assert!(matches!(check(&[("", "80")]), Err(HeadersError::Name)));
        assert!(matches!(check(&[("a", "1"), ("a", "2")]), Err(HeadersError::Name)));
    }
}
