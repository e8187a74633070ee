//! Keys to look at: each at most once, some only at a time.
//!
//! Bounded by the number of objects: a key that waits already is not added again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::cache::Key;

/// The first delay after a failure; each further one doubles it, up to the last.
const DELAY_FIRST: SignedDuration = SignedDuration::from_millis(50);
const DELAY_LAST: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, Default)]
struct State {
    ready: BTreeSet<Key>,
    later: BTreeMap<Key, Timestamp>,
    failures: HashMap<Key, u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Key(Key),
    /// Nothing before this time.
    Until(Timestamp),
    Idle,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one call: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, key: Key) {
        if self.state().ready.insert(key) {
            self.changed.notify_one();
        }
    }

    /// Not before `time`, unless something happens earlier. The earlier of two times wins.
    pub(crate) fn push_at(&self, key: Key, time: Timestamp) {
        let mut state = self.state();
        let at = state.later.entry(key).or_insert(time);
        *at = time.min(*at);
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn push_after_failure(&self, key: Key, now: Timestamp) {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            delay(*failures)
        };
        self.push_at(key, now + delay);
    }

    pub(crate) fn succeeded(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    pub(crate) fn next(&self, now: Timestamp) -> Next {
        let mut state = self.state();
        let due: Vec<Key> = state.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            state.later.remove(&key);
            state.ready.insert(key);
        }
        if let Some(key) = state.ready.pop_first() {
            // Whoever looks now says anew when to look again.
            state.later.remove(&key);
            return Next::Key(key);
        }
        state.later.values().min().map_or(Next::Idle, |at| Next::Until(*at))
    }

    /// Returns after the next change of the queue; changes between calls are not missed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn delay(failures: u32) -> SignedDuration {
    let factor = 1i32.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(i32::MAX);
    DELAY_FIRST.saturating_mul(factor).min(DELAY_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn each_key_once_and_in_time() {
        let queue = Queue::default();
        let (a, b) = (Key::new("", "a"), Key::new("", "b"));
        queue.push(a.clone());
        queue.push(a.clone());
        queue.push_at(b.clone(), at(10));
        queue.push_at(b.clone(), at(20));
        assert_eq!(queue.next(at(0)), Next::Key(a));
        assert_eq!(queue.next(at(0)), Next::Until(at(10)));
        assert_eq!(queue.next(at(10)), Next::Key(b));
        assert_eq!(queue.next(at(30)), Next::Idle);
    }

    #[test]
    fn delays_grow_to_a_minute() {
        assert_eq!(delay(1), DELAY_FIRST);
        assert_eq!(delay(3), SignedDuration::from_millis(200));
        assert_eq!(delay(40), DELAY_LAST);
    }
}
