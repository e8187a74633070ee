//! Sizes as people write them: `64m`, `1.5GiB`, `-1` for no limit.

use super::Error;

/// Binary units whatever their case, as runc reads them.
pub(crate) fn parse(flag: &str, text: &str) -> Result<i64, Error> {
    let bad = || Error::Usage(format!("--{flag} \"{text}\" is not a size like 1048576, 64m or 1g"));
    if let Ok(bytes) = text.parse::<i64>() {
        return if bytes >= -1 { Ok(bytes) } else { Err(bad()) };
    }
    let lower = text.to_ascii_lowercase();
    let trimmed = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match trimmed.char_indices().last() {
        Some((at, 'k')) => (&trimmed[..at], 10),
        Some((at, 'm')) => (&trimmed[..at], 20),
        Some((at, 'g')) => (&trimmed[..at], 30),
        Some((at, 't')) => (&trimmed[..at], 40),
        _ => (trimmed, 0),
    };
    let (whole, fraction) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || fraction.len() > 6 {
        return Err(bad());
    }
    let unit = 1i64 << shift;
    let whole = whole.parse::<i64>().ok().and_then(|whole| whole.checked_mul(unit)).ok_or_else(bad)?;
    let scale = 10i64.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let part = fraction.parse::<i64>().unwrap_or(0).saturating_mul(unit) / scale;
    whole.checked_add(part).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expect) in [
            ("1048576", Some(1 << 20)),
            ("-1", Some(-1)),
            ("64m", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("0", Some(0)),
            ("1k", Some(1024)),
            ("-2", None),
            ("m", None),
            ("1x", None),
            ("1..5m", None),
            ("99999999999t", None),
        ] {
            assert_eq!(parse("memory", text).ok(), expect, "{text}");
        }
    }
}
