//! The query of a request: names with values, in order, decoded. Understands no option; see the verbs.

/// The parsed query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses `a=b&c`; what is not valid encoding is kept as it stands.
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(&name.replace('+', " ")), percent_decode(&value.replace('+', " ")))
        });
        Self { pairs: pairs.collect() }
    }

    /// The first value; an empty one counts as absent.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(key, _)| key == name)
    }

    /// The query as text again, each part passed through `encode`.
    pub fn to_text(&self, encode: impl Fn(&str) -> String) -> String {
        let pairs = self.pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
        pairs.collect::<Vec<_>>().join("&")
    }

    /// A boolean as clients write it: `true`, `1`, or the bare name.
    pub fn flag(&self, name: &str) -> bool {
        let value = self.pairs.iter().find(|(key, _)| key == name);
        value.is_some_and(|(_, value)| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0" | "f"))
    }
}

/// Undoes percent-encoding. What is no valid escape stays; bytes that are no UTF-8 become the replacement character.
pub(crate) fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let out = decoded_bytes(text);
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Undoes percent-encoding; `None` when the bytes are no UTF-8.
pub(crate) fn percent_decode_strict(text: &str) -> Option<String> {
    String::from_utf8(decoded_bytes(text)).ok()
}

fn decoded_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = (bytes[index] == b'%').then(|| bytes.get(index + 1..index + 3)).flatten();
        let decoded = escape.and_then(|hex| {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(digit(hex[0])? * 16 + digit(hex[1])?)
        });
        match decoded {
            Some(byte) => {
                out.push(byte);
                index += 3;
            }
            None => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let check = |text: &str, expect: &str| assert_eq!(percent_decode(text), expect);
        check("a%20b", "a b");
        check("%2", "%2");
        check("%zz%41", "%zzA");
        check("%ff", "\u{FFFD}");
        let query = Query::parse("command=ls&command=-l+a&tty&watch=false&x=");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["ls", "-l a"]);
        assert!(query.flag("tty") && !query.flag("watch") && !query.flag("none"));
        assert_eq!(query.first("x"), None);
    }
}
