//! The cluster as the scheduler sees it: nodes, and what the pods on each of them take.
//!
//! A pod counts on its node from the moment it is decided (`assume`), so that two decisions in a row never give the same
//! room away twice; the watch later confirms it. Everything is kept as facts about pods; sums are adjusted, never guessed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use crate::requests::{PODS, Requests};

/// Room that the map of placed pods keeps beyond four times what it holds.
const SLACK: usize = 1024;

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

impl PodKey {
    pub fn of(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

/// Annotation of a node: `PROTOCOL:PORT` or `PROTOCOL:ADDRESS:PORT`, with commas between. The kubelet writes it.
const OWN_PORTS: &str = "sampan.dev/host-ports";
/// What is listed beyond it is not looked at.
const OWN_PORTS_MAX: usize = 1024;

impl HostPort {
    fn parse(text: &str) -> Option<Self> {
        let (protocol, rest) = text.trim().split_once(':')?;
        let (ip, port) = rest.rsplit_once(':').unwrap_or(("0.0.0.0", rest));
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        Some(Self { ip: ip.to_owned(), protocol: protocol.to_owned(), port: port.parse().ok()? })
    }

    pub(crate) fn of_pod(pod: &Pod) -> BTreeSet<Self> {
        let Some(spec) = &pod.spec else { return BTreeSet::new() };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                Some(Self {
                    ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    port: number,
                })
            })
            .collect()
    }

    /// The unspecified address takes the port on every address.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| matches!(ip, "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// What a placed pod takes, and what spreading needs to know of it.
#[derive(Clone, Debug)]
struct Placed {
    node: String,
    requests: Requests,
    scoring: Requests,
    ports: BTreeSet<HostPort>,
    group: Option<String>,
    is_assumed: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct NodeState {
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub is_unschedulable: bool,
    pub allocatable: Requests,
    /// Image names to bytes.
    pub images: BTreeMap<String, i64>,
    pub requested: Requests,
    pub requested_for_scoring: Requests,
    pub ports: Vec<HostPort>,
    /// Those that the node's own parts listen on.
    pub own_ports: Vec<HostPort>,
    pub pods: i64,
    /// Pods per group; a group is what one controller owns.
    pub groups: HashMap<String, i64>,
    /// Pods may be known before their node is.
    pub is_known: bool,
}

/// All nodes, and the pods on them.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeState>,
    placed: HashMap<PodKey, Placed>,
}

impl Snapshot {
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &NodeState)> {
        self.nodes.iter().filter(|(_, node)| node.is_known).map(|(name, node)| (name.as_str(), node))
    }

    pub fn node_names(&self) -> Vec<String> {
        self.nodes().map(|(name, _)| name.to_owned()).collect()
    }

    pub fn pod_keys(&self) -> Vec<PodKey> {
        self.placed.iter().filter(|(_, placed)| !placed.is_assumed).map(|(key, _)| key.clone()).collect()
    }

