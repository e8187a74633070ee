//! Explanations that wait to be written: at most one a pod, the newest, and nothing of the pod but its name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::snapshot::PodKey;

/// Why a pod has no node yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Explanation {
    pub regarding: ObjectReference,
    pub reason: &'static str,
    pub message: String,
}

impl Explanation {
    /// `None` if the pod says so itself already.
    pub(crate) fn new(pod: &Pod, reason: &'static str, message: String) -> Option<Self> {
        let says_already = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.reason.as_deref() == Some(reason)
                && condition.message.as_deref() == Some(message.as_str())
        });
        (!says_already).then(|| Self { regarding: reference(pod), reason, message })
    }
}

pub(crate) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// Bounded by the pods that wait.
#[derive(Debug, Default)]
pub(crate) struct Explanations {
    waiting: BTreeMap<PodKey, Explanation>,
}

impl Explanations {
    /// In place of what was to be said of the pod before. `None`: nothing is to be said any more.
    pub(crate) fn put(&mut self, key: &PodKey, explanation: Option<Explanation>) {
        match explanation {
            Some(explanation) => drop(self.waiting.insert(key.clone(), explanation)),
            None => drop(self.waiting.remove(key)),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(PodKey, Explanation)> {
        self.waiting.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(conditions: &Value) -> Pod {
        let status = json!({"conditions": conditions});
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "p", "uid": "u"}, "status": status}))
            .unwrap()
    }

    #[test]
    fn each_pod_has_one_the_newest() {
        let mut explanations = Explanations::default();
        let key = PodKey { namespace: "d".into(), name: "p".into() };
        for message in ["0/1 nodes", "0/2 nodes"] {
            explanations.put(&key, Explanation::new(&pod(&json!([])), "Unschedulable", message.into()));
        }
        assert_eq!(explanations.pop().unwrap().1.message, "0/2 nodes");
        assert!(explanations.pop().is_none());
        let said =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]);
        explanations.put(&key, Explanation::new(&pod(&json!([])), "Unschedulable", "0/2 nodes".into()));
        explanations.put(&key, Explanation::new(&pod(&said), "Unschedulable", "0/1 nodes".into()));
        assert!(explanations.pop().is_none(), "the pod says so itself");
    }
}
