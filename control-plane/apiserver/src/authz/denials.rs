//! Denials, counted and told to the log: each once, with its fields, and no more of them in a second than a disk bears.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Attributes, Target};
use crate::authn::User;

/// Denials that are written at once; the rest of a flood is counted, and the count is written with the next one.
const BURST_MAX: u32 = 50;
/// After this long one more may be written.
const REFILL_EVERY: Duration = Duration::from_millis(100);
/// What callers chose is cut to this in the log.
const TEXT_CHARS_MAX: usize = 256;

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled_at: Option<Instant>,
    unwritten: u64,
}

#[derive(Debug)]
pub(super) struct Denials {
    allowed: AtomicU64,
    denied: AtomicU64,
    bucket: Mutex<Bucket>,
}

impl Default for Denials {
    fn default() -> Self {
        let bucket = Bucket { left: BURST_MAX, filled_at: None, unwritten: 0 };
        Self { allowed: AtomicU64::new(0), denied: AtomicU64::new(0), bucket: Mutex::new(bucket) }
    }
}

impl Denials {
    pub(super) fn count(&self, allowed: bool) {
        let counter = if allowed { &self.allowed } else { &self.denied };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.allowed.load(Ordering::Relaxed), self.denied.load(Ordering::Relaxed))
    }

    pub(super) fn log(&self, user: &User, attributes: &Attributes, reason: &str, now: Instant) {
        let Some(unwritten) = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now) else { return };
        let cut = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
        let (user, verb) = (cut(&user.name), attributes.verb.as_str());
        match &attributes.target {
            Target::Path(path) => {
                let path = cut(path);
                tracing::warn!(user, verb, path, reason, unwritten, "denied");
            }
            Target::Resource { group, resource, subresource, namespace, name } => {
                let (group, resource, subresource) = (cut(group), cut(resource), cut(subresource));
                let (namespace, name) = (cut(namespace), cut(name));
                tracing::warn!(user, verb, group, resource, subresource, namespace, name, reason, unwritten, "denied");
            }
        }
    }
}

impl Bucket {
    /// How many went unwritten before this one; `None` when this one does too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = self.filled_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let more = since.as_millis() / REFILL_EVERY.as_millis();
        if more > 0 || self.filled_at.is_none() {
            self.left = self.left.saturating_add(u32::try_from(more).unwrap_or(BURST_MAX)).min(BURST_MAX);
            self.filled_at = Some(now);
        }
        if self.left == 0 {
            self.unwritten = self.unwritten.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_written_in_part_and_counted_whole() {
        let start = Instant::now();
        let mut bucket = Bucket { left: BURST_MAX, filled_at: None, unwritten: 0 };
        let written = (0..1000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(written, usize::try_from(BURST_MAX).unwrap());
        let later = start.checked_add(REFILL_EVERY).unwrap();
        assert_eq!(bucket.take(later), Some(1000 - u64::from(BURST_MAX)), "the next one tells of the others");
        assert_eq!(bucket.take(later), None);
    }
}
