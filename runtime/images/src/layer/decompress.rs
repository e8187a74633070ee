//! gzip, zstd or plain, told by the first bytes: media types lie often enough.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

const BUFFER_BYTES: usize = 256 << 10;

/// The plain bytes of `source`.
pub(crate) fn decompressed<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(BUFFER_BYTES, source);
    let mut start = [0; 4];
    let mut have = 0;
    // A short first read must not hide the signature.
    while have < start.len() {
        match source.fill_buf()? {
            [] => break,
            [first, ..] => start[have] = *first,
        }
        source.consume(1);
        have += 1;
    }
    let source = io::Cursor::new(start[..have].to_vec()).chain(source);
    Ok(match start {
        // More than one gzip member may follow the other (RFC 1952, section 2.2).
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(zstd::Decoder::with_buffer(source)?),
        _ => Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn check(input: &[u8], expect: &[u8]) {
        let mut out = Vec::new();
        decompressed(input).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, expect);
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn formats() {
        check(b"", b"");
        check(b"abc", b"abc");
        check(b"plain text", b"plain text");
        check(&gzip(b"zipped"), b"zipped");
        check(&[gzip(b"one "), gzip(b"two")].concat(), b"one two");
        check(&zstd::encode_all(&b"standard"[..], 1).unwrap(), b"standard");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &zstd::encode_all(&b"z"[..], 1).unwrap()];
        check(&skippable.concat(), b"z");
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let whole = gzip(&[7; 5000]);
        let cut = decompressed(&whole[..whole.len() / 2]).unwrap().read_to_end(&mut Vec::new());
        assert!(cut.is_err());
    }
}
