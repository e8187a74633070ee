//! The node's own object: registered whenever it is not there, its status kept, its lease renewed. Not the pods on it.
//! Invariants: stopping the kubelet unregisters nothing; a node that cannot run pods says why in its Ready condition; the status is
//! held against the object as the API has it, whoever wrote it last, never against the memory of the last write.

mod conditions;
mod lease;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_plane_decode::{Decoded, Skipped};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::events::Severity;
use crate::kit::Kit;
use crate::listeners;
use crate::machine::Machine;
use crate::pods::{Registry, Word};

/// An unchanged status is written this often all the same.
const STATUS_AGE_MAX: Duration = Duration::from_secs(300);
/// After somebody else has written something into the status, or a write has failed, so that no race begins.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);
/// While the node is not ready it looks again this soon: the runtime has no event for becoming ready.
const UNREADY_PAUSE: Duration = Duration::from_millis(250);
/// Between tries to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);
const IMAGES_MAX: usize = 50;

/// Whether pods can come to this node, as far as the API knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    #[default]
    Unknown,
    /// In words, for a person.
    NotReady(String),
    Ready,
}

/// What the node's task works with.
#[derive(Debug)]
pub struct Registration {
    pub kit: Arc<Kit>,
    pub machine: Machine,
    pub addresses: Vec<NodeAddress>,
    pub labels: BTreeMap<String, String>,
    pub pods_max: u32,
    pub port: Option<u16>,
    pub version: String,
    pub runtime_version: String,
    pub lease_renewal: Duration,
    pub ready: Option<tokio::sync::watch::Sender<Readiness>>,
    registry: Registry,
    /// The object as it was last seen, by the watch or in an answer.
    seen: Option<Node>,
    written: Option<Written>,
    pod_cidr: Option<String>,
    cidr_set: bool,
    node_uid: watch::Sender<Option<String>>,
}

/// The last write of the status.
#[derive(Debug)]
struct Written {
    asked: NodeStatus,
    /// What the API server made of it.
    made: NodeStatus,
    at: Instant,
}

impl Registration {
    #[must_use]
    pub fn new(
        kit: Arc<Kit>,
        registry: Registry,
        machine: Machine,
        config: &Config,
        runtime_version: String,
    ) -> Registration {
        let mut addresses: Vec<NodeAddress> = config
            .node_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".into(), address: config.node_name.clone() });
        let own = [
            ("kubernetes.io/hostname", config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", machine.architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", machine.architecture),
        ];
        let mut labels = config.node_labels.clone();
        labels.extend(own.map(|(k, v)| (k.to_owned(), v.to_owned())));
        Registration {
            kit,
            machine,
            addresses,
            labels,
            pods_max: config.pods_max,
            port: config.listen.map(|l| l.port()),
            version: config.version.clone(),
            runtime_version,
            lease_renewal: config.lease_renewal,
            ready: config.ready.clone(),
            registry,
            seen: None,
            written: None,
            pod_cidr: None,
            cidr_set: false,
            node_uid: watch::Sender::new(None),
        }
    }

