//! Which nodes a pod cannot go to, and why. Pure.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::affinity;
use crate::decide::Reason;
use crate::requests::Requests;
use crate::snapshot::{HostPort, NodeState};

/// What the filters need of a pod, read once for all nodes.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub pod: &'a Pod,
    pub requests: Requests,
    ports: Vec<HostPort>,
    tolerations: &'a [Toleration],
}

impl<'a> Wanted<'a> {
    pub(crate) fn of(pod: &'a Pod) -> Self {
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        Self { pod, requests: Requests::of_pod(pod), ports: HostPort::of_pod(pod).into_iter().collect(), tolerations }
    }

    /// Every reason why the node is out; none means it is feasible.
    pub(crate) fn refusals(&self, name: &str, node: &NodeState) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if node.is_unschedulable && !self.tolerates_unschedulable() {
            reasons.push(Reason::Unschedulable);
        } else if let Some(taint) = self.untolerated(&node.taints, &["NoSchedule", "NoExecute"]).next() {
            let value = taint.value.clone().unwrap_or_default();
            reasons.push(Reason::Taint { key: taint.key.clone(), value });
        } else if !affinity::required_matches(self.pod, name, node) {
            reasons.push(Reason::Affinity);
        } else if self
            .ports
            .iter()
            .any(|port| node.ports.iter().chain(&node.own_ports).any(|taken| taken.conflicts(port)))
        {
            reasons.push(Reason::Ports);
        } else {
            reasons.extend(self.missing(node));
        }
        reasons
    }

    fn missing(&self, node: &NodeState) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if !node.has_room_for_a_pod() {
            reasons.push(Reason::TooManyPods);
        }
        for (resource, wanted) in self.requests.iter() {
            if wanted > 0 && wanted > node.allocatable.get(resource).saturating_sub(node.requested.get(resource)) {
                reasons.push(Reason::Insufficient { resource: resource.to_owned() });
            }
        }
        reasons
    }

    fn tolerates_unschedulable(&self) -> bool {
        let taint =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        self.tolerations.iter().any(|toleration| tolerates(toleration, &taint))
    }

    pub(crate) fn untolerated<'n>(&self, taints: &'n [Taint], effects: &[&str]) -> impl Iterator<Item = &'n Taint> {
        taints.iter().filter(move |taint| {
            effects.contains(&taint.effect.as_str())
                && !self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
        })
    }
}

/// kubernetes.io, "Taints and Tolerations": an empty key with `Exists` matches every taint, an empty effect every effect.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty_or =
        |field: &Option<String>, wanted: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == wanted);
    if !empty_or(&toleration.effect, &taint.effect) || !empty_or(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
                && toleration.key.as_deref().is_some_and(|key| !key.is_empty())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn tolerations() {
        let check = |toleration: Value, expect: bool| {
            let taint =
                Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), ..Taint::default() };
            let parsed = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&parsed, &taint), expect, "{toleration}");
        };
        check(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true);
        check(json!({"key": "k", "value": "v"}), true);
        check(json!({"key": "k", "value": "other"}), false);
        check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false);
        check(json!({"key": "k", "operator": "Exists"}), true);
        check(json!({"operator": "Exists"}), true);
        check(json!({"value": "v"}), false);
    }
}