    /// True if anything has changed that could make room for a pod; a heartbeat does not.
    pub fn upsert_node(&mut self, node: &Node) -> bool {
        let state = self.nodes.entry(node.metadata.name.clone().unwrap_or_default()).or_default();
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let is_unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let allocatable = allocatable(node);
        let own_ports = own_ports(node);
        let is_same = state.is_known
            && state.labels == labels
            && state.taints == taints
            && state.is_unschedulable == is_unschedulable
            && state.allocatable == allocatable
            && state.own_ports == own_ports;
        state.images = images(node);
        state.own_ports = own_ports;
        (state.labels, state.taints) = (labels, taints);
        (state.is_unschedulable, state.allocatable, state.is_known) = (is_unschedulable, allocatable, true);
        !is_same
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.is_known = false;
            if node.pods == 0 {
                self.nodes.remove(name);
            }
        }
    }

    /// Counts a pod that has a node and has not ended; forgets it otherwise. True if room became free.
    pub fn upsert_pod(&mut self, pod: &Pod) -> bool {
        let key = PodKey::of(pod);
        match node_of(pod) {
            Some(node) if !has_ended(pod) => {
                let freed = self.placed.get(&key).is_some_and(|placed| placed.node != node);
                self.place(key, pod, node, false);
                freed
            }
            // The watch may show an older state of a pod that was just decided.
            None if self.placed.get(&key).is_some_and(|placed| placed.is_assumed) => false,
            _ => self.remove_pod(&key),
        }
    }

    /// Counts a pod on the node that was just decided for it.
    pub fn assume(&mut self, pod: &Pod, node: &str) {
        self.place(PodKey::of(pod), pod, node, true);
    }

    fn place(&mut self, key: PodKey, pod: &Pod, node: &str, is_assumed: bool) {
        self.remove_pod(&key);
        let placed = Placed {
            node: node.to_owned(),
            requests: Requests::of_pod(pod),
            scoring: Requests::of_pod_for_scoring(pod),
            ports: HostPort::of_pod(pod),
            group: group_of(pod),
            is_assumed,
        };
        let state = self.nodes.entry(placed.node.clone()).or_default();
        state.requested.add(&placed.requests);
        state.requested_for_scoring.add(&placed.scoring);
        state.ports.extend(placed.ports.iter().cloned());
        state.pods = state.pods.saturating_add(1);
        if let Some(group) = &placed.group {
            let count = state.groups.entry(group.clone()).or_insert(0);
            *count = count.saturating_add(1);
        }
        self.placed.insert(key, placed);
    }

    /// A decision that came to nothing. A pod that the watch has shown on its node stays: then it was bound after all.
    pub fn forget_assumed(&mut self, key: &PodKey) -> bool {
        self.placed.get(key).is_some_and(|placed| placed.is_assumed) && self.remove_pod(key)
    }

    /// True if the pod was counted somewhere.
    pub fn remove_pod(&mut self, key: &PodKey) -> bool {
        let Some(placed) = self.placed.remove(key) else { return false };
        if self.placed.capacity() > self.placed.len().saturating_mul(4).saturating_add(SLACK) {
            self.placed.shrink_to_fit();
        }
        let Some(state) = self.nodes.get_mut(&placed.node) else { return true };
        state.requested.subtract(&placed.requests);
        state.requested_for_scoring.subtract(&placed.scoring);
        for port in &placed.ports {
            if let Some(index) = state.ports.iter().position(|taken| taken == port) {
                state.ports.swap_remove(index);
            }
        }
        state.pods = state.pods.saturating_sub(1);
        if let Some(group) = &placed.group
            && let Some(count) = state.groups.get_mut(group)
        {
            *count = count.saturating_sub(1);
            if *count <= 0 {
                state.groups.remove(group);
            }
        }
        if !state.is_known && state.pods == 0 {
            self.nodes.remove(&placed.node);
        }
        true
    }
}

pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The uid of the controller that owns a pod: its pods are spread over nodes.
pub(crate) fn group_of(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
}

/// What the node says that it listens on itself: a pod that took such a port would take the node's own traffic.
fn own_ports(node: &Node) -> Vec<HostPort> {
    let text = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(OWN_PORTS));
    text.into_iter().flat_map(|text| text.split(',')).take(OWN_PORTS_MAX).filter_map(HostPort::parse).collect()
}

fn allocatable(node: &Node) -> Requests {
    let status = node.status.as_ref();
    let found = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
    found.map(Requests::from_quantities).unwrap_or_default()
}

fn images(node: &Node) -> BTreeMap<String, i64> {
    let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
    images
        .flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        })
        .collect()
}

