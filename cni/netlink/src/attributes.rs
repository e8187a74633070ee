//! Netlink attributes: writing them into a buffer and walking over received ones.
//!
//! Lengths are 16 bits wide; writing a longer attribute is a programming error that [`Attributes::put`] asserts.

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// A growing buffer of attributes.
#[derive(Debug, Default, Clone)]
pub struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// Appends bytes that are no attribute (a fixed header).
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends an attribute, padded to four bytes.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(payload.len() + 4).expect("callers keep attributes below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a received attribute with its flag bits. One that is too long for an attribute was none.
    pub(crate) fn put_flagged(&mut self, kind: u16, flags: u16, payload: &[u8]) -> &mut Self {
        if payload.len() <= usize::from(u16::MAX) - 4 { self.put(kind | flags, payload) } else { self }
    }

    /// A text with its closing NUL.
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// A number in network order, as nf_tables wants them.
    pub fn put_u32_be(&mut self, kind: u16, number: u32) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    /// A number in network order.
    pub fn put_u64_be(&mut self, kind: u16, number: u64) -> &mut Self {
        self.put(kind, &number.to_be_bytes())
    }

    /// An attribute holding attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("callers keep attributes below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The bytes so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Walks over attributes: type without flag bits, payload. Stops at the first malformed one.
pub fn iterate(rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iterate_raw(rest).map(|(kind, _, payload)| (kind, payload))
}

/// The same with the flag bits.
pub(crate) fn iterate_raw(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]);
        let payload = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, kind & !TYPE_MASK, payload))
    })
}

/// The payload of the first attribute of this type.
#[must_use]
pub fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    iterate(attributes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// Four bytes in the machine's order.
#[must_use]
pub fn read_u32_ne(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Four bytes in network order.
#[must_use]
pub fn read_u32_be(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A text up to its NUL.
#[must_use]
pub fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut attributes = Attributes::default();
        attributes.put_text(1, "abc").nest(2, |inner| inner.put_u32_be(3, 7));
        let read: Vec<_> = iterate(attributes.as_bytes()).collect();
        assert_eq!(read[0], (1, &b"abc\0"[..]));
        assert_eq!(find(read[1].1, 3).and_then(read_u32_be), Some(7));
    }

    #[test]
    fn malformed_attributes_end_the_walk() {
        for bytes in [&[1][..], &[0, 0, 0, 0], &[9, 0, 1, 0], &[3, 0, 1, 0], &[255, 255, 1, 0, 5]] {
            assert_eq!(iterate(bytes).count(), 0, "{bytes:?}");
        }
    }
}
