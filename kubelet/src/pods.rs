//! Who is on this node: the API's list of pods, the manifest directory, and what the runtime still holds. Each pod gets its task
//! (worker.rs); what nobody wants any more is cleared away (takeover.rs). Not the life of one pod.

mod takeover;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use control_plane_decode::{Decoded, Skipped};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use runtime_cri_api::v1 as cri;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::counters::Place;
use crate::cri::POD_UID;
use crate::events::Severity;
use crate::kit::{Kit, Services};
use crate::mirror::Mirrors;
use crate::pod::{Key, LocalPod, Source};
use crate::worker::{self, Event, Handle};
use crate::{listeners, survival};

pub use takeover::{Manifests, Takeover};

/// Between two tries to hear the runtime's events.
const RECONNECT: Duration = Duration::from_millis(500);

/// The tasks of all pods by uid; shared with the server.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    map: Arc<RwLock<HashMap<String, Handle>>>,
}

impl Registry {
    #[must_use]
    pub fn all(&self) -> Vec<Handle> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Handle> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// The pod of a name; of two with one name the one that is not ending.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Handle> {
        let named = |h: &Handle| {
            let snapshot = h.snapshot.borrow();
            snapshot.pod.key.namespace == namespace && snapshot.pod.key.name == name
        };
        let mut found: Vec<Handle> = self.all().into_iter().filter(named).collect();
        found.sort_by_key(|h| h.snapshot.borrow().pod.deletion().is_some());
        found.into_iter().next()
    }

    fn insert(&self, uid: String, handle: Handle) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert(uid, handle);
    }

    fn remove(&self, uid: &str) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn send(&self, uid: &str, event: Event) {
        if let Some(handle) = self.get(uid) {
            // A task that has ended is about to be removed.
            let _ = handle.events.send(event);
        }
    }

    fn look_all(&self) {
        for handle in self.all() {
            let _ = handle.events.send(Event::Look);
        }
    }
}

/// What reaches the manager besides the API's watch.
#[derive(Debug)]
pub enum Word {
    /// The manifests as they are now.
    Manifests(Vec<Pod>),
    /// The manifest directory cannot be followed: what it wants is not known.
    NoManifests,
    /// The node object, for admission.
    Node(Box<k8s_openapi::api::core::v1::Node>),
}

struct Pods {
    kit: Arc<Kit>,
    registry: Registry,
    capacity: admission::Capacity,
    shutdown: CancellationToken,
    node: Option<k8s_openapi::api::core::v1::Node>,
    mirrors: Mirrors,
    takeover: Takeover,
    /// Uids of the list that is being heard.
    hearing: BTreeSet<String>,
    /// Uids of pods that the API no longer has and that have not ended yet. The scheduler counts with what they hold.
    gone: BTreeSet<String>,
    manifests: BTreeMap<String, LocalPod>,
    finished: mpsc::UnboundedSender<String>,
}

/// Runs until shutdown.
pub async fn run(
    kit: Arc<Kit>,
    registry: Registry,
    capacity: admission::Capacity,
    takeover: Takeover,
    mut words: mpsc::Receiver<Word>,
    mut changed: mpsc::UnboundedReceiver<String>,
    shutdown: CancellationToken,
) {
    let (finished, mut ended) = mpsc::unbounded_channel();
    let mirrors = Mirrors::new(kit.client.clone(), kit.node_name.clone());
    let mut pods = Pods {
        kit: kit.clone(),
        registry,
        capacity,
        shutdown: shutdown.clone(),
        node: None,
        mirrors,
        takeover,
        hearing: BTreeSet::new(),
        gone: BTreeSet::new(),
        manifests: BTreeMap::new(),
        finished,
    };
    let api: Api<Decoded<Pod>> = Api::all(kit.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", kit.node_name)).any_semantic();
    let stream = watcher(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut skipped = Skipped::new("kubelet");
    let (runtime_events, mut heard) = mpsc::channel(256);
    let listening = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(listen(kit.clone(), runtime_events)));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(event) = stream.next() => match event {
                Ok(event) => {
                    // A pod that cannot be read is not gone: what is known of it goes on.
                    if let watcher::Event::InitApply(pod) = &event {
                        pods.hearing.extend(pod.meta().uid.clone());
                    }
                    // Nor is one that nobody was prepared for the end of the others.
                    if let Some(event) = skipped.event(event) {
                        pods.caught(async |pods| pods.hear_api(event).await).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "watch of pods broken; keeping what is known"),
            },
            Some(event) = heard.recv() => pods.caught(async |pods| pods.hear_runtime(event).await).await,
            Some(uid) = changed.recv() => pods.registry.send(&uid, Event::Referenced),
            Some(uid) = ended.recv() => pods.hear_ended(&uid),
            Some(word) = words.recv() => pods.caught(async |pods| pods.hear(word).await).await,
        }
    }
    drop(listening);
}

