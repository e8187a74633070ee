//! D-Bus messages as bytes: D-Bus specification, "Message Protocol". Pure.
//!
//! Written in little endian; read in either. Invariant: a length that a peer names is checked against what is there before it is used.

/// Longest message taken from a peer; the specification allows 128 MiB, and nothing here comes near to this.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A variant's content.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Byte(u8),
    Signed32(i32),
    Number(u32),
    Signed(i64),
    Wide(u64),
    Double(f64),
    String(String),
    Strings(Vec<String>),
    Numbers(Vec<u32>),
    Bytes(Vec<u8>),
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Byte(_) => "y",
            Self::Signed32(_) => "i",
            Self::Number(_) => "u",
            Self::Signed(_) => "x",
            Self::Wide(_) => "t",
            Self::Double(_) => "d",
            Self::String(_) => "s",
            Self::Strings(_) => "as",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(crate) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn number(&mut self, value: u32) -> &mut Self {
        self.align(4);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Self {
        self.number(u32::from(value))
    }

    fn wide(&mut self, value: u64) -> &mut Self {
        self.align(8);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn string(&mut self, text: &str) -> &mut Self {
        self.length(text.len());
        self.0.extend(text.as_bytes());
        self.byte(0)
    }

    pub(crate) fn signature(&mut self, text: &str) -> &mut Self {
        self.byte(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.byte(0)
    }

    fn length(&mut self, length: usize) {
        self.number(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// The length counts from the first element on, whose alignment comes before it.
    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.number(0);
        let at = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::Byte(value) => self.byte(*value),
            Value::Signed32(value) => self.number(value.cast_unsigned()),
            Value::Number(value) => self.number(*value),
            Value::Signed(value) => self.wide(value.cast_unsigned()),
            Value::Wide(value) => self.wide(*value),
            Value::Double(value) => self.wide(value.to_bits()),
            Value::String(text) => self.string(text),
            Value::Strings(all) => self.array(4, |writer| {
                for text in all {
                    writer.string(text);
                }
            }),
            Value::Numbers(all) => self.array(4, |writer| {
                for value in all {
                    writer.number(*value);
                }
            }),
            Value::Bytes(all) => self.array(1, |writer| writer.0.extend(all)),
            Value::Pairs(all) => self.array(8, |writer| {
                for (first, second) in all {
                    writer.align(8);
                    writer.string(first).string(second);
                }
            }),
        };
    }

    /// `a(sv)`.
    pub(crate) fn properties(&mut self, all: &[(String, Value)]) -> &mut Self {
        self.array(8, |writer| {
            for (name, value) in all {
                writer.align(8);
                writer.string(name);
                writer.variant(value);
            }
        })
    }

    /// `a(sa(sv))`, empty.
    pub(crate) fn no_auxiliary_units(&mut self) -> &mut Self {
        self.array(8, |_| {})
    }
}

/// Where a call goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

/// A method call as it goes over the socket.
pub(crate) fn call(serial: u32, to: Object, member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let mut message = Writer::default();
    message.byte(b'l').byte(METHOD_CALL).byte(0).byte(1);
    message.number(u32::try_from(body.0.len()).unwrap_or(u32::MAX)).number(serial);
    message.array(8, |writer| {
        let fields = [(1, "o", to.path), (6, "s", to.destination), (2, "s", to.interface), (3, "s", member)];
        for (code, kind, text) in fields {
            writer.align(8);
            writer.byte(code).signature(kind).string(text);
        }
        if !signature.is_empty() {
            writer.align(8);
            writer.byte(8).signature("g").signature(signature);
        }
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// What came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub kind: u8,
    pub reply_to: u32,
    pub member: String,
    pub error: String,
    pub signature: String,
    pub body: Vec<u8>,
    is_big: bool,
}

impl Incoming {
    pub(crate) const REPLY: u8 = 2;
    pub(crate) const ERROR: u8 = 3;
    pub(crate) const SIGNAL: u8 = 4;

    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0, is_big: self.is_big }
    }
}

/// How long a message is in all, from its first 16 bytes; `None` for what is no message.
pub(crate) fn length(head: &[u8]) -> Option<usize> {
    let is_big = endianness(head)?;
    let mut reader = Reader { bytes: head, at: 4, is_big };
    let (body, _serial, fields) = (reader.number()?, reader.number()?, reader.number()?);
    let fields = usize::try_from(fields).ok()?.checked_next_multiple_of(8)?;
    let length = fields.checked_add(16)?.checked_add(usize::try_from(body).ok()?)?;
    (length <= MESSAGE_BYTES_MAX).then_some(length)
}

fn endianness(bytes: &[u8]) -> Option<bool> {
    match bytes.first()? {
        b'l' => Some(false),
        b'B' => Some(true),
        _ => None,
    }
}

/// A whole message.
pub(crate) fn parse(bytes: &[u8]) -> Option<Incoming> {
    let is_big = endianness(bytes)?;
    let mut reader = Reader { bytes, at: 12, is_big };
    let mut message = Incoming { kind: *bytes.get(1)?, is_big, ..Incoming::default() };
    let fields = usize::try_from(reader.number()?).ok()?;
    let end = reader.at.checked_add(fields)?;
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (5, "u") => message.reply_to = reader.number()?,
            (3, "s") => message.member = reader.string()?,
            (4, "s") => message.error = reader.string()?,
            (8, "g") => message.signature = reader.signature()?,
            (_, "u") => drop(reader.number()?),
            (_, "s" | "o") => drop(reader.string()?),
            (_, "g") => drop(reader.signature()?),
            _ => return None,
        }
    }
    message.body = bytes.get(end.checked_next_multiple_of(8)?..)?.to_vec();
    Some(message)
}

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_big: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(crate) fn number(&mut self) -> Option<u32> {
        self.align(4);
        let is_big = self.is_big;
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    pub(crate) fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.byte().map(|_| text)
    }

    pub(crate) fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.byte().map(|_| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Object = Object { destination: "a.b", path: "/a", interface: "a.C" };

    #[test]
    fn a_call_is_the_bytes_of_the_specification() {
        let mut body = Writer::default();
        body.string("x");
        let bytes = call(1, TO, "M", "s", &body);
        assert_eq!(bytes[..4], [b'l', 1, 0, 1]);
        assert_eq!(bytes.len() % 2, 0);
        assert_eq!(length(&bytes[..16]), Some(bytes.len()));
        let read = parse(&bytes).expect("message");
        assert_eq!((read.kind, read.member.as_str(), read.signature.as_str()), (1, "M", "s"));
        assert_eq!(read.reader().string().as_deref(), Some("x"));
    }

    #[test]
    fn properties_are_aligned() {
        let mut body = Writer::default();
        body.properties(&[("A".to_owned(), Value::Wide(1)), ("B".to_owned(), Value::Bytes(vec![1, 2]))]);
        // Length, padding; "A" at 8 is 4+1+1 bytes to 14, its signature 3 to 17, then 24 to 32; "B" likewise: 32 to 38, 42, length at 44.
        assert_eq!(body.0.len(), 50);
        assert_eq!(body.0[..4], 42u32.to_le_bytes());
        assert_eq!(body.0[24..32], 1u64.to_le_bytes());
    }

    proptest::proptest! {
        #[test]
        fn what_comes_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _length = length(&bytes);
            let mut message = vec![b'l', 2, 0, 1];
            message.extend(&bytes);
            if let Some(message) = parse(&message) {
                let _text = message.reader().string();
            }
        }
    }
}
