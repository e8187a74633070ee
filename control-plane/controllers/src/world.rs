//! The cluster as the controllers see it: one cache per kind, and who wants to know of a change.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use control_plane_decode::{Decoded, Skipped};
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::Error;
use crate::cache::{Cache, Key, Upserted};
use crate::kind::Kind;

/// One object, before and after.
#[derive(Debug)]
pub(crate) struct Change<K> {
    pub before: Option<Arc<K>>,
    pub after: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newer of the two states: what the change is about.
    pub(crate) fn latest(&self) -> Option<&Arc<K>> {
        self.after.as_ref().or(self.before.as_ref())
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.before.iter().chain(&self.after)
    }
}

pub(crate) type Listener = Box<dyn Fn(&World, &Changed) + Send + Sync>;

macro_rules! world {
    ($($variant:ident, $field:ident: $kind:ty;)*) => {
        /// A change of any kind.
        #[derive(Debug)]
        pub(crate) enum Changed {
            $($variant(Change<$kind>),)*
        }

        #[derive(Default)]
        pub(crate) struct World {
            $(pub $field: Cache<$kind>,)*
            listeners: OnceLock<Vec<Listener>>,
        }

        $(impl Cached for $kind {
            fn cache(world: &World) -> &Cache<Self> {
                &world.$field
            }

            fn changed(change: Change<Self>) -> Changed {
                Changed::$variant(change)
            }
        })*
    };
}

world! {
    ClusterRole, cluster_roles: ClusterRole;
    ConfigMap, config_maps: ConfigMap;
    Deployment, deployments: Deployment;
    EndpointSlice, endpoint_slices: EndpointSlice;
    Endpoints, endpoints: Endpoints;
    Lease, leases: Lease;
    Namespace, namespaces: Namespace;
    Node, nodes: Node;
    Pod, pods: Pod;
    PodDisruptionBudget, pod_disruption_budgets: PodDisruptionBudget;
    ReplicaSet, replica_sets: ReplicaSet;
    Service, services: Service;
    ServiceAccount, service_accounts: ServiceAccount;
}

/// A kind that the world keeps.
pub(crate) trait Cached:
    kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    fn cache(world: &World) -> &Cache<Self>;
    fn changed(change: Change<Self>) -> Changed;
}

impl World {
    /// Once, before the first watch.
    pub(crate) fn listen(&self, listeners: Vec<Listener>) {
        assert!(self.listeners.set(listeners).is_ok(), "listeners are set once, at the start");
    }

    fn tell(&self, changed: &Changed) {
        for listener in self.listeners.get().into_iter().flatten() {
            listener(self, changed);
        }
    }

    fn upsert<K: Cached>(&self, object: K) {
        if let Upserted::Newer { before, object } = K::cache(self).upsert(object) {
            self.tell(&K::changed(Change { before, after: Some(object) }));
        }
    }

    fn removed<K: Cached>(&self, gone: Option<Arc<K>>) {
        if gone.is_some() {
            self.tell(&K::changed(Change { before: gone, after: None }));
        }
    }

    /// The answer to a write of our own.
    pub(crate) fn absorb(&self, kind: Kind, written: DynamicObject) {
        fn parse<K: Cached>(world: &World, written: DynamicObject) {
            // An answer that does not parse is no loss: the watch brings the object.
            if let Ok(object) = written.try_parse::<K>() {
                world.upsert(object);
            }
        }
        match kind {
            Kind::ClusterRole => parse::<ClusterRole>(self, written),
            Kind::ConfigMap => parse::<ConfigMap>(self, written),
            Kind::Deployment => parse::<Deployment>(self, written),
            Kind::EndpointSlice => parse::<EndpointSlice>(self, written),
            Kind::Endpoints => parse::<Endpoints>(self, written),
            Kind::Namespace => parse::<Namespace>(self, written),
            Kind::Node => parse::<Node>(self, written),
            Kind::Pod => parse::<Pod>(self, written),
            Kind::PodDisruptionBudget => parse::<PodDisruptionBudget>(self, written),
            Kind::ReplicaSet => parse::<ReplicaSet>(self, written),
            Kind::Service => parse::<Service>(self, written),
            Kind::ServiceAccount => parse::<ServiceAccount>(self, written),
        }
    }

    /// The answer to a delete after which nothing is left.
    pub(crate) fn absorb_deleted(&self, kind: Kind, namespace: &str, name: &str, uid: &str) {
        fn remove<K: Cached>(world: &World, key: &Key, uid: &str) {
            world.removed(K::cache(world).remove_deleted(key, uid));
        }
        let key = Key::new(namespace, name);
        match kind {
            Kind::ClusterRole => remove::<ClusterRole>(self, &key, uid),
            Kind::ConfigMap => remove::<ConfigMap>(self, &key, uid),
            Kind::Deployment => remove::<Deployment>(self, &key, uid),
            Kind::EndpointSlice => remove::<EndpointSlice>(self, &key, uid),
            Kind::Endpoints => remove::<Endpoints>(self, &key, uid),
            Kind::Namespace => remove::<Namespace>(self, &key, uid),
            Kind::Node => remove::<Node>(self, &key, uid),
            Kind::Pod => remove::<Pod>(self, &key, uid),
            Kind::PodDisruptionBudget => remove::<PodDisruptionBudget>(self, &key, uid),
            Kind::ReplicaSet => remove::<ReplicaSet>(self, &key, uid),
            Kind::Service => remove::<Service>(self, &key, uid),
            Kind::ServiceAccount => remove::<ServiceAccount>(self, &key, uid),
        }
    }
}

/// Keeps one kind of the world up to date; `synced` is told after the first whole list.
pub(crate) fn follow<K: Cached>(
    world: Arc<World>,
    api: Api<Decoded<K>>,
    config: watcher::Config,
    synced: tokio::sync::mpsc::Sender<()>,
) -> BoxFuture<'static, Error> {
    Box::pin(async move {
        let what = K::plural(&()).into_owned();
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listed: HashSet<Key> = HashSet::new();
        let mut skipped = Skipped::new("controllers");
        while let Some(event) = events.next().await {
            // What is known of an object that can no longer be read stays known, as when the watch is late.
            if let Ok(watcher::Event::InitApply(object)) = &event {
                listed.insert(Key::of(object));
            }
            let event = match event.map(|event| skipped.event(event)) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) => {
                    warn!(what, %error, "the watch broke; it is taken up again");
                    continue;
                }
            };
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) | watcher::Event::Apply(object) => world.upsert(object),
                watcher::Event::InitDone => {
                    for key in K::cache(&world).keys().into_iter().filter(|key| !listed.contains(key)) {
                        world.removed(K::cache(&world).remove(&key, None));
                    }
                    K::cache(&world).forget_deleted();
                    listed = HashSet::new();
                    // Only the first one is waited for; later ones find nobody.
                    let _nobody_waits = synced.try_send(());
                }
                watcher::Event::Delete(object) => {
                    world.removed(K::cache(&world).remove(&Key::of(&object), object.uid().as_deref()));
                }
            }
        }
        Error::WatchEnded { what }
    })
}
