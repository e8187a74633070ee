//! Pods that want a node: the active ones in order, the waiting ones with what could help them.
//!
//! ```text
//!   new ──> active ── pop ──> taken ── wait ──> waiting ── a change that helps ──┐
//!             ^                 └── failed ──> backing off <──── too soon ───────┤
//!             └───────────────────── its time ────┘          else ──> active <───┘
//! ```
//! A waiting pod comes back on a change that can remove one of its reasons, never because time has passed; but no sooner
//! than its own back-off after it was last looked at, so that a storm of changes does not decide every waiting pod each time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::decide::Reason;
use crate::snapshot::PodKey;

/// How long a pod rests after it was looked at; each further time doubles it, up to the last.
const REST_FIRST: Duration = Duration::from_millis(50);
const REST_LAST: Duration = Duration::from_secs(10);
/// Room that the map of pods keeps beyond four times what it holds.
const SLACK: usize = 64;

/// A change of the cluster that can help a pod that fits nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A node came, or its labels, taints or resources changed.
    Node,
    /// A pod left a node: its resources, ports and place are free.
    PodGone,
}

/// Higher priority first, then first come, first served.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Rank),
    /// For a change that helps: of any kind of the node's, or also of a pod that leaves.
    Waiting {
        is_for_room: bool,
    },
    /// Until then.
    BackingOff(Instant),
    /// Handed out; its binding is under way.
    Taken,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    arrival: u64,
    place: Place,
    /// How often it was looked at in vain, and when last.
    attempts: u32,
    tried_at: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: HashMap<PodKey, Entry>,
    active: BTreeMap<Rank, PodKey>,
    waiting_for_room: BTreeSet<PodKey>,
    waiting_for_nodes: BTreeSet<PodKey>,
    backing_off: BTreeSet<(Instant, PodKey)>,
    arrivals: u64,
}

impl Queue {
    /// A pod that wants a node, new or changed. A changed one is looked at again: the change may have been to help it.
    pub(crate) fn upsert(&mut self, pod: Pod, now: Instant) {
        let key = PodKey::of(&pod);
        if let Some(entry) = self.entries.get_mut(&key) {
            let is_other = entry.pod.metadata.uid != pod.metadata.uid;
            let asks_differently = entry.pod.spec != pod.spec || entry.pod.metadata.labels != pod.metadata.labels;
            let is_idle = matches!(entry.place, Place::Waiting { .. } | Place::BackingOff(_));
            entry.pod = pod;
            if is_other || (asks_differently && is_idle) {
                entry.attempts = 0;
                self.activate(&key);
            }
            return;
        }
        self.arrivals = self.arrivals.saturating_add(1);
        let entry = Entry { pod, arrival: self.arrivals, place: Place::Taken, attempts: 0, tried_at: now };
        self.entries.insert(key.clone(), entry);
        self.activate(&key);
    }

    pub(crate) fn remove(&mut self, key: &PodKey) {
        self.leave(key);
        self.entries.remove(key);
        if self.entries.capacity() > self.entries.len().saturating_mul(4).saturating_add(SLACK) {
            self.entries.shrink_to_fit();
        }
    }

