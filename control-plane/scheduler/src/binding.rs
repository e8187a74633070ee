//! What a decision writes: the binding, the pod's condition, and the event that tells a person.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tracing::warn;

use crate::explanation::{Explanation, reference};
use crate::snapshot::PodKey;

/// Writes on behalf of the scheduler; cheap to clone into a task.
#[derive(Clone)]
pub(crate) struct Writer {
    client: kube::Client,
    recorder: Recorder,
}

/// How a binding ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Bound,
    /// The pod is gone, or has a node already: nothing is left to do.
    Obsolete,
    Failed(kube::Error),
    /// No answer, or a panic: it is not known whether the pod has a node now. The watch tells, or the next try does.
    Lost(String),
}

impl Writer {
    pub(crate) fn new(client: kube::Client, scheduler_name: &str) -> Self {
        let reporter = Reporter { controller: scheduler_name.into(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// POST of a core/v1 Binding.
    pub(crate) async fn bind(&self, pod: &Pod, node: &str) -> Outcome {
        let key = PodKey::of(pod);
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": key.namespace, "name": key.name, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let posted: Result<serde_json::Value, kube::Error> =
            pods.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
        match posted {
            Ok(_status) => {
                let note = format!("Successfully assigned {key} to {node}");
                self.publish(&reference(pod), EventType::Normal, "Scheduled", "Binding", note).await;
                Outcome::Bound
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Outcome::Obsolete,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Says in the pod's condition and in an event why it has no node yet.
    pub(crate) async fn explain(&self, key: &PodKey, explanation: &Explanation) {
        let Explanation { regarding, reason, message } = explanation;
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": Timestamp::now().round(jiff::Unit::Second).unwrap_or(Timestamp::UNIX_EPOCH),
        });
        let patch = json!({"metadata": {"uid": regarding.uid}, "status": {"conditions": [condition]}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match pods.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => warn!(pod = %key, %error, "could not say why the pod waits"),
        }
        self.publish(regarding, EventType::Warning, "FailedScheduling", "Scheduling", message.clone()).await;
    }

    async fn publish(&self, pod: &ObjectReference, kind: EventType, reason: &str, action: &str, note: String) {
        let event =
            Event { type_: kind, reason: reason.into(), note: Some(note), action: action.into(), secondary: None };
        if let Err(error) = self.recorder.publish(&event, pod).await {
            let (namespace, name) = (pod.namespace.as_deref(), pod.name.as_deref());
            warn!(namespace, name, reason, %error, "an event was lost");
        }
    }
}
