//! ConfigMaps and Secrets that pods of this node refer to: each is watched by name for as long as a pod needs it.
//! Not a cache of everything: the node may see only what its pods name. Invariant: a change of an object reaches its pods as an
//! event; nothing is fetched again by the clock.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_plane_decode::Decoded;
use futures::{StreamExt, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{kind} {namespace}/{name}: {reason}")]
    Fetch { kind: String, namespace: String, name: String, reason: String },
    #[error("{kind} {namespace}/{name}: no answer from the API server within {seconds} s")]
    Timeout { kind: String, namespace: String, name: String, seconds: u64 },
}

#[derive(Clone, Debug)]
enum Slot<K> {
    Loading,
    Failed(String),
    Absent,
    Present(Arc<K>),
}

impl<K> Slot<K> {
    /// An object that cannot be read is there, and its pods are told what is wrong with it.
    fn of(decoded: Decoded<K>) -> Self {
        match decoded.into_result() {
            Ok(object) => Self::Present(Arc::new(object)),
            Err(unreadable) => Self::Failed(format!("it cannot be read: {}", unreadable.reason)),
        }
    }
}

struct Entry<K> {
    value: watch::Receiver<Slot<K>>,
    users: BTreeSet<String>,
    task: AbortOnDropHandle<()>,
}

/// By namespace and name.
type Entries<K> = Arc<Mutex<HashMap<(String, String), Entry<K>>>>;

/// All watched objects of one kind.
struct Watched<K> {
    client: Client,
    entries: Entries<K>,
    /// Uids of pods one of whose objects has changed.
    changed: mpsc::UnboundedSender<String>,
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    fn new(client: Client, changed: mpsc::UnboundedSender<String>) -> Self {
        Watched { client, entries: Arc::default(), changed }
    }

    async fn get(&self, namespace: &str, name: &str, pod_uid: &str) -> Result<Option<Arc<K>>, Error> {
        let mut value = self.register(namespace, name, pod_uid);
        let text = |s: &str| s.to_owned();
        let kind = K::kind(&()).into_owned();
        let answer = tokio::time::timeout(FIRST_ANSWER_TIMEOUT, value.wait_for(|v| !matches!(v, Slot::Loading))).await;
        let slot = match answer {
            Ok(Ok(slot)) => slot.clone(),
            Ok(Err(_)) => Slot::Failed("the watch has ended".into()),
            Err(_) => {
                let seconds = FIRST_ANSWER_TIMEOUT.as_secs();
                return Err(Error::Timeout { kind, namespace: text(namespace), name: text(name), seconds });
            }
        };
        match slot {
            Slot::Present(object) => Ok(Some(object)),
            Slot::Absent => Ok(None),
            Slot::Failed(reason) => Err(Error::Fetch { kind, namespace: text(namespace), name: text(name), reason }),
            Slot::Loading => Ok(None),
        }
    }

    fn register(&self, namespace: &str, name: &str, pod_uid: &str) -> watch::Receiver<Slot<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            let (sender, value) = watch::channel(Slot::Loading);
            let api: Api<Decoded<K>> = Api::namespaced(self.client.clone(), namespace);
            let (users, changed) = (self.entries.clone(), self.changed.clone());
            let task = tokio::spawn(follow(api, key.clone(), sender, users, changed));
            Entry { value, users: BTreeSet::new(), task: AbortOnDropHandle::new(task) }
        };
        let entry = entries.entry(key.clone()).or_insert_with(begin);
        if entry.task.is_finished() {
            // It never ends by itself: it has panicked.
            let users = std::mem::take(&mut entry.users);
            *entry = Entry { users, ..begin() };
        }
        entry.users.insert(pod_uid.to_owned());
        entry.value.clone()
    }

    fn release(&self, pod_uid: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            entry.users.remove(pod_uid);
            !entry.users.is_empty()
        });
    }
}

async fn follow<K>(
    api: Api<Decoded<K>>,
    key: (String, String),
    sender: watch::Sender<Slot<K>>,
    entries: Entries<K>,
    changed: mpsc::UnboundedSender<String>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
    let stream = watcher(api, config).default_backoff();
    pin_mut!(stream);
    let mut found = None;
    while let Some(event) = stream.next().await {
        let slot = match event {
            Ok(watcher::Event::Init) => {
                found = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                found = Some(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => found.take().map_or(Slot::Absent, Slot::of),
            Ok(watcher::Event::Apply(object)) => Slot::of(object),
            Ok(watcher::Event::Delete(_)) => Slot::Absent,
            // What was known stays known while the API server is away.
            Err(error) => match *sender.borrow() {
                Slot::Loading | Slot::Failed(_) => Slot::Failed(error.to_string()),
                _ => continue,
            },
        };
        let version = |slot: &Slot<K>| match slot {
            Slot::Present(object) => object.meta().resource_version.clone(),
            _ => None,
        };
        let first = matches!(*sender.borrow(), Slot::Loading);
        let same = version(&sender.borrow()) == version(&slot) && version(&slot).is_some();
        sender.send_replace(slot);
        if first || same {
            continue;
        }
        let entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        for uid in entries.get(&key).iter().flat_map(|e| &e.users) {
            // A closed channel means that the kubelet ends.
            let _ = changed.send(uid.clone());
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct References {
    config_maps: Arc<Watched<ConfigMap>>,
    secrets: Arc<Watched<Secret>>,
}

impl Debug for References {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("References").finish_non_exhaustive()
    }
}

impl References {
    /// `changed` is sent the uid of each pod whose objects have changed.
    #[must_use]
    pub fn new(client: &Client, changed: mpsc::UnboundedSender<String>) -> References {
        References {
            config_maps: Arc::new(Watched::new(client.clone(), changed.clone())),
            secrets: Arc::new(Watched::new(client.clone(), changed)),
        }
    }

    /// `None` if it does not exist.
    ///
    /// # Errors
    /// If the API server refuses or does not answer.
    pub async fn config_map(&self, namespace: &str, name: &str, pod: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.config_maps.get(namespace, name, pod).await
    }

    /// As [`References::config_map`].
    ///
    /// # Errors
    /// If the API server refuses or does not answer.
    pub async fn secret(&self, namespace: &str, name: &str, pod: &str) -> Result<Option<Arc<Secret>>, Error> {
        self.secrets.get(namespace, name, pod).await
    }

    /// The pod needs nothing any more.
    pub fn release(&self, pod_uid: &str) {
        self.config_maps.release(pod_uid);
        self.secrets.release(pod_uid);
    }
}
