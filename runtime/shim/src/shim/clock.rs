//! The wall clock: nanoseconds since 1970, and as text for log lines.
//!
//! Own arithmetic, because a time zone library is larger than the whole shim.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with all nine digits, so that lines sort as text: `2026-11-21T02:04:01.000000001Z`.
pub(crate) fn push_rfc3339(ns: i64, out: &mut Vec<u8>) {
    let seconds = ns.div_euclid(1_000_000_000);
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let second_of_day = seconds.rem_euclid(86_400);
    let fields = [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (second_of_day / 3600, 2, b':'),
        (second_of_day / 60 % 60, 2, b':'),
        (second_of_day % 60, 2, b'.'),
        (ns.rem_euclid(1_000_000_000), 9, b'Z'),
    ];
    for (value, width, after) in fields {
        let mut digits = [b'0'; 9];
        let mut rest = value.unsigned_abs();
        for digit in digits[..width].iter_mut().rev() {
            *digit += u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
        out.extend_from_slice(&digits[..width]);
        out.push(after);
    }
}

/// Year, month and day of a day since 1970, by counting in eras of 400 years that begin on 1 March.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ns: i64, expect: &str) {
        let mut out = Vec::new();
        push_rfc3339(ns, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z");
        check(951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z");
        check(951_868_800_000_000_001, "2000-03-01T00:00:00.000000001Z");
        check(1_795_226_641_123_456_789, "2026-11-21T02:04:01.123456789Z");
        check(4_107_542_399_000_000_000, "2100-02-28T23:59:59.000000000Z");
        check(4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z");
    }
}
