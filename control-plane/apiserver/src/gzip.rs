//! Large answers, packed for callers that accept it. Streams are never packed: their events must not wait for each other.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, header};

/// Bodies smaller than this are not worth the time.
const BYTES_MIN: usize = 128 << 10;

pub(crate) fn accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| {
        let (name, parameters) = one.split_once(';').unwrap_or((one, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !parameters.trim().starts_with("q=0;") && parameters.trim() != "q=0"
    })
}

/// The body to send, and whether it is packed.
pub(crate) fn pack(accepted: bool, bytes: Bytes) -> (Bytes, bool) {
    if !accepted || bytes.len() < BYTES_MIN {
        return (bytes, false);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(packed) => (Bytes::from(packed), true),
        // Writing to memory does not fail; should it, the plain body serves as well.
        Err(_) => (bytes, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn packs_what_is_large_for_who_accepts_it() {
        let large = Bytes::from(vec![b'x'; BYTES_MIN]);
        assert!(!pack(false, large.clone()).1);
        assert!(!pack(true, large.slice(1..)).1);
        let (packed, yes) = pack(true, large.clone());
        assert!(yes && packed.len() < large.len() / 10);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, large);
    }

    #[test]
    fn reads_the_header() {
        let check = |value: &str, expect: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepted(&headers), expect, "{value}");
        };
        check("gzip", true);
        check("br, gzip;q=0.5", true);
        check("gzip;q=0", false);
        check("br", false);
    }
}
