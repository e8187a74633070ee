//! Times that somebody else chose: sums that end at the ends of time instead of overflowing.

use jiff::{SignedDuration, Timestamp, Unit};

/// `time` and then `wait`; the last moment there is where that is beyond it.
pub(crate) fn after(time: Timestamp, wait: SignedDuration) -> Timestamp {
    let bound = if wait.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    time.checked_add(wait).unwrap_or(bound)
}

/// Times of objects have no fractions.
pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_time_hold() {
        let check = |time: Timestamp, seconds: i64, expect: Timestamp| {
            assert_eq!(after(time, SignedDuration::from_secs(seconds)), expect);
        };
        check(Timestamp::UNIX_EPOCH, 5, Timestamp::from_second(5).unwrap());
        check(Timestamp::UNIX_EPOCH, i64::MAX, Timestamp::MAX);
        check(Timestamp::MAX, 1, Timestamp::MAX);
        check(Timestamp::MIN, -1, Timestamp::MIN);
        check(Timestamp::UNIX_EPOCH, i64::MIN, Timestamp::MIN);
        assert_eq!(whole_seconds(Timestamp::MAX), Timestamp::MAX);
    }
}
