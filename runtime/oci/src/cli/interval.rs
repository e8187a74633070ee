//! Times as Go's programs take them: `5s`, `500ms`, `1m30s`; a plain number is seconds.

use nix::poll::PollTimeout;

use super::Error;

pub(crate) fn parse(flag: &str, text: &str) -> Result<PollTimeout, Error> {
    let bad =
        || Error::Usage(format!("--{flag} \"{text}\" is not a time like 5s, 500ms or 1m30s, and more than nothing"));
    let milliseconds = milliseconds(text).filter(|&ms| ms > 0).and_then(|ms| i32::try_from(ms).ok()).ok_or_else(bad)?;
    PollTimeout::try_from(milliseconds).map_err(|_| bad())
}

fn milliseconds(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<u64>() {
        return seconds.checked_mul(1000);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let unit: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let fraction = fraction.get(..3.min(fraction.len()))?;
        let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
        let part = fraction.parse::<u64>().ok()?.checked_mul(unit)? / scale;
        total = total.checked_add(whole.parse::<u64>().ok()?.checked_mul(unit)?)?.checked_add(part)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expect) in [
            ("5", Some(5000)),
            ("5s", Some(5000)),
            ("100ms", Some(100)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("0s", Some(0)),
            ("", Some(0)),
            ("5x", None),
            ("-1s", None),
            ("s", None),
        ] {
            assert_eq!(milliseconds(text), expect, "{text}");
        }
        assert!(parse("interval", "0s").is_err() && parse("interval", "").is_err());
    }
}
