//! The scheduler's one task: events in, decisions out.
//!
//! Owns the snapshot and the queue. Bindings run beside it, at most `BINDINGS_MAX` at once; their ends come back as events,
//! like everything else.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use control_plane_api::panics;
use control_plane_decode::{Decoded, Skipped};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::binding::{Outcome, Writer};
use crate::decide::{Decision, decide};
use crate::explanation::{Explanation, Explanations};
use crate::queue::{Change, Queue};
use crate::snapshot::{PodKey, Snapshot, has_ended, node_of};
use crate::{Config, Error};

/// Bindings under way at once. Beyond it, pods wait in the queue.
const BINDINGS_MAX: usize = 64;
/// Explanations under way at once. Beyond it they wait, one a pod.
const EXPLANATIONS_MAX: usize = 16;
/// Decisions between two looks at what has happened.
const DECISIONS_MAX: usize = 128;
/// The API server is in this process: a write that takes longer hangs.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// The end of something that ran beside the task.
enum Finished {
    Binding { pod: Box<Pod>, outcome: Outcome },
    Explained,
}

struct Cluster {
    scheduler_name: String,
    writer: Writer,
    snapshot: Snapshot,
    queue: Queue,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    bindings: usize,
    explanations: Explanations,
    explaining: usize,
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
        explanations: Explanations::default(),
        explaining: 0,
        relisted_nodes: None,
        relisted_pods: None,
        has_nodes: false,
        has_pods: false,
    };
    loop {
        let due = cluster.queue.due();
        let rested = async {
            match due {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What has happened comes first, then the decisions that are left.
            biased;
            event = nodes.next() => {
                let event = event.ok_or(Error::WatchEnded { what: "nodes" })?;
                walled("a node", || cluster.on_node(event));
            }
            event = pods.next() => {
                let event = event.ok_or(Error::WatchEnded { what: "pods" })?;
                walled("a pod", || cluster.on_pod(event));
            }
            Some(finished) = cluster.running.next() => cluster.on_finished(finished),
            () = tokio::task::yield_now(), if cluster.has_decisions() => {}
            () = rested => {}
        }
        cluster.place_pods();
        cluster.explain();
    }
}

/// One event, behind a wall: an object that nobody foresaw costs nothing but itself. What the event changes is worked out
/// before anything is changed, so sums stay whole.
fn walled(what: &'static str, work: impl FnOnce()) {
    if let Err(panic) = panics::caught(work) {
        error!(what, panics = panics::count(), panic, "an event panicked; it is skipped");
    }
}

type Watch<K> = futures::stream::BoxStream<'static, watcher::Result<watcher::Event<K>>>;

