//! What the scheduler may rely on: pods and nodes as the API server has them, and nothing that it remembers.
//!
//! A cluster in memory decides and binds, with pods that come and go. At any moment, also between a decision and its
//! binding, snapshot and queue are thrown away and begin anew from the objects. No room is ever given twice, and in the end
//! every pod that fits has a node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::json;
use tokio::time::Instant;

use crate::decide::{Decision, decide};
use crate::queue::{Change, Queue};
use crate::snapshot::{PodKey, Snapshot};

const NODES: [(&str, i64); 2] = [("a", 3000), ("b", 2000)];

struct World {
    /// Millicores, and the node that the API server knows of.
    pods: BTreeMap<String, (i64, Option<String>)>,
    snapshot: Snapshot,
    queue: Queue,
    now: Instant,
}

fn pod(name: &str, millis: i64, node: Option<&String>) -> Pod {
    let container = json!({"name": "c", "resources": {"requests": {"cpu": format!("{millis}m")}}});
    let metadata = json!({"namespace": "d", "name": name, "uid": name});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"nodeName": node, "containers": [container]}}))
        .unwrap()
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "d".into(), name: name.into() }
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { pods: BTreeMap::new(), snapshot: Snapshot::default(), queue: Queue::default(), now: Instant::now() };
        world.forget();
        world
    }

    /// Snapshot and queue begin anew, as from a list.
    fn forget(&mut self) {
        (self.snapshot, self.queue) = (Snapshot::default(), Queue::default());
        for (name, millis) in NODES {
            let allocatable = json!({"cpu": format!("{millis}m"), "pods": "110"});
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": allocatable}});
            self.snapshot.upsert_node(&serde_json::from_value::<Node>(node).unwrap());
        }
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.show(&name);
        }
    }

    /// What the watch does with a pod.
    fn show(&mut self, name: &str) {
        let (millis, node) = &self.pods[name];
        let pod = pod(name, *millis, node.as_ref());
        self.snapshot.upsert_pod(&pod);
        match node {
            Some(_) => self.queue.remove(&key(name)),
            None => self.queue.upsert(pod, self.now),
        }
    }

    fn create(&mut self, number: usize, millis: i64) {
        let name = format!("p{number}");
        self.pods.entry(name.clone()).or_insert((millis, None));
        self.show(&name);
    }

    fn delete(&mut self, number: usize) {
        let name = format!("p{number}");
        if self.pods.remove(&name).is_some() {
            self.queue.remove(&key(&name));
            if self.snapshot.remove_pod(&key(&name)) {
                self.queue.wake(Change::PodGone, self.now);
            }
        }
    }

    /// Decides on the next pod; its binding is lost with everything else if `is_lost`. False if there was none.
    fn place(&mut self, is_lost: bool) -> bool {
        let Some(pod) = self.queue.pop(self.now) else { return false };
        match decide(&self.snapshot, &pod) {
            Decision::Bind { node } => {
                self.snapshot.assume(&pod, &node);
                let name = pod.metadata.name.unwrap();
                if is_lost {
                    self.forget();
                } else {
                    self.pods.get_mut(&name).unwrap().1 = Some(node);
                    self.show(&name);
                }
            }
            Decision::Nowhere { reasons, .. } => self.queue.wait(&PodKey::of(&pod), &reasons.into_keys().collect()),
        }
        true
    }

    fn used(&self, node: &str) -> i64 {
        self.pods.values().filter(|(_, on)| on.as_deref() == Some(node)).map(|(millis, _)| millis).sum()
    }
}

proptest! {
    /// Invariant: the scheduler may forget everything at any moment.
    #[test]
    fn whatever_is_forgotten_no_room_is_given_twice(steps in prop::collection::vec((0..8u8, 0..12usize, 100..2500i64), 0..80)) {
        let mut world = World::new();
        for (what, number, millis) in steps {
            match what {
                0 => world.forget(),
                1 => world.delete(number),
                2 | 3 => world.create(number, millis),
                4 => { world.place(true); }
                _ => { world.place(false); }
            }
            for (node, millis) in NODES {
                prop_assert!(world.used(node) <= millis);
            }
        }
        world.forget();
        while world.place(false) {}
        for (name, (wanted, node)) in &world.pods {
            let fits = NODES.iter().any(|(node, millis)| world.used(node).saturating_add(*wanted) <= *millis);
            prop_assert!(node.is_some() || !fits, "{name} fits and has no node");
        }
    }
}
