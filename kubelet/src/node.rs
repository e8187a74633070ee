//! The node's own object: registered once, its status kept, its lease renewed. Not the pods on it.
//! Invariant: stopping the kubelet unregisters nothing; a node that cannot run pods says why in its Ready condition.

mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_plane_decode::{Decoded, Skipped};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::events::Severity;
use crate::kit::Kit;
use crate::machine::Machine;
use crate::pods::Word;

/// An unchanged status is written this often all the same.
const STATUS_AGE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// While the node is not ready it looks again this soon: the runtime has no event for becoming ready.
const UNREADY_PAUSE: Duration = Duration::from_millis(250);
/// Between tries to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);
const IMAGES_MAX: usize = 50;
const LEASES: &str = "kube-node-lease";

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
    written: Option<(NodeStatus, Timestamp)>,
    pod_cidr: Option<String>,
    cidr_set: bool,
    node_uid: Option<String>,
}

fn in_future(pause: Duration) -> tokio::time::Instant {
    let now = tokio::time::Instant::now();
    now.checked_add(pause).unwrap_or(now)
}

impl Registration {
    #[must_use]
    pub fn new(kit: Arc<Kit>, machine: Machine, config: &Config, runtime_version: String) -> Registration {
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
            written: None,
            pod_cidr: None,
            cidr_set: false,
            node_uid: None,
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
        let api: Api<Decoded<Node>> = Api::all(self.kit.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut skipped = Skipped::new("kubelet");
        let stream = watcher(api, config)
            .default_backoff()
            .filter_map(move |event| std::future::ready(event.map(|event| skipped.event(event)).transpose()));
        let mut stream = std::pin::pin!(stream);
        let mut lease = tokio::time::interval(self.lease_renewal);
        lease.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A moment, not a length: a sleep that began anew with each tick of the lease would never end.
        let mut due = in_future(self.sync_status().await);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = lease.tick() => self.renew_lease().await,
                Some(event) = stream.next() => match event {
                    Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) => {
                        if self.hear_node(&node).await {
                            due = in_future(self.sync_status().await);
                        }
                        if words.send(Word::Node(Box::new(node))).await.is_err() {
                            return;
                        }
                    }
                    Ok(watcher::Event::Delete(_)) => {
                        tracing::warn!("the node has been deleted from the API; registering again");
                        self.written = None;
                        self.register(&words).await;
                        due = in_future(self.sync_status().await);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "watch of the node broken"),
                },
                () = tokio::time::sleep_until(due) => due = in_future(self.sync_status().await),
            }
        }
    }

    async fn register(&mut self, words: &mpsc::Sender<Word>) {
        let api: Api<Node> = Api::all(self.kit.client.clone());
        loop {
            match self.try_register(&api).await {
                Ok(node) => {
                    self.node_uid = node.metadata.uid.clone();
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
            self.written = None;
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
            status: Some(status),
            ..Node::default()
        };
        api.create(&PostParams::default(), &node).await
    }

    /// True if the status should be looked at anew.
    async fn hear_node(&mut self, node: &Node) -> bool {
        self.node_uid.clone_from(&node.metadata.uid);
        let cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| !c.is_empty());
        if cidr == self.pod_cidr && self.cidr_set {
            return false;
        }
        self.cidr_set = false;
        self.pod_cidr = cidr;
        self.tell_cidr().await;
        true
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

    /// Writes the status if it changed or is old; returns how long to wait until the next look.
    async fn sync_status(&mut self) -> Duration {
        self.tell_cidr().await;
        let now = Timestamp::now();
        let last = self.written.as_ref().map(|(status, _)| status.clone());
        let status = self.status(now, last.as_ref()).await;
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").cloned().unwrap_or_default();
        let ready = condition.status == "True";
        let pause = if ready { self.lease_renewal } else { UNREADY_PAUSE };
        let fresh = self.written.as_ref().is_some_and(|(old, at)| {
            without_heartbeat(old) == without_heartbeat(&status) && now.duration_since(*at) < STATUS_AGE_MAX
        });
        if fresh {
            return pause;
        }
        let api: Api<Node> = Api::all(self.kit.client.clone());
        let change = serde_json::json!({"status": status});
        match api.patch_status(&self.kit.node_name, &PatchParams::default(), &Patch::Strategic(change)).await {
            Ok(_) => {
                self.announce(last.as_ref(), &status);
                self.written = Some((status, now));
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
                Duration::from_secs(1)
            }
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

    async fn renew_lease(&self) {
        if let Err(error) =
            renew(&self.kit.client, &self.kit.node_name, self.node_uid.as_deref(), self.lease_renewal).await
        {
            tracing::debug!(%error, "lease not renewed");
        }
    }
}

fn without_heartbeat(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

async fn renew(client: &Client, name: &str, uid: Option<&str>, renewal: Duration) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let now = MicroTime(Timestamp::now());
    let change = serde_json::json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        result => return result.map(drop),
    }
    let owner = uid.map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }]
    });
    let seconds = i32::try_from(renewal.as_secs().max(1) * 4).unwrap_or(40);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(LEASES.into()),
            owner_references: owner,
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.into()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
