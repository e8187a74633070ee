//! The growing pause between two attempts at the same thing. Pure: the caller brings the time.
//! Invariant: delays double from the first to the last and start again after a quiet time of twice the last.

use jiff::{SignedDuration, Timestamp};

/// First and last pause of container restarts and image pulls.
pub const FIRST: SignedDuration = SignedDuration::from_secs(10);
pub const LAST: SignedDuration = SignedDuration::from_mins(5);

/// After this long the first pause comes again.
const QUIET: SignedDuration = SignedDuration::from_mins(10);

/// Whether a wait for `until` is over at `now`. None that is set here is longer than [`QUIET`]: if more than that is left,
/// somebody has set the clock back.
#[must_use]
pub fn is_over(until: Timestamp, now: Timestamp) -> bool {
    let left = until.duration_since(now);
    left <= SignedDuration::ZERO || left > QUIET
}

/// The pause in force since `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay: SignedDuration,
    pub since: Timestamp,
}

impl Backoff {
    /// The pause after one more attempt at `now`.
    #[must_use]
    pub fn next(previous: Option<Backoff>, now: Timestamp) -> Backoff {
        let delay = match previous {
            Some(p) if !p.expired(now) => p.delay.saturating_mul(2).min(LAST),
            _ => FIRST,
        };
        Backoff { delay, since: now }
    }

    /// Until when to wait if the last attempt ended at `ended`; `None` when the pause is no longer in force.
    #[must_use]
    pub fn until(&self, ended: Timestamp) -> Option<Timestamp> {
        if self.expired(ended) {
            return None;
        }
        ended.checked_add(self.delay).ok()
    }

    fn expired(&self, at: Timestamp) -> bool {
        // A pause that began in the future was begun before somebody set the clock back.
        let age = at.duration_since(self.since);
        age > QUIET || age < QUIET.saturating_mul(-1)
    }

    /// As Go prints a duration of whole seconds: `10s`, `1m20s`, `5m0s`.
    #[must_use]
    pub fn text(&self) -> String {
        let seconds = self.delay.as_secs();
        if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_up_to_five_minutes_and_forgets_after_ten() {
        let mut backoff = Backoff::next(None, at(0));
        let mut seen = vec![backoff.text()];
        let mut now = 0;
        for _ in 0..6 {
            now += backoff.delay.as_secs();
            backoff = Backoff::next(Some(backoff), at(now));
            seen.push(backoff.text());
        }
        assert_eq!(seen, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        assert_eq!(backoff.until(at(now + 601)), None);
        assert_eq!(backoff.until(at(now + 5)), Some(at(now + 305)));
        assert_eq!(Backoff::next(Some(backoff), at(now + 601)).text(), "10s");
    }
}
