//! Pods that want a node: the active ones in order, the waiting ones with what could help them.
//!
//! A waiting pod comes back on a change that can remove one of its reasons, never because time has passed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Pod;

use crate::decide::Reason;
use crate::snapshot::PodKey;

/// A change of the cluster that can help a pod that fits nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A node came, or its labels, taints or resources changed.
    Node,
    /// A pod left a node: its resources, ports and place are free.
    PodGone,
}

impl Change {
    fn can_help(self, reasons: &BTreeSet<Reason>) -> bool {
        match self {
            Self::Node => true,
            Self::PodGone => reasons
                .iter()
                .any(|reason| matches!(reason, Reason::Ports | Reason::TooManyPods | Reason::Insufficient { .. })),
        }
    }
}

/// Higher priority first, then first come, first served.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Rank),
    Waiting(BTreeSet<Reason>),
    /// Handed out; its binding is under way, or failed and about to come back.
    Taken,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    arrival: u64,
    place: Place,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: HashMap<PodKey, Entry>,
    active: BTreeMap<Rank, PodKey>,
    arrivals: u64,
}

impl Queue {
    /// A pod that wants a node, new or changed. A changed one is looked at again: the change may have been to help it.
    pub(crate) fn upsert(&mut self, pod: Pod) {
        let key = PodKey::of(&pod);
        if let Some(entry) = self.entries.get_mut(&key) {
            let is_other = entry.pod.metadata.uid != pod.metadata.uid;
            let asks_differently = entry.pod.spec != pod.spec || entry.pod.metadata.labels != pod.metadata.labels;
            entry.pod = pod;
            if is_other || (asks_differently && matches!(entry.place, Place::Waiting(_))) {
                self.activate(&key);
            }
            return;
        }
        self.arrivals += 1;
        self.entries.insert(key.clone(), Entry { pod, arrival: self.arrivals, place: Place::Taken });
        self.activate(&key);
    }

    pub(crate) fn remove(&mut self, key: &PodKey) {
        if let Some(Entry { place: Place::Active(rank), .. }) = self.entries.remove(key) {
            self.active.remove(&rank);
        }
    }

    pub(crate) fn keys(&self) -> Vec<PodKey> {
        self.entries.keys().cloned().collect()
    }

    /// The next pod to decide on. It stays known until it is removed, is put to `wait`, or comes back by `activate`.
    pub(crate) fn pop(&mut self) -> Option<Pod> {
        let (_, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.place = Place::Taken;
        Some(entry.pod.clone())
    }

    pub(crate) fn wait(&mut self, key: &PodKey, reasons: BTreeSet<Reason>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Waiting(reasons);
        }
    }

    /// Puts a known pod back among the active ones, at its old place in the order.
    pub(crate) fn activate(&mut self, key: &PodKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Place::Active(rank) = entry.place {
            self.active.remove(&rank);
        }
        let priority = entry.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let rank = (Reverse(priority), entry.arrival);
        entry.place = Place::Active(rank);
        self.active.insert(rank, key.clone());
    }

    pub(crate) fn wake(&mut self, change: Change) {
        let helped: Vec<PodKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(&entry.place, Place::Waiting(reasons) if change.can_help(reasons)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in helped {
            self.activate(&key);
        }
    }
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

    fn names(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|pod| pod.metadata.name.unwrap()).collect()
    }

    #[test]
    fn order() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            queue.upsert(pod(name, priority));
        }
        assert_eq!(names(&mut queue), ["c", "a", "b"]);
        assert!(queue.pop().is_none(), "taken pods are not handed out twice");
    }

    #[test]
    fn only_what_helps_wakes() {
        let mut queue = Queue::default();
        for name in ["full", "tainted"] {
            queue.upsert(pod(name, 0));
            queue.pop().unwrap();
        }
        let key = |name: &str| PodKey { namespace: "d".into(), name: name.into() };
        queue.wait(&key("full"), [Reason::Insufficient { resource: "cpu".into() }].into());
        queue.wait(&key("tainted"), [Reason::Taint { key: "k".into(), value: String::new() }].into());
        queue.wake(Change::PodGone);
        assert_eq!(names(&mut queue), ["full"]);
        queue.wake(Change::Node);
        assert_eq!(names(&mut queue), ["tainted"]);
    }

    #[test]
    fn a_status_update_does_not_wake() {
        let mut queue = Queue::default();
        queue.upsert(pod("a", 0));
        queue.pop().unwrap();
        queue.wait(&PodKey { namespace: "d".into(), name: "a".into() }, [Reason::Affinity].into());
        queue.upsert(pod("a", 0));
        assert!(queue.pop().is_none());
        let mut changed = pod("a", 0);
        changed.spec.as_mut().unwrap().node_selector = Some([("k".to_owned(), "v".to_owned())].into());
        queue.upsert(changed);
        assert_eq!(names(&mut queue), ["a"]);
    }
}