    /// Runs until shutdown.
    pub async fn run(mut self, words: mpsc::Sender<Word>, shutdown: CancellationToken) {
        let name = self.kit.node_name.clone();
        tokio::select! {
            () = self.register(&words) => {}
            () = shutdown.cancelled() => return,
        }
        self.kit.recorder.node(&name, Severity::Normal, "Starting", "Starting kubelet.");
        // Beside the status, so that a runtime that is slow to answer does not make the node look lost.
        let lease = lease::keep(self.kit.client.clone(), name, self.node_uid.subscribe(), self.lease_renewal);
        tokio::select! {
            () = self.look_after(&words) => {}
            () = lease => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Until nobody wants to know.
    async fn look_after(&mut self, words: &mpsc::Sender<Word>) {
        let api: Api<Decoded<Node>> = Api::all(self.kit.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.kit.node_name));
        let stream = watcher(api, config).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut skipped = Skipped::new("kubelet");
        // One timer for as long as the task: made anew in the arm, it would never be due beside busier ones.
        let mut due = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut is_listed = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = &mut due => {
                    due.as_mut().reset(soon(self.sync_status().await));
                    continue;
                }
            };
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    tracing::debug!(%error, "watch of the node broken");
                    continue;
                }
                None => return,
            };
            // Also a node that cannot be read is one.
            is_listed = match &event {
                watcher::Event::Init => false,
                watcher::Event::InitApply(_) | watcher::Event::Apply(_) => true,
                watcher::Event::InitDone | watcher::Event::Delete(_) => is_listed,
            };
            // It went, or had gone while nobody listened.
            let is_gone = matches!(event, watcher::Event::Delete(_));
            if is_gone || (matches!(event, watcher::Event::InitDone) && !is_listed) {
                tracing::warn!("the node has been deleted from the API; registering again");
                self.seen = None;
                self.register(words).await;
                due.as_mut().reset(soon(Duration::ZERO));
                continue;
            }
            let Some(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) = skipped.event(event) else {
                continue;
            };
            if let Some(wait) = self.hear_node(&node).await
                && due.deadline() > soon(wait)
            {
                due.as_mut().reset(soon(wait));
            }
            if words.send(Word::Node(Box::new(node))).await.is_err() {
                return;
            }
        }
    }

    async fn register(&mut self, words: &mpsc::Sender<Word>) {
        let api: Api<Node> = Api::all(self.kit.client.clone());
        loop {
            match self.try_register(&api).await {
                Ok(node) => {
                    self.take_in(&node);
                    // The pods' manager is there for as long as this task.
                    let _ = words.send(Word::Node(Box::new(node))).await;
                    return;
                }
                Err(error) => tracing::warn!(%error, "node not registered yet"),
            }
            tokio::time::sleep(REGISTER_PAUSE).await;
        }
    }

    async fn try_register(&mut self, api: &Api<Node>) -> Result<Node, kube::Error> {
        let name = self.kit.node_name.clone();
        if let Some(found) = api.get_opt(&name).await? {
            let labels = found.metadata.labels.clone().unwrap_or_default();
            let missing: BTreeMap<_, _> = self.labels.iter().filter(|(k, v)| labels.get(*k) != Some(v)).collect();
            if missing.is_empty() {
                return Ok(found);
            }
            let change = serde_json::json!({"metadata": {"labels": missing}});
            return api.patch(&name, &PatchParams::default(), &Patch::Strategic(change)).await;
        }
        let status = self.status(Timestamp::now(), None).await;
        let node = Node {
            metadata: ObjectMeta { name: Some(name), labels: Some(self.labels.clone()), ..ObjectMeta::default() },
            status: Some(status.clone()),
            ..Node::default()
        };
        let made = api.create(&PostParams::default(), &node).await?;
        self.announce(None, &status);
        Ok(made)
    }

    /// Notes the object, unless something newer is known of it.
    fn take_in(&mut self, node: &Node) {
        let version = |node: &Node| node.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
        let known = self.seen.as_ref().filter(|seen| seen.metadata.uid == node.metadata.uid).and_then(version);
        if known.zip(version(node)).is_some_and(|(known, new)| new < known) {
            return;
        }
        self.node_uid.send_if_modified(|uid| {
            let is_other = *uid != node.metadata.uid;
            uid.clone_from(&node.metadata.uid);
            is_other
        });
        self.seen = Some(node.clone());
    }

    /// How soon the status should be looked at anew, if at all.
    async fn hear_node(&mut self, node: &Node) -> Option<Duration> {
        self.take_in(node);
        let cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| !c.is_empty());
        if cidr != self.pod_cidr || !self.cidr_set {
            self.cidr_set = false;
            self.pod_cidr = cidr;
            self.tell_cidr().await;
            return Some(Duration::ZERO);
        }
        let stands = self.written.as_ref().is_none_or(|written| self.has(&written.asked));
        (!stands).then_some(REPAIR_PAUSE)
    }

    /// Whether the object has this status, but for the time of its last heartbeat.
    fn has(&self, wanted: &NodeStatus) -> bool {
        let Some(seen) = self.seen.as_ref().map(|node| conditions::ours(node.status.as_ref(), wanted)) else {
            return false;
        };
        let wanted = conditions::ours(Some(wanted), wanted);
        // The API server's own way to write a value is no difference.
        let as_made = |w: &Written| conditions::ours(Some(&w.asked), &w.asked) == wanted && w.made == seen;
        seen == wanted || self.written.as_ref().is_some_and(as_made)
    }

    async fn tell_cidr(&mut self) {
        let Some(cidr) = self.pod_cidr.clone().filter(|_| !self.cidr_set) else { return };
        match self.kit.runtime.set_pod_cidr(cidr.clone()).await {
            Ok(()) => {
                tracing::info!(cidr, "the runtime has been told the pods' network");
                self.cidr_set = true;
            }
            Err(error) => tracing::warn!(%error, "the runtime does not take the pods' network"),
        }
    }

    /// Writes the status if the object has another or an old one; returns how long to wait until the next look.
    async fn sync_status(&mut self) -> Duration {
        self.tell_cidr().await;
        self.tell_ports().await;
        let now = Timestamp::now();
        let last = self.seen.as_ref().and_then(|node| node.status.clone());
        let status = self.status(now, last.as_ref()).await;
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").cloned().unwrap_or_default();
        let ready = condition.status == "True";
        let pause = if ready { self.lease_renewal } else { UNREADY_PAUSE };
        let is_fresh = self.written.as_ref().is_some_and(|written| written.at.elapsed() < STATUS_AGE_MAX);
        if is_fresh && self.has(&status) {
            return pause;
        }
        let api: Api<Node> = Api::all(self.kit.client.clone());
        let change = serde_json::json!({"status": status});
        match api.patch_status(&self.kit.node_name, &PatchParams::default(), &Patch::Strategic(change)).await {
            Ok(answer) => {
                self.take_in(&answer);
                let before = self.written.take().map(|written| written.asked).or(last);
                self.announce(before.as_ref(), &status);
                let made = conditions::ours(answer.status.as_ref(), &status);
                self.written = Some(Written { asked: status, made, at: Instant::now() });
                let why = condition.message.unwrap_or_default();
                self.tell(if ready { Readiness::Ready } else { Readiness::NotReady(why) });
                pause
            }
            Err(error) => {
                tracing::warn!(%error, "node status not written");
                let why = match error {
                    kube::Error::Api(status) => status.message,
                    other => other.to_string(),
                };
                self.tell(Readiness::NotReady(format!("its status cannot be written: {why}")));
                REPAIR_PAUSE
            }
        }
    }

    /// Says on the object on which ports the node itself listens, so that no pod that wants one comes here.
    async fn tell_ports(&mut self) {
        let pods: Vec<_> = self.registry.all().iter().map(|h| h.snapshot.borrow().pod.clone()).collect();
        let look = move || listeners::text(&crate::admission::nodes_own(listeners::all(), &pods));
        let Ok(ports) = tokio::task::spawn_blocking(look).await else { return };
        let annotations = self.seen.as_ref().and_then(|node| node.metadata.annotations.as_ref());
        if annotations.and_then(|a| a.get(listeners::ANNOTATION)) == Some(&ports) {
            return;
        }
        let api: Api<Node> = Api::all(self.kit.client.clone());
        let change = serde_json::json!({"metadata": {"annotations": {listeners::ANNOTATION: ports}}});
        match api.patch(&self.kit.node_name, &PatchParams::default(), &Patch::Merge(change)).await {
            Ok(node) => self.take_in(&node),
            Err(error) => tracing::debug!(%error, "the node's ports not told"),
        }
    }

    /// An event for each condition that is another than before.
    fn announce(&self, before: Option<&NodeStatus>, after: &NodeStatus) {
        let name = &self.kit.node_name;
        for condition in after.conditions.iter().flatten() {
            let mut old = before.into_iter().flat_map(|status| status.conditions.iter().flatten());
            let is_old = old.any(|old| old.type_ == condition.type_ && old.status == condition.status);
            // A node that has just come is not ready yet; that is no news.
            let is_dawn = before.is_none() && condition.type_ == "Ready" && condition.status == "False";
            if let Some(reason) = conditions::news(condition).filter(|_| !is_old && !is_dawn) {
                let text = format!("Node {name} status is now: {reason}");
                self.kit.recorder.node(name, Severity::Normal, reason, text);
            }
        }
    }

    fn tell(&self, readiness: Readiness) {
        if let Some(sender) = &self.ready {
            sender.send_replace(readiness);
        }
    }

    async fn status(&self, now: Timestamp, old: Option<&NodeStatus>) -> NodeStatus {
        let runtime = self.kit.runtime.status().await;
        let host = &self.kit.host;
        let old_conditions: &[NodeCondition] = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let conditions = conditions::all(&runtime, &conditions::Load::measure(&host.data_dir), old_conditions, now);
        let quantity = |n: u64| Quantity(n.to_string());
        let resources = |cpu_millis: u64, memory: u64| -> BTreeMap<String, Quantity> {
            let cpu = if cpu_millis.is_multiple_of(1000) {
                (cpu_millis / 1000).to_string()
            } else {
                format!("{cpu_millis}m")
            };
            [
                ("cpu".to_owned(), Quantity(cpu)),
                ("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024))),
                ("pods".to_owned(), quantity(u64::from(self.pods_max))),
                ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", self.machine.disk_bytes / 1024))),
            ]
            .into()
        };
        NodeStatus {
            addresses: Some(self.addresses.clone()),
            capacity: Some(resources(self.kit.cpu_capacity_millis, self.kit.memory_capacity_bytes)),
            allocatable: Some(resources(self.kit.allocatable_cpu_millis, self.kit.allocatable_memory_bytes)),
            conditions: Some(conditions),
            daemon_endpoints: self
                .port
                .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }) }),
            images: Some(self.images().await),
            node_info: Some(NodeSystemInfo {
                architecture: self.machine.architecture.into(),
                boot_id: self.machine.boot_id.clone(),
                container_runtime_version: self.runtime_version.clone(),
                kernel_version: self.machine.kernel.clone(),
                kube_proxy_version: String::new(),
                kubelet_version: self.version.clone(),
                machine_id: self.machine.machine_id.clone(),
                operating_system: "linux".into(),
                os_image: self.machine.os_image.clone(),
                system_uuid: self.machine.system_uuid.clone(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }
    }

    /// The largest images of the node.
    async fn images(&self) -> Vec<ContainerImage> {
        let Ok(mut images) = self.kit.runtime.list_images().await else { return Vec::new() };
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        let shown = images.into_iter().take(IMAGES_MAX).map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        });
        shown.collect()
    }
}

/// A moment from now.
fn soon(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or(now)
}
