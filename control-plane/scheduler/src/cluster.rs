//! The scheduler's one task: events in, decisions out.
//!
//! Owns the snapshot and the queue. Bindings run beside it, at most `BINDINGS_MAX` at once; their ends come back as events,
//! like everything else.

use std::collections::HashSet;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tracing::{info, warn};

use crate::binding::{Outcome, Writer};
use crate::decide::{Decision, decide};
use crate::queue::{Change, Queue};
use crate::snapshot::{PodKey, Snapshot, has_ended, node_of};
use crate::{Config, Error};

/// Bindings under way at once. Beyond it, pods wait in the queue.
const BINDINGS_MAX: usize = 64;
/// How long a pod waits after the API server failed to take its binding.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The end of something that ran beside the task.
enum Finished {
    Binding { pod: Box<Pod>, outcome: Outcome },
    Retry(PodKey),
    Explained,
}

struct Cluster {
    scheduler_name: String,
    writer: Writer,
    snapshot: Snapshot,
    queue: Queue,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    bindings: usize,
    relisted_nodes: Option<HashSet<String>>,
    relisted_pods: Option<HashSet<PodKey>>,
    /// Nothing is decided before both lists are whole: a half-known cluster looks emptier than it is.
    has_nodes: bool,
    has_pods: bool,
}

pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let mut nodes = watch::<Node>(&config.client, watcher::Config::default());
    let unfinished = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let mut pods = watch::<Pod>(&config.client, unfinished);
    let mut cluster = Cluster {
        writer: Writer::new(config.client, &config.scheduler_name),
        scheduler_name: config.scheduler_name,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        running: FuturesUnordered::new(),
        bindings: 0,
        relisted_nodes: None,
        relisted_pods: None,
        has_nodes: false,
        has_pods: false,
    };
    loop {
        tokio::select! {
            event = nodes.next() => cluster.on_node(event.ok_or(Error::WatchEnded { what: "nodes" })?),
            event = pods.next() => cluster.on_pod(event.ok_or(Error::WatchEnded { what: "pods" })?),
            Some(finished) = cluster.running.next() => cluster.on_finished(finished),
        }
        cluster.place_pods();
    }
}

type Watch<K> = futures::stream::BoxStream<'static, watcher::Result<watcher::Event<K>>>;

fn watch<K>(client: &kube::Client, config: watcher::Config) -> Watch<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(Api::<K>::all(client.clone()), config).default_backoff().boxed()
}

impl Cluster {
    fn on_node(&mut self, event: watcher::Result<watcher::Event<Node>>) {
        match event {
            Ok(watcher::Event::Init) => self.relisted_nodes = Some(HashSet::new()),
            Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) => {
                if let Some(seen) = &mut self.relisted_nodes {
                    seen.extend(node.metadata.name.clone());
                }
                if self.snapshot.upsert_node(&node) {
                    self.queue.wake(Change::Node);
                }
            }
            Ok(watcher::Event::Delete(node)) => {
                self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
            Ok(watcher::Event::InitDone) => {
                let seen = self.relisted_nodes.take().unwrap_or_default();
                for name in self.snapshot.node_names().into_iter().filter(|name| !seen.contains(name)) {
                    self.snapshot.remove_node(&name);
                }
                self.has_nodes = true;
            }
            Err(error) => warn!(%error, "the watch of nodes broke; it is taken up again"),
        }
    }

    fn on_pod(&mut self, event: watcher::Result<watcher::Event<Pod>>) {
        match event {
            Ok(watcher::Event::Init) => self.relisted_pods = Some(HashSet::new()),
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                if let Some(seen) = &mut self.relisted_pods {
                    seen.insert(PodKey::of(&pod));
                }
                self.upsert_pod(pod);
            }
            Ok(watcher::Event::Delete(pod)) => self.forget(&PodKey::of(&pod)),
            Ok(watcher::Event::InitDone) => {
                let seen = self.relisted_pods.take().unwrap_or_default();
                let known = self.snapshot.pod_keys().into_iter().chain(self.queue.keys());
                for key in known.filter(|key| !seen.contains(key)).collect::<Vec<_>>() {
                    self.forget(&key);
                }
                self.has_pods = true;
            }
            Err(error) => warn!(%error, "the watch of pods broke; it is taken up again"),
        }
    }

    fn upsert_pod(&mut self, pod: Pod) {
        if self.snapshot.upsert_pod(&pod) {
            self.queue.wake(Change::PodGone);
        }
        let is_ours = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(crate::DEFAULT_NAME)
            == self.scheduler_name;
        let is_gated = pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        if node_of(&pod).is_none() && !has_ended(&pod) && is_ours && !is_gated && !is_leaving {
            self.queue.upsert(pod);
        } else {
            self.queue.remove(&PodKey::of(&pod));
        }
    }

    fn forget(&mut self, key: &PodKey) {
        self.queue.remove(key);
        if self.snapshot.remove_pod(key) {
            self.queue.wake(Change::PodGone);
        }
    }

    fn on_finished(&mut self, finished: Finished) {
        match finished {
            Finished::Binding { pod, outcome } => self.on_bound(&pod, outcome),
            Finished::Retry(key) => self.queue.activate(&key),
            Finished::Explained => {}
        }
    }

    fn on_bound(&mut self, pod: &Pod, outcome: Outcome) {
        self.bindings -= 1;
        let key = PodKey::of(pod);
        match outcome {
            Outcome::Bound => info!(pod = %key, "bound"),
            // The watch will say, or has said, what became of it.
            Outcome::Obsolete => self.forget(&key),
            Outcome::Failed(error) => {
                warn!(pod = %key, %error, "binding failed; it is tried again");
                if self.snapshot.remove_pod(&key) {
                    self.queue.wake(Change::PodGone);
                }
                let retry = async move {
                    tokio::time::sleep(RETRY_DELAY).await;
                    Finished::Retry(key)
                };
                self.running.push(retry.boxed());
            }
        }
    }

    /// Decides on every active pod, one after the other, each on what the ones before left.
    fn place_pods(&mut self) {
        if !(self.has_nodes && self.has_pods) {
            return;
        }
        while self.bindings < BINDINGS_MAX {
            let Some(pod) = self.queue.pop() else { return };
            match decide(&self.snapshot, &pod) {
                Decision::Bind { node } => {
                    self.snapshot.assume(&pod, &node);
                    self.bindings += 1;
                    let writer = self.writer.clone();
                    let binding = async move {
                        let outcome = writer.bind(&pod, &node).await;
                        Finished::Binding { pod: Box::new(pod), outcome }
                    };
                    self.running.push(binding.boxed());
                }
                nowhere => {
                    let message = nowhere.message();
                    let Decision::Nowhere { reasons, .. } = nowhere else { continue };
                    self.queue.wait(&PodKey::of(&pod), reasons.into_keys().collect());
                    let writer = self.writer.clone();
                    let explanation = async move {
                        writer.explain(&pod, "Unschedulable", &message).await;
                        Finished::Explained
                    };
                    self.running.push(explanation.boxed());
                }
            }
        }
    }
}