    pub(crate) fn keys(&self) -> Vec<PodKey> {
        self.entries.keys().cloned().collect()
    }

    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// When the next pod has rested.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.backing_off.first().map(|(time, _)| *time)
    }

    /// The next pod to decide on. It stays known until it is removed, is put to `wait`, or is put to `back_off`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Pod> {
        while let Some((_, key)) = self.backing_off.first().filter(|(time, _)| *time <= now).cloned() {
            self.activate(&key);
        }
        let (_, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.place = Place::Taken;
        entry.tried_at = now;
        Some(entry.pod.clone())
    }

    /// It fits nowhere, for these reasons.
    pub(crate) fn wait(&mut self, key: &PodKey, reasons: &BTreeSet<Reason>) {
        self.leave(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let is_of_room =
            |reason: &Reason| matches!(reason, Reason::Ports | Reason::TooManyPods | Reason::Insufficient { .. });
        let is_for_room = reasons.iter().any(is_of_room);
        entry.attempts = entry.attempts.saturating_add(1);
        entry.place = Place::Waiting { is_for_room };
        let waiting = if is_for_room { &mut self.waiting_for_room } else { &mut self.waiting_for_nodes };
        waiting.insert(key.clone());
    }

    /// What was tried with it failed: again, once it has rested.
    pub(crate) fn back_off(&mut self, key: &PodKey, now: Instant) {
        self.leave(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        entry.tried_at = now;
        self.rest(key, now);
    }

    pub(crate) fn wake(&mut self, change: Change, now: Instant) {
        let mut helped = std::mem::take(&mut self.waiting_for_room);
        if change == Change::Node {
            helped.append(&mut self.waiting_for_nodes);
        }
        for key in helped {
            self.rest(&key, now);
        }
    }

    /// Among those that back off, or at once among the active ones if it has rested already.
    fn rest(&mut self, key: &PodKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let until = entry.tried_at.checked_add(rest(entry.attempts)).unwrap_or(now);
        if until <= now {
            return self.activate(key);
        }
        entry.place = Place::BackingOff(until);
        self.backing_off.insert((until, key.clone()));
    }

    /// Puts a known pod back among the active ones, at its old place in the order.
    fn activate(&mut self, key: &PodKey) {
        self.leave(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let priority = entry.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let rank = (Reverse(priority), entry.arrival);
        entry.place = Place::Active(rank);
        self.active.insert(rank, key.clone());
    }

    /// Out of wherever it stands; it stays known.
    fn leave(&mut self, key: &PodKey) {
        match self.entries.get(key).map(|entry| &entry.place) {
            Some(Place::Active(rank)) => drop(self.active.remove(rank)),
            Some(Place::BackingOff(until)) => drop(self.backing_off.remove(&(*until, key.clone()))),
            Some(Place::Waiting { is_for_room: true }) => drop(self.waiting_for_room.remove(key)),
            Some(Place::Waiting { is_for_room: false }) => drop(self.waiting_for_nodes.remove(key)),
            Some(Place::Taken) | None => {}
        }
    }
}

fn rest(attempts: u32) -> Duration {
    let factor = 1u32.checked_shl(attempts.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
    REST_FIRST.saturating_mul(factor).min(REST_LAST)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name, "uid": name},
            "spec": {"priority": priority, "containers": []}}))
        .unwrap()
    }

    fn key(name: &str) -> PodKey {
        PodKey { namespace: "d".into(), name: name.into() }
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.metadata.name.unwrap()).collect()
    }

    fn cpu() -> BTreeSet<Reason> {
        [Reason::Insufficient { resource: "cpu".into() }].into()
    }

    #[test]
    fn order() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            queue.upsert(pod(name, priority), now);
        }
        assert_eq!(names(&mut queue, now), ["c", "a", "b"]);
        assert!(queue.pop(now).is_none(), "taken pods are not handed out twice");
    }

    #[test]
    fn only_what_helps_wakes() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["full", "tainted"] {
            queue.upsert(pod(name, 0), now);
            queue.pop(now).unwrap();
        }
        queue.wait(&key("full"), &cpu());
        queue.wait(&key("tainted"), &[Reason::Taint { key: "k".into(), value: String::new() }].into());
        let rested = now.checked_add(REST_LAST).unwrap();
        queue.wake(Change::PodGone, rested);
        assert_eq!(names(&mut queue, rested), ["full"]);
        queue.wake(Change::Node, rested);
        assert_eq!(names(&mut queue, rested), ["tainted"]);
    }

    #[test]
    fn a_status_update_does_not_wake() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.upsert(pod("a", 0), now);
        queue.pop(now).unwrap();
        queue.wait(&key("a"), &[Reason::Affinity].into());
        queue.upsert(pod("a", 0), now);
        assert!(queue.pop(now).is_none());
        let mut changed = pod("a", 0);
        changed.spec.as_mut().unwrap().node_selector = Some([("k".to_owned(), "v".to_owned())].into());
        queue.upsert(changed, now);
        assert_eq!(names(&mut queue, now), ["a"]);
    }

    #[test]
    fn a_storm_of_changes_decides_each_pod_a_few_times() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        for index in 0..100 {
            queue.upsert(pod(&format!("p{index}"), 0), start);
        }
        let mut decisions = 0;
        // Ten seconds, a change in each millisecond.
        for millis in 0..10_000 {
            let now = start.checked_add(Duration::from_millis(millis)).unwrap();
            queue.wake(Change::PodGone, now);
            while let Some(pod) = queue.pop(now) {
                queue.wait(&PodKey::of(&pod), &cpu());
                decisions += 1;
            }
        }
        assert!(decisions <= 100 * 9, "{decisions}");
        let much_later = start.checked_add(Duration::from_secs(60)).unwrap();
        queue.wake(Change::PodGone, much_later);
        assert_eq!(names(&mut queue, much_later).len(), 100, "who has rested is looked at at once");
    }

    #[test]
    fn who_failed_rests() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.upsert(pod("a", 0), now);
        queue.pop(now).unwrap();
        queue.back_off(&key("a"), now);
        assert!(queue.pop(now).is_none());
        let due = queue.due().unwrap();
        assert_eq!(names(&mut queue, due), ["a"]);
        queue.back_off(&key("a"), due);
        queue.remove(&key("a"));
        assert_eq!((queue.due(), queue.keys().len()), (None, 0));
    }
}
