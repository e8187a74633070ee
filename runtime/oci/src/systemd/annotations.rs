//! `org.systemd.property.NAME` annotations: a unit's property, in GVariant's text format as far as properties of units use it.

use super::message::Value;
use crate::error::Error;
use crate::plan::invalid;

/// `true`, `'text'`, `['a', 'b']`, `uint64 5`, `-3`, `2.5`; a name that ends in `Sec` is told in seconds and sent as `USec`, as systemd's own
/// files say it.
pub(crate) fn parse(name: &str, text: &str) -> Result<(String, Value), Error> {
    let wrong = || {
        invalid(
            &format!("annotations.org.systemd.property.{name}"),
            &format!("\"{text}\" is not true, a number, a 'text' or a list of texts"),
        )
    };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(invalid("annotations", &format!("org.systemd.property.{name} is not a property's name")));
    }
    let value = value(text.trim()).ok_or_else(wrong)?;
    match name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase())) {
        Some(stem) => Ok((format!("{stem}USec"), microseconds(&value).ok_or_else(wrong)?)),
        None => Ok((name.to_owned(), value)),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a negative time is refused, a large one is the largest"
)]
fn microseconds(value: &Value) -> Option<Value> {
    let seconds = match value {
        Value::Byte(value) => f64::from(*value),
        Value::Signed32(value) => f64::from(*value),
        Value::Number(value) => f64::from(*value),
        Value::Double(value) => *value,
        Value::Signed(value) => f64::from(i32::try_from(*value).ok()?),
        Value::Wide(value) => f64::from(u32::try_from(*value).ok()?),
        _ => return None,
    };
    (seconds >= 0.0).then_some(Value::Wide((seconds * 1e6) as u64))
}

fn value(text: &str) -> Option<Value> {
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let all: Option<Vec<String>> = inside.split(',').map(|part| quoted(part.trim())).collect();
        return all.map(Value::Strings);
    }
    if text.starts_with(['\'', '"']) {
        return quoted(text).map(Value::String);
    }
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        return match kind {
            "byte" => number.parse().ok().map(Value::Byte),
            "int32" => number.parse().ok().map(Value::Signed32),
            "uint32" => number.parse().ok().map(Value::Number),
            "int64" => number.parse().ok().map(Value::Signed),
            "uint64" => number.parse().ok().map(Value::Wide),
            "double" => number.parse().ok().map(Value::Double),
            _ => None,
        };
    }
    let number = text.parse().ok().map(Value::Signed32);
    number.or_else(|| text.contains('.').then(|| text.parse().ok().map(Value::Double))?)
}

fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inside.contains([quote, '\\'])).then(|| inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values() {
        for (text, expect) in [
            ("true", Some(Value::Bool(true))),
            ("'inactive-or-failed'", Some(Value::String("inactive-or-failed".to_owned()))),
            ("['a', \"b\"]", Some(Value::Strings(vec!["a".to_owned(), "b".to_owned()]))),
            ("uint64 123", Some(Value::Wide(123))),
            ("-3", Some(Value::Signed32(-3))),
            ("2.5", Some(Value::Double(2.5))),
            ("int16 1", None),
            ("'open", None),
            ("a'b'", None),
            ("", None),
        ] {
            assert_eq!(parse("X", text).ok().map(|(_, value)| value), expect, "{text}");
        }
        let timeout = parse("TimeoutStopSec", "1.5").expect("time");
        assert_eq!(timeout, ("TimeoutStopUSec".to_owned(), Value::Wide(1_500_000)));
        assert!(parse("TimeoutStopSec", "'x'").is_err());
        assert!(parse("a.b", "true").is_err() && parse("", "true").is_err());
    }
}