impl NodeState {
    pub(crate) fn has_room_for_a_pod(&self) -> bool {
        i128::from(self.pods) < self.allocatable.get(PODS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(index: u8, node: Option<u8>, cpu: i64, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": format!("p{index}"),
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": format!("u{}", index % 2), "controller": true}]},
            "spec": {"nodeName": node.map(|node| format!("n{node}")), "containers": [{"name": "c",
                "resources": {"requests": {"cpu": format!("{cpu}m")}},
                "ports": [{"containerPort": 80, "hostPort": 8000 + i32::from(index)}]}]},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    proptest! {
        /// Whatever comes in whatever order: the sums are those of the pods that are there.
        #[test]
        fn sums_follow_the_pods(steps in prop::collection::vec((0..6u8, 0..3u8, prop::option::of(0..3u8), 0..500i64), 0..60)) {
            let mut snapshot = Snapshot::default();
            for (index, action, node, cpu) in steps {
                match action {
                    0 => { snapshot.upsert_pod(&pod(index, node, cpu, "Running")); }
                    1 => { snapshot.remove_pod(&PodKey::of(&pod(index, None, 0, ""))); }
                    _ => { snapshot.upsert_pod(&pod(index, node, cpu, "Succeeded")); }
                }
            }
            for (name, state) in &snapshot.nodes {
                let there: Vec<_> = snapshot.placed.values().filter(|placed| placed.node == *name).collect();
                prop_assert_eq!(state.requested.get("cpu"), there.iter().map(|placed| placed.requests.get("cpu")).sum::<i128>());
                prop_assert_eq!(usize::try_from(state.pods).unwrap(), there.len());
                prop_assert_eq!(state.ports.len(), there.len());
                prop_assert_eq!(state.groups.values().sum::<i64>(), state.pods);
            }
        }
    }

    #[test]
    fn an_assumed_pod_counts_until_the_watch_says_otherwise() {
        let mut snapshot = Snapshot::default();
        let pending = pod(1, None, 100, "Pending");
        snapshot.assume(&pending, "n0");
        assert!(!snapshot.upsert_pod(&pending), "an older state does not undo the decision");
        assert_eq!(snapshot.nodes["n0"].requested.get("cpu"), 100);
        snapshot.upsert_pod(&pod(1, Some(0), 100, "Running"));
        assert_eq!(snapshot.nodes["n0"].requested.get("cpu"), 100);
        assert!(snapshot.upsert_pod(&pod(1, Some(0), 100, "Succeeded")), "an ended pod frees its room");
        assert!(snapshot.nodes.is_empty());
    }

    #[test]
    fn absurd_amounts_are_summed_and_taken_back_exactly() {
        let mut snapshot = Snapshot::default();
        for index in 0..3 {
            snapshot.upsert_pod(&pod(index, Some(0), i64::MAX, "Running"));
        }
        snapshot.remove_pod(&PodKey::of(&pod(0, None, 0, "")));
        let cpu = snapshot.placed.values().next().unwrap().requests.get("cpu");
        assert_eq!(snapshot.nodes["n0"].requested.get("cpu"), cpu.saturating_mul(2));
    }

    #[test]
    fn a_pod_that_was_bound_after_all_stays() {
        let mut snapshot = Snapshot::default();
        let key = PodKey::of(&pod(1, None, 0, ""));
        snapshot.assume(&pod(1, None, 100, "Pending"), "n0");
        assert!(snapshot.forget_assumed(&key));
        snapshot.assume(&pod(1, None, 100, "Pending"), "n0");
        snapshot.upsert_pod(&pod(1, Some(0), 100, "Pending"));
        assert!(!snapshot.forget_assumed(&key));
        assert_eq!(snapshot.nodes["n0"].pods, 1);
    }

    #[test]
    fn ports_of_the_node_itself() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n0", "annotations": {
            OWN_PORTS: "TCP:6443, UDP:10.43.0.10:53,TCP:[fd00::1]:22,nonsense,TCP:x"}}}))
        .unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.upsert_node(&node);
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let expect = [port("0.0.0.0", "TCP", 6443), port("10.43.0.10", "UDP", 53), port("fd00::1", "TCP", 22)];
        assert_eq!(snapshot.nodes["n0"].own_ports, expect);
        assert!(!snapshot.upsert_node(&node), "a heartbeat");
    }

    #[test]
    fn host_ports() {
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let check = |a: HostPort, b: HostPort, expect: bool| assert_eq!(a.conflicts(&b), expect, "{a:?} {b:?}");
        check(port("0.0.0.0", "TCP", 80), port("192.0.2.1", "TCP", 80), true);
        check(port("192.0.2.1", "TCP", 80), port("192.0.2.2", "TCP", 80), false);
        check(port("0.0.0.0", "TCP", 80), port("0.0.0.0", "UDP", 80), false);
    }
}