/// The objects of one kind; one that cannot be read is told of and left out.
fn watch<K>(client: &kube::Client, config: watcher::Config) -> Watch<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut skipped = Skipped::new("scheduler");
    watcher(Api::<Decoded<K>>::all(client.clone()), config)
        .default_backoff()
        .filter_map(move |event| std::future::ready(event.map(|event| skipped.event(event)).transpose()))
        .boxed()
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
                    self.queue.wake(Change::Node, Instant::now());
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
            self.queue.wake(Change::PodGone, Instant::now());
        }
        let is_ours = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(crate::DEFAULT_NAME)
            == self.scheduler_name;
        let is_gated = pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        if node_of(&pod).is_none() && !has_ended(&pod) && is_ours && !is_gated && !is_leaving {
            self.queue.upsert(pod, Instant::now());
        } else {
            let key = PodKey::of(&pod);
            self.queue.remove(&key);
            self.explanations.put(&key, None);
        }
    }

    fn forget(&mut self, key: &PodKey) {
        self.queue.remove(key);
        self.explanations.put(key, None);
        if self.snapshot.remove_pod(key) {
            self.queue.wake(Change::PodGone, Instant::now());
        }
    }

    fn on_finished(&mut self, finished: Finished) {
        match finished {
            Finished::Binding { pod, outcome } => self.on_bound(&pod, outcome),
            Finished::Explained => self.explaining = self.explaining.saturating_sub(1),
        }
    }

    fn on_bound(&mut self, pod: &Pod, outcome: Outcome) {
        self.bindings = self.bindings.saturating_sub(1);
        let key = PodKey::of(pod);
        match outcome {
            Outcome::Bound => info!(pod = %key, "bound"),
            // The watch will say, or has said, what became of it.
            Outcome::Obsolete => self.forget(&key),
            Outcome::Failed(error) => {
                warn!(pod = %key, %error, "binding failed; it is tried again");
                self.try_again(&key);
            }
            Outcome::Lost(why) => {
                warn!(pod = %key, why, "it is not known whether the pod was bound; it is tried again");
                self.try_again(&key);
            }
        }
    }

    fn try_again(&mut self, key: &PodKey) {
        let now = Instant::now();
        if self.snapshot.forget_assumed(key) {
            self.queue.wake(Change::PodGone, now);
        }
        self.queue.back_off(key, now);
    }

    /// Nothing is decided before both lists are whole.
    fn has_decisions(&self) -> bool {
        self.has_nodes && self.has_pods && self.bindings < BINDINGS_MAX && self.queue.has_active()
    }

    /// Decides on active pods, one after the other, each on what the ones before left.
    fn place_pods(&mut self) {
        if !(self.has_nodes && self.has_pods) {
            return;
        }
        for _ in 0..DECISIONS_MAX {
            if self.bindings >= BINDINGS_MAX {
                return;
            }
            let Some(pod) = self.queue.pop(Instant::now()) else { return };
            let key = PodKey::of(&pod);
            match panics::caught(|| decide(&self.snapshot, &pod)) {
                Ok(Decision::Bind { node }) => self.bind(pod, node),
                Ok(nowhere) => {
                    let message = nowhere.message();
                    let Decision::Nowhere { reasons, .. } = nowhere else { continue };
                    self.queue.wait(&key, &reasons.into_keys().collect());
                    self.explanations.put(&key, Explanation::new(&pod, "Unschedulable", message));
                }
                Err(panic) => {
                    error!(pod = %key, panics = panics::count(), panic, "a decision panicked; the others go on, it is tried again");
                    self.queue.back_off(&key, Instant::now());
                }
            }
        }
    }

    fn bind(&mut self, pod: Pod, node: String) {
        self.snapshot.assume(&pod, &node);
        self.explanations.put(&PodKey::of(&pod), None);
        self.bindings = self.bindings.saturating_add(1);
        let writer = self.writer.clone();
        let binding = async move {
            let work = AssertUnwindSafe(writer.bind(&pod, &node)).catch_unwind();
            let outcome = match tokio::time::timeout(WRITE_MAX, work).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => Outcome::Lost(panics::message(panic.as_ref())),
                Err(_late) => Outcome::Lost(format!("no answer within {} s", WRITE_MAX.as_secs())),
            };
            Finished::Binding { pod: Box::new(pod), outcome }
        };
        self.running.push(binding.boxed());
    }

    /// Writes explanations that wait.
    fn explain(&mut self) {
        while self.explaining < EXPLANATIONS_MAX
            && let Some((key, explanation)) = self.explanations.pop()
        {
            self.explaining = self.explaining.saturating_add(1);
            let writer = self.writer.clone();
            let work = async move {
                let written = AssertUnwindSafe(writer.explain(&key, &explanation)).catch_unwind();
                match tokio::time::timeout(WRITE_MAX, written).await {
                    Ok(Ok(())) => {}
                    Ok(Err(panic)) => {
                        error!(pod = %key, panic = panics::message(panic.as_ref()), "explaining panicked")
                    }
                    Err(_late) => warn!(pod = %key, "could not say in time why the pod waits"),
                }
                Finished::Explained
            };
            self.running.push(work.boxed());
        }
    }
}
