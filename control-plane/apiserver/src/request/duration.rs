//! Durations as Go writes them: `30s`, `1m30s`, `1.5h`. Pure.

use std::time::Duration;

/// `None` for what is no duration; a negative one is none here.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit() && one != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|one: char| one.is_ascii_digit() || one == '.');
        let unit_end = unit_end.map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit_end] {
            "ns" => value / 1e9,
            "us" | "\u{b5}s" | "\u{3bc}s" => value / 1e6,
            "ms" => value / 1000.0,
            "s" => value,
            "m" => value * 60.0,
            "h" => value * 3600.0,
            _ => return None,
        };
        total = total.saturating_add(Duration::try_from_secs_f64(seconds).ok()?);
        rest = &rest[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(parse(text).map(|one| u64::try_from(one.as_millis()).unwrap()), expect, "{text}");
        };
        check("2s", Some(2000));
        check("1m30s", Some(90_000));
        check("1.5h", Some(5_400_000));
        check("200ms", Some(200));
        check("0", Some(0));
        check("0s", Some(0));
        check("", None);
        check("x", None);
        check("5", None);
        check("-5s", None);
        check("1s2", None);
        check("invalid", None);
        check("99999999999999999999999h", None);
        check(&"1000000h".repeat(1000), Some(3_600_000_000_000_000));
    }
}
