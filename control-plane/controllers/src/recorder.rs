//! Events of the controllers. The same thing said again about the same object raises the count of the first saying.
//!
//! Not the recorder of the crate `kube`: that one takes two messages of one reason for the same event and keeps the first,
//! so that `describe deployment` would show one scaling of many. Invariant: different messages are different events, until
//! one object has too many of them.

mod correlate;

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use tracing::debug;

use correlate::{Correlator, Known, Verdict};

/// Characters of a message; events.k8s.io limits a note to 1 KiB.
const MESSAGE_MAX: usize = 1000;

/// What is said about whom.
#[derive(Clone, Debug)]
pub(crate) struct Saying {
    pub regarding: ObjectReference,
    pub is_warning: bool,
    pub reason: String,
    pub message: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: kube::Client,
    component: &'static str,
    correlator: Arc<Mutex<Correlator>>,
}

impl Recorder {
    pub(crate) fn new(client: kube::Client, component: &'static str) -> Self {
        Self { client, component, correlator: Arc::default() }
    }

    pub(crate) async fn publish(&self, saying: Saying) -> Result<(), kube::Error> {
        let judged = self.correlator.lock().unwrap_or_else(PoisonError::into_inner).judge(&saying, Instant::now());
        let (message, content, known) = match judged {
            Verdict::Drop { dropped } => {
                let (reason, name) = (&saying.reason, saying.regarding.name.as_deref());
                debug!(
                    component = self.component,
                    reason, name, dropped, "too many events of one object; this one is dropped"
                );
                return Ok(());
            }
            Verdict::Write { message, content, known } => (message, content, known),
        };
        let saying = Saying { message, ..saying };
        let namespace = saying.regarding.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Timestamp::now();
        if let Some(Known { name, count }) = known {
            let seconds = Time(whole_seconds(now));
            let message: String = saying.message.chars().take(MESSAGE_MAX).collect();
            let change = json!({"count": count, "lastTimestamp": seconds, "message": message});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await {
                // It has expired: the next one is the first again.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => return result.map(drop),
            }
        }
        let event = self.event(saying, namespace, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        self.correlator.lock().unwrap_or_else(PoisonError::into_inner).written(content, name);
        Ok(())
    }

    fn event(&self, saying: Saying, namespace: String, now: Timestamp) -> Event {
        let Saying { regarding, is_warning, reason, message } = saying;
        // Names in the order of time: lists, and so `kubectl describe`, show events as they came.
        let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or(self.component), now.as_nanosecond());
        let seconds = Time(whole_seconds(now));
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: regarding,
            type_: Some(if is_warning { "Warning" } else { "Normal" }.into()),
            reason: Some(reason),
            message: Some(message.chars().take(MESSAGE_MAX).collect()),
            source: Some(EventSource { component: Some(self.component.into()), host: None }),
            reporting_component: Some(self.component.into()),
            first_timestamp: Some(seconds.clone()),
            last_timestamp: Some(seconds),
            count: Some(1),
            ..Event::default()
        }
    }
}

/// Times of objects have no fractions.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
