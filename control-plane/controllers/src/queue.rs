//! Keys to look at: each at most once, some only at a time, the one that has waited longest first.
//!
//! ```text
//!   push ──> ready ── next ──> in hand ── done ──> (gone)
//!              ^                  │ pushed meanwhile: ready again once done
//!   later ── its time ────────────┘ a failure: later, after a delay of its own
//! ```
//! Bounded by the number of objects: a key that waits already is not added again. Invariants: a key is in at most one hand
//! at a time; a key that is pushed without end comes after everything that waited before it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The first delay after a failure; each further one doubles it, up to the last.
const DELAY_FIRST: Duration = Duration::from_millis(50);
const DELAY_LAST: Duration = Duration::from_secs(60);
/// The furthest that a key is put off: whoever asks for more is looked at once a year.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Room that a map keeps beyond four times what it holds.
const SLACK: usize = 64;

#[derive(Debug)]
struct State<K> {
    order: VecDeque<K>,
    ready: HashSet<K>,
    in_hand: HashSet<K>,
    later: BTreeSet<(Instant, K)>,
    times: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

#[derive(Debug)]
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            order: VecDeque::new(),
            ready: HashSet::new(),
            in_hand: HashSet::new(),
            later: BTreeSet::new(),
            times: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Every change of the state is one call: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, key: K) {
        if self.state().make_ready(key) {
            self.changed.notify_one();
        }
    }

    /// Not before `wait` has passed, unless something happens earlier. The earlier of two times wins.
    pub(crate) fn push_after(&self, key: K, wait: Duration, now: Instant) {
        let time = now.checked_add(wait.min(WAIT_MAX)).unwrap_or(now);
        let mut state = self.state();
        match state.times.get(&key) {
            Some(earlier) if *earlier <= time => return,
            Some(_) => state.forget_time(&key),
            None => {}
        }
        state.times.insert(key.clone(), time);
        state.later.insert((time, key));
        drop(state);
        self.changed.notify_one();
    }

    /// How many times in a row it has failed now.
    pub(crate) fn push_after_failure(&self, key: K, now: Instant) -> u32 {
        let failures = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures
        };
        self.push_after(key, delay(failures), now);
        failures
    }

    pub(crate) fn succeeded(&self, key: &K) {
        let mut state = self.state();
        state.failures.remove(key);
        if state.failures.capacity() > state.failures.len().saturating_mul(4).saturating_add(SLACK) {
            state.failures.shrink_to_fit();
        }
    }

    /// The key that has been ready for longest; it is in the caller's hand until it is `done`.
    pub(crate) fn next(&self, now: Instant) -> Option<K> {
        let mut state = self.state();
        while let Some((_, key)) = state.later.first().filter(|(time, _)| *time <= now).cloned() {
            state.forget_time(&key);
            state.make_ready(key);
        }
        let key = state.order.pop_front()?;
        state.ready.remove(&key);
        // Whoever looks now says anew when to look again.
        state.forget_time(&key);
        state.in_hand.insert(key.clone());
        state.shrink();
        Some(key)
    }

    /// Looked at. What was pushed meanwhile is ready again.
    pub(crate) fn done(&self, key: &K) {
        let mut state = self.state();
        state.in_hand.remove(key);
        if state.ready.contains(key) {
            state.order.push_back(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// When `next` has something again though nothing is pushed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.state().later.first().map(|(time, _)| *time)
    }

    /// Nobody waits for it: it is gone for good.
    pub(crate) fn remove(&self, key: &K) {
        let mut state = self.state();
        if state.ready.remove(key) {
            state.order.retain(|other| other != key);
        }
        state.forget_time(key);
        state.failures.remove(key);
    }

    /// Returns after the next change of the queue; changes between calls are not missed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    /// True if somebody may take it now.
    fn make_ready(&mut self, key: K) -> bool {
        let is_new = self.ready.insert(key.clone());
        if !is_new || self.in_hand.contains(&key) {
            return false;
        }
        self.order.push_back(key);
        true
    }

    fn forget_time(&mut self, key: &K) {
        if let Some(time) = self.times.remove(key) {
            self.later.remove(&(time, key.clone()));
        }
    }

    /// What a burst has taken is given back.
    fn shrink(&mut self) {
        let is_wide = |capacity: usize, len: usize| capacity > len.saturating_mul(4).saturating_add(SLACK);
        if is_wide(self.ready.capacity(), self.ready.len()) {
            self.ready.shrink_to_fit();
            self.order.shrink_to_fit();
        }
        if is_wide(self.times.capacity(), self.times.len()) {
            self.times.shrink_to_fit();
        }
    }
}

fn delay(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
    DELAY_FIRST.saturating_mul(factor).min(DELAY_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn later(time: Instant, wait: Duration) -> Instant {
        time.checked_add(wait).unwrap()
    }

    #[test]
    fn each_key_once_and_in_time() {
        let (queue, start) = (Queue::default(), Instant::now());
        queue.push("a");
        queue.push("a");
        queue.push_after("b", seconds(10), start);
        queue.push_after("b", seconds(20), start);
        assert_eq!(queue.next(start), Some("a"));
        assert_eq!(queue.next(start), None);
        assert_eq!(queue.due(), Some(later(start, seconds(10))));
        assert_eq!(queue.next(later(start, seconds(10))), Some("b"));
        assert_eq!((queue.next(later(start, seconds(30))), queue.due()), (None, None));
    }

    #[test]
    fn the_one_that_waited_longest_comes_first() {
        let (queue, now) = (Queue::default(), Instant::now());
        for key in ["hot", "z", "a"] {
            queue.push(key);
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            let key = queue.next(now).unwrap();
            // A key whose every look brings about the next one.
            queue.push("hot");
            queue.done(&key);
            order.push(key);
        }
        assert_eq!(order, ["hot", "z", "a", "hot"], "no key starves another");
    }

    #[test]
    fn a_key_is_in_one_hand_at_a_time() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.push("a");
        assert_eq!(queue.next(now), Some("a"));
        queue.push("a");
        queue.push_after("a", Duration::ZERO, now);
        assert_eq!(queue.next(now), None, "somebody has it");
        queue.done(&"a");
        assert_eq!(queue.next(now), Some("a"), "what happened meanwhile is looked at");
        queue.done(&"a");
        assert_eq!(queue.next(now), None);
    }

    #[test]
    fn what_is_removed_does_not_come() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.push("a");
        queue.push_after_failure("b", now);
        queue.remove(&"a");
        queue.remove(&"b");
        assert_eq!((queue.next(later(now, seconds(100))), queue.due()), (None, None));
    }

    #[test]
    fn delays_grow_to_a_minute() {
        assert_eq!(delay(1), DELAY_FIRST);
        assert_eq!(delay(3), Duration::from_millis(200));
        assert_eq!(delay(u32::MAX), DELAY_LAST);
        let (queue, now) = (Queue::default(), Instant::now());
        assert_eq!([1, 2].map(|_| queue.push_after_failure("a", now)), [1, 2]);
        queue.succeeded(&"a");
        assert_eq!(queue.push_after_failure("a", now), 1);
    }

    #[test]
    fn no_wait_is_too_long() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.push_after("a", Duration::MAX, now);
        assert_eq!(queue.due(), Some(later(now, WAIT_MAX)));
    }
}