enum Heard {
    /// The stream of events has begun: what happened before is only seen by looking.
    Connected,
    Event(Box<cri::ContainerEventResponse>),
}

async fn listen(kit: Arc<Kit>, sender: mpsc::Sender<Heard>) {
    loop {
        match kit.runtime.events().await {
            Ok(mut stream) => {
                if sender.send(Heard::Connected).await.is_err() {
                    return;
                }
                while let Ok(Some(event)) = stream.message().await {
                    if sender.send(Heard::Event(Box::new(event))).await.is_err() {
                        return;
                    }
                }
                tracing::warn!("the runtime's event stream has ended; connecting again");
            }
            Err(error) => tracing::debug!(%error, "the runtime's events are not to be had"),
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

impl Pods {
    /// Does `work`; if it panics, what it was about is left as it is.
    async fn caught(&mut self, work: impl AsyncFnOnce(&mut Pods)) {
        let counters = self.kit.counters.clone();
        if let Err(why) = survival::caught(work(self)).await {
            counters.panicked(Place::Pod);
            tracing::error!(why, "an event about a pod was lost in a panic");
        }
    }

    async fn hear_api(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.hearing.clear(),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => self.apply(pod).await,
            watcher::Event::InitDone => self.listed().await,
            watcher::Event::Delete(pod) => self.delete(pod).await,
        }
    }

    async fn apply(&mut self, object: Pod) {
        let pod = match LocalPod::parse(object, Source::Api) {
            Ok(pod) => pod,
            Err(error) => return tracing::error!(%error, "pod from the API not understood"),
        };
        if pod.is_mirror() {
            let uids = self.mirrors.seen(&pod, &self.manifests).await;
            let mirror = Arc::new(pod.object);
            for uid in uids {
                self.registry.send(&uid, Event::Mirrored(mirror.clone()));
            }
            return;
        }
        if self.registry.get(&pod.uid).is_some() {
            let uid = pod.uid.clone();
            self.registry.send(&uid, Event::Pod(Arc::new(pod)));
            return;
        }
        self.start(pod);
    }

    fn start(&mut self, pod: LocalPod) {
        let others: Vec<Arc<LocalPod>> = self
            .registry
            .all()
            .iter()
            .filter_map(|h| {
                let snapshot = h.snapshot.borrow();
                let over = matches!(snapshot.status.phase.as_deref(), Some("Failed" | "Succeeded"))
                    || snapshot.pod.ended_in_api()
                    || self.gone.contains(&snapshot.pod.uid);
                (!over).then(|| snapshot.pod.clone())
            })
            .collect();
        // A pod that has been started before is not judged again: only one that is new here.
        let new = pod.status().is_none_or(|s| s.start_time.is_none());
        let refused =
            if new && pod.deletion().is_none() && !pod.ended_in_api() { self.judge(&pod, &others).err() } else { None };
        if let Some(failed) = &refused {
            tracing::info!(pod = %pod.key, reason = failed.reason, message = failed.message, "pod refused");
            self.kit.recorder.pod(&pod, None, Severity::Warning, &failed.reason, failed.message.clone());
        }
        let uid = pod.uid.clone();
        tracing::info!(pod = %pod.key, uid, "pod begins here");
        let handle = worker::spawn(self.kit.clone(), pod, refused, self.shutdown.clone(), self.finished.clone());
        self.registry.insert(uid, handle);
    }

    fn judge(&self, pod: &LocalPod, others: &[Arc<LocalPod>]) -> Result<(), crate::sync::observed::Failed> {
        let listeners = if admission::takes_ports(pod) {
            // Also of those that end: their programs may still listen.
            let all: Vec<Arc<LocalPod>> = self.registry.all().iter().map(|h| h.snapshot.borrow().pod.clone()).collect();
            admission::nodes_own(listeners::all(), &all)
        } else {
            Vec::new()
        };
        let place = admission::Place {
            capacity: &self.capacity,
            node: self.node.as_ref(),
            sysctls: &self.kit.allowed_sysctls,
            listeners: &listeners,
        };
        admission::judge(pod, others, &place)
    }

    async fn delete(&mut self, object: Pod) {
        let Ok(pod) = LocalPod::parse(object, Source::Api) else { return };
        if pod.is_mirror() {
            for uid in self.mirrors.lost(&pod, &self.manifests).await {
                self.registry.send(&uid, Event::Mirror(None));
            }
            return;
        }
        let uid = pod.uid.clone();
        // Forced deletion shows only here; its grace period counts.
        self.registry.send(&uid, Event::Pod(Arc::new(pod)));
        self.lose(&uid);
    }

    /// Refusing a new pod because of one that was deleted without grace would be for good; its sandbox waits instead.
    fn lose(&mut self, uid: &str) {
        if self.registry.get(uid).is_some() {
            self.gone.insert(uid.to_owned());
            self.registry.send(uid, Event::Gone);
        }
    }

    /// The whole list has been heard: pods that are not in it are gone.
    async fn listed(&mut self) {
        for handle in self.registry.all() {
            let (uid, source) = {
                let snapshot = handle.snapshot.borrow();
                (snapshot.pod.uid.clone(), snapshot.pod.source)
            };
            if source == Source::Api && !self.hearing.contains(&uid) {
                self.lose(&uid);
            }
        }
        self.takeover.api_told();
        self.take_over().await;
    }

    async fn hear_runtime(&mut self, event: Heard) {
        let Heard::Event(event) = event else {
            self.registry.look_all();
            return self.take_over().await;
        };
        let sandbox = event.pod_sandbox_status.as_ref();
        let uid = sandbox.and_then(|s| s.metadata.as_ref()).map(|m| m.uid.clone()).filter(|u| !u.is_empty());
        let from_container = || event.containers_statuses.iter().find_map(|c| c.labels.get(POD_UID).cloned());
        match uid.or_else(from_container) {
            Some(uid) => self.registry.send(&uid, Event::Look),
            None => self.registry.look_all(),
        }
    }

    fn hear_ended(&mut self, uid: &str) {
        tracing::info!(uid, "nothing is left of the pod");
        self.registry.remove(uid);
        self.gone.remove(uid);
        // A manifest that changed waits for the pod that had its name.
        let waiting: Vec<LocalPod> =
            self.manifests.values().filter(|p| self.registry.get(&p.uid).is_none()).cloned().collect();
        for pod in waiting {
            self.start_static(pod);
        }
    }

    async fn hear(&mut self, word: Word) {
        match word {
            Word::Node(node) => self.node = Some(*node),
            Word::Manifests(objects) => {
                self.hear_manifests(objects).await;
                self.takeover.manifests_told(Manifests::Known);
                self.take_over().await;
            }
            Word::NoManifests => {
                self.takeover.manifests_told(Manifests::Unknown);
                self.take_over().await;
            }
        }
    }

    async fn hear_manifests(&mut self, objects: Vec<Pod>) {
        let mut now = BTreeMap::new();
        for object in objects {
            match LocalPod::parse(object, Source::File) {
                Ok(pod) => drop(now.insert(pod.uid.clone(), pod)),
                Err(error) => tracing::error!(%error, "manifest not understood"),
            }
        }
        let gone: Vec<LocalPod> =
            self.manifests.iter().filter(|(uid, _)| !now.contains_key(*uid)).map(|(_, p)| p.clone()).collect();
        self.manifests = now;
        for pod in gone {
            self.registry.send(&pod.uid, Event::Gone);
            let name_lives = self.manifests.values().any(|p| p.key == pod.key);
            if !name_lives {
                self.mirrors.delete(&pod.key).await;
            }
        }
        let new: Vec<LocalPod> =
            self.manifests.values().filter(|p| self.registry.get(&p.uid).is_none()).cloned().collect();
        for pod in new {
            self.start_static(pod);
        }
    }

    fn start_static(&mut self, pod: LocalPod) {
        // Two generations of a manifest never run at once.
        if self.registry.find(&pod.key.namespace, &pod.key.name).is_some() {
            return;
        }
        let (mirrors, uid) = (self.mirrors.clone(), pod.uid.clone());
        self.start(pod.clone());
        let handle = self.registry.get(&uid);
        tokio::spawn(async move {
            let mirror = mirrors.ensure(&pod).await;
            if let (Some(handle), Some(mirror)) = (handle, mirror) {
                let _ = handle.events.send(Event::Mirror(Some(mirror)));
            }
        });
    }
}

/// Keeps the map of Services up to date.
pub async fn follow_services(client: Client, services: Services) {
    let stream = watcher(Api::<Decoded<Service>>::all(client), watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut skipped = Skipped::new("kubelet");
    let key = |s: &Service| {
        let name = s.metadata.name.clone().unwrap_or_default();
        Key { namespace: s.metadata.namespace.clone().unwrap_or_default(), name }
    };
    let mut list = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let Some(event) = event.map(|event| skipped.event(event)).transpose() else { continue };
        match event {
            Ok(watcher::Event::Init) => list.clear(),
            Ok(watcher::Event::InitApply(service)) => drop(list.insert(key(&service), Arc::new(service))),
            Ok(watcher::Event::InitDone) => {
                let whole = std::mem::take(&mut list);
                services.change(|map| *map = whole);
            }
            Ok(watcher::Event::Apply(service)) => {
                services.change(|map| drop(map.insert(key(&service), Arc::new(service))))
            }
            Ok(watcher::Event::Delete(service)) => services.change(|map| drop(map.remove(&key(&service)))),
            Err(error) => tracing::debug!(%error, "watch of services broken; keeping what is known"),
        }
    }
}
