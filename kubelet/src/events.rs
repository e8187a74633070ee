//! Events as `kubectl describe` shows them. One task writes; the same thing said again raises the count of the first saying.
//! Not a log: an event that cannot be written after a few tries is dropped. Invariant: nobody waits for an event.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod::LocalPod;

/// Beyond this many unwritten events new ones are dropped.
const QUEUE_MAX: usize = 1000;
/// Sayings remembered; beyond it the memory is cleared, and counts start again.
const REMEMBERED_MAX: usize = 4096;
const TRIES: u32 = 4;
/// Events of one object written at once, and how long it takes to earn one more; upstream's numbers.
const BURST: u32 = 25;
const EARN_SECONDS: i64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Saying {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field: Option<String>,
    severity: Severity,
    reason: String,
    message: String,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    sender: mpsc::Sender<Saying>,
}

impl Recorder {
    /// The recorder and the task that writes.
    pub fn new(client: Client, node_name: String, shutdown: CancellationToken) -> (Recorder, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { client, node_name, known: HashMap::new(), budgets: BTreeMap::new() };
        (Recorder { sender }, writer.run(receiver, shutdown))
    }

    /// About a pod, or one of its containers.
    pub fn pod(
        &self,
        pod: &LocalPod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let field = container.map(|name| {
            let list = match pod.member(name).map(|m| m.kind) {
                Some(crate::pod::Kind::Init | crate::pod::Kind::Sidecar) => "initContainers",
                Some(crate::pod::Kind::Ephemeral) => "ephemeralContainers",
                _ => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        self.say(Saying {
            kind: "Pod".into(),
            namespace: pod.key.namespace.clone(),
            name: pod.key.name.clone(),
            uid: pod.uid.clone(),
            field,
            severity,
            reason: reason.into(),
            message: message.into(),
        });
    }

    /// About the node itself.
    pub fn node(&self, name: &str, severity: Severity, reason: &str, message: impl Into<String>) {
        self.say(Saying {
            kind: "Node".into(),
            namespace: "default".into(),
            name: name.into(),
            // Upstream: the node's name stands in for its uid.
            uid: name.into(),
            field: None,
            severity,
            reason: reason.into(),
            message: message.into(),
        });
    }

    fn say(&self, saying: Saying) {
        if let Err(error) = self.sender.try_send(saying) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

struct Known {
    event_name: String,
    count: i32,
}

/// How many events of one object may still be written.
struct Budget {
    left: u32,
    since: Timestamp,
}

struct Writer {
    client: Client,
    node_name: String,
    known: HashMap<Saying, Known>,
    budgets: BTreeMap<String, Budget>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Saying>, shutdown: CancellationToken) {
        loop {
            let saying = tokio::select! {
                saying = receiver.recv() => saying,
                () = shutdown.cancelled() => return,
            };
            let Some(saying) = saying else { return };
            if !self.affordable(&saying.uid, Timestamp::now()) {
                continue;
            }
            for attempt in 0..TRIES {
                let Ok(written) = crate::survival::caught(self.write(&saying)).await else { break };
                let Err(error) = written else { break };
                let lasting = matches!(&error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429);
                if lasting || attempt + 1 == TRIES {
                    tracing::debug!(%error, reason = %saying.reason, "event not written");
                    break;
                }
                if tokio::time::timeout(Duration::from_secs(1 << attempt), shutdown.cancelled()).await.is_ok() {
                    return;
                }
            }
        }
    }

    fn affordable(&mut self, uid: &str, now: Timestamp) -> bool {
        if self.budgets.len() > REMEMBERED_MAX {
            self.budgets.clear();
        }
        let budget = self.budgets.entry(uid.into()).or_insert(Budget { left: BURST, since: now });
        let earned = now.duration_since(budget.since).as_secs() / EARN_SECONDS;
        if earned > 0 {
            budget.left = budget.left.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            budget.since = now;
        }
        if budget.left == 0 {
            return false;
        }
        budget.left -= 1;
        true
    }

    async fn write(&mut self, saying: &Saying) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &saying.namespace);
        let now = Time(crate::status::whole_seconds(Timestamp::now()));
        if let Some(known) = self.known.get_mut(saying) {
            known.count = known.count.saturating_add(1);
            let change = serde_json::json!({"count": known.count, "lastTimestamp": now});
            match api.patch(&known.event_name, &PatchParams::default(), &Patch::Merge(change)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => return result.map(drop),
            }
        }
        // Names in the order of time: lists, and so `kubectl describe`, show events as they came. One task writes them all.
        let event_name = format!("{}.{:x}", saying.name, Timestamp::now().as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(event_name.clone()),
                namespace: Some(saying.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(saying.kind.clone()),
                name: Some(saying.name.clone()),
                namespace: (saying.kind != "Node").then(|| saying.namespace.clone()),
                uid: Some(saying.uid.clone()),
                field_path: saying.field.clone(),
                ..ObjectReference::default()
            },
            type_: Some(match saying.severity {
                Severity::Normal => "Normal".into(),
                Severity::Warning => "Warning".into(),
            }),
            reason: Some(saying.reason.clone()),
            // validation.go limits messages to 1 KiB.
            message: Some(saying.message.chars().take(1000).collect()),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(self.node_name.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node_name.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        self.known.insert(saying.clone(), Known { event_name, count: 1 });
        Ok(())
    }
}
