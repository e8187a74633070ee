//! Which events are written anew, which raise a count, which are united, and which are dropped. Pure but for its memory.
//!
//! As upstream's event correlator (client-go, tools/record): more than ten different messages of one reason about one
//! object within ten minutes become one combined event; one object has twenty-five events at once, and then one in five
//! minutes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Saying;

/// Objects and messages remembered; beyond it the memory is cleared, and counts start again.
const REMEMBERED_MAX: usize = 4096;
/// Different messages of one reason about one object, before they are united.
const SIMILAR_MAX: usize = 10;
const SIMILAR_FOR: Duration = Duration::from_secs(600);
const COMBINED: &str = "(combined from similar events): ";
/// Events of one object at once, and how long one more takes.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// Uid of the object, and reason.
type Group = (String, String);

/// Object, reason, and message; the message is empty for the combined one.
pub(super) type Content = (Group, String);

/// An event that is written already, and the count it has with this saying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub name: String,
    pub count: i32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write {
        message: String,
        content: Content,
        known: Option<Known>,
    },
    Drop {
        /// Of all objects, since the process began.
        dropped: u64,
    },
}

#[derive(Debug)]
struct Similar {
    since: Instant,
    messages: HashSet<String>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled_at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Correlator {
    known: HashMap<Content, Known>,
    similar: HashMap<Group, Similar>,
    buckets: HashMap<String, Bucket>,
    dropped: u64,
}

impl Correlator {
    pub(super) fn judge(&mut self, saying: &Saying, now: Instant) -> Verdict {
        let uid = saying.regarding.uid.clone().unwrap_or_default();
        let group = (uid.clone(), saying.reason.clone());
        let is_combined = self.is_one_too_many(&group, &saying.message, now);
        let content = (group, if is_combined { String::new() } else { saying.message.clone() });
        let known = self.known.get_mut(&content).map(|known| {
            known.count = known.count.saturating_add(1);
            known.clone()
        });
        if !self.take_from_bucket(uid, now) {
            self.dropped = self.dropped.saturating_add(1);
            return Verdict::Drop { dropped: self.dropped };
        }
        let message = if is_combined { format!("{COMBINED}{}", saying.message) } else { saying.message.clone() };
        Verdict::Write { message, content, known }
    }

    pub(super) fn written(&mut self, content: Content, name: String) {
        bound(&mut self.known);
        self.known.insert(content, Known { name, count: 1 });
    }

    fn is_one_too_many(&mut self, group: &Group, message: &str, now: Instant) -> bool {
        bound(&mut self.similar);
        let fresh = || Similar { since: now, messages: HashSet::new() };
        let similar = self.similar.entry(group.clone()).or_insert_with(fresh);
        if now.saturating_duration_since(similar.since) > SIMILAR_FOR {
            *similar = fresh();
        }
        if similar.messages.contains(message) {
            return false;
        }
        if similar.messages.len() >= SIMILAR_MAX {
            return true;
        }
        similar.messages.insert(message.to_owned());
        false
    }

    fn take_from_bucket(&mut self, uid: String, now: Instant) -> bool {
        bound(&mut self.buckets);
        let bucket = self.buckets.entry(uid).or_insert(Bucket { left: BURST, filled_at: now });
        let refills = now.saturating_duration_since(bucket.filled_at).as_secs() / REFILL.as_secs();
        if refills > 0 {
            bucket.left = bucket.left.saturating_add(u32::try_from(refills).unwrap_or(u32::MAX)).min(BURST);
            bucket.filled_at = now;
        }
        let has_left = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        has_left
    }
}

fn bound<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= REMEMBERED_MAX {
        *map = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn saying(uid: &str, message: &str) -> Saying {
        let regarding = ObjectReference { uid: Some(uid.into()), ..ObjectReference::default() };
        Saying { regarding, is_warning: true, reason: "FailedCreate".into(), message: message.into() }
    }

    /// Writes what is judged to be written; new events, raised counts, and dropped ones.
    fn say(correlator: &mut Correlator, saying: &Saying, now: Instant) -> (usize, usize, usize) {
        match correlator.judge(saying, now) {
            Verdict::Write { known: Some(_), .. } => (0, 1, 0),
            Verdict::Write { content, known: None, .. } => {
                correlator.written(content, "e".into());
                (1, 0, 0)
            }
            Verdict::Drop { .. } => (0, 0, 1),
        }
    }

    fn say_all(messages: impl Iterator<Item = String>) -> (usize, usize, usize) {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        messages.map(|message| say(&mut correlator, &saying("u", &message), now)).fold((0, 0, 0), |sum, one| {
            (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1), sum.2.saturating_add(one.2))
        })
    }

    #[test]
    fn the_same_again_is_counted() {
        assert_eq!(say_all(std::iter::repeat_n("no".to_owned(), 20)), (1, 19, 0));
    }

    #[test]
    fn a_flood_of_similar_ones_is_one_event_and_then_none() {
        let many = (0..500).map(|index| format!("pods \"web-{index}\" is forbidden"));
        assert_eq!(say_all(many), (11, 14, 475), "ten of their own, one combined, and what the bucket holds");
    }

    #[test]
    fn one_objects_flood_is_not_anothers() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        for index in 0..100 {
            say(&mut correlator, &saying("loud", &index.to_string()), now);
        }
        assert_eq!(say(&mut correlator, &saying("quiet", "hello"), now), (1, 0, 0));
    }

    #[test]
    fn a_bucket_fills_again() {
        let (mut correlator, start) = (Correlator::default(), Instant::now());
        for _ in 0..30 {
            say(&mut correlator, &saying("u", "no"), start);
        }
        let later = start.checked_add(REFILL).unwrap();
        assert_eq!(say(&mut correlator, &saying("u", "no"), start), (0, 0, 1));
        assert_eq!(say(&mut correlator, &saying("u", "no"), later), (0, 1, 0));
        assert_eq!(say(&mut correlator, &saying("u", "no"), later), (0, 0, 1));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        for index in 0..REMEMBERED_MAX.saturating_mul(3) {
            say(&mut correlator, &saying(&index.to_string(), "no"), now);
        }
        let sizes = [correlator.known.len(), correlator.similar.len(), correlator.buckets.len()];
        assert!(sizes.iter().all(|size| *size <= REMEMBERED_MAX), "{sizes:?}");
    }
}
