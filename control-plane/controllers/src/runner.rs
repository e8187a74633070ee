//! Starts the watches and, once they are whole, one task per controller.

use std::sync::{Arc, Mutex};

use control_plane_decode::Decoded;
use futures::future::{BoxFuture, FutureExt, select_all};
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::Config;
use crate::action::Plan;
use crate::cache::Key;
use crate::executor::{Error, Executor};
use crate::garbage::{self, Graph};
use crate::panics;
use crate::queue::Queue;
use crate::world::{Cached, Changed, Listener, World, follow};
use crate::{
    cluster_role, deployment, disruption, endpoint_slice_mirroring, endpoint_slices, endpoints, event_expiry,
    namespace, node, replica_set, service_account,
};

/// One controller: which keys a change concerns, and what to do about a key.
pub(crate) trait Controller: Send + Sync + 'static {
    /// The reporter of its events.
    const NAME: &'static str;
    /// Keys that are planned and executed at once. One, where plans of different keys take from the same store.
    const WORKERS: usize = 5;

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key>;

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan;
}

pub(crate) async fn run(config: Config) -> Result<(), crate::Error> {
    let client = config.client.clone();
    let world = Arc::new(World::default());
    let graph = Arc::new(Graph::default());
    let mut fleet = Fleet { client: &client, world: &world, listeners: Vec::new(), ready: Vec::new() };
    fleet.add(deployment::Deployments);
    fleet.add(replica_set::ReplicaSets);
    fleet.add(endpoint_slices::EndpointSlices);
    fleet.add(endpoints::EndpointsOfServices);
    fleet.add(endpoint_slice_mirroring::EndpointSliceMirroring);
    fleet.add(disruption::Disruptions);
    fleet.add(cluster_role::ClusterRoles);
    fleet.add(service_account::ServiceAccounts { root_ca: config.root_ca });
    fleet.add(node::Nodes {
        cluster_cidr: config.cluster_cidr,
        node_prefix: config.node_prefix,
        heard: Mutex::default(),
        missing: Mutex::default(),
    });
    let namespaces = fleet.add(namespace::Namespaces);
    let Fleet { listeners, ready, .. } = fleet;
    world.listen(listeners);

    let mut watches = Watches::new(&client, &world);
    let mut watching = watches.start();
    // No controller acts on half a world: it would create what it has not been shown yet.
    for _ in 0..watches.started {
        tokio::select! {
            (error, ..) = &mut watching => return Err(error),
            _ = watches.whole.recv() => {}
        }
    }
    let mut tasks = JoinSet::new();
    for controller in ready {
        tasks.spawn(controller);
    }
    tokio::select! {
        (error, ..) = watching => Err(error),
        error = garbage::run(client.clone(), graph, namespaces) => Err(error),
        never = event_expiry::run(client.clone(), config.event_ttl) => match never {},
        Some(Err(error)) = tasks.join_next() => Err(crate::Error::Controller(error)),
    }
}

struct Fleet<'a> {
    client: &'a kube::Client,
    world: &'a Arc<World>,
    listeners: Vec<Listener>,
    ready: Vec<BoxFuture<'static, ()>>,
}

impl Fleet<'_> {
    /// The queue of the new controller's keys, for whoever has other news for it.
    fn add<C: Controller>(&mut self, controller: C) -> Arc<Queue<Key>> {
        let controller = Arc::new(controller);
        let queue = Arc::new(Queue::default());
        let (listener, fed) = (Arc::clone(&controller), Arc::clone(&queue));
        self.listeners.push(Box::new(move |world, changed| {
            // The watch tells every controller: one that panics must not keep the change from the others.
            match panics::caught_now(|| listener.keys(world, changed)) {
                Ok(keys) => keys.into_iter().for_each(|key| fed.push(key)),
                Err(panic) => {
                    error!(controller = C::NAME, panics = panics::count(), panic, "a change is not understood")
                }
            }
        }));
        let executor = Executor::new(self.client.clone(), Arc::clone(self.world), C::NAME);
        self.ready.push(control(controller, Arc::clone(self.world), Arc::clone(&queue), executor).boxed());
        queue
    }
}

/// Keys in the order in which they came, at most `C::WORKERS` at once, for ever.
async fn control<C: Controller>(controller: Arc<C>, world: Arc<World>, queue: Arc<Queue<Key>>, executor: Executor) {
    let work = Arc::new(Work { controller, world, queue: Arc::clone(&queue), executor });
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < C::WORKERS
            && let Some(key) = queue.next(Instant::now())
        {
            let work = Arc::clone(&work);
            running.push(async move { work.one(key).await });
        }
        let due = queue.due();
        let timer = async {
            match due {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(()) = running.next() => {}
            () = queue.changed() => {}
            () = timer, if running.len() < C::WORKERS => {}
        }
    }
}

struct Work<C> {
    controller: Arc<C>,
    world: Arc<World>,
    queue: Arc<Queue<Key>>,
    executor: Executor,
}

impl<C: Controller> Work<C> {
    /// One key, behind a wall: whatever its plan or its execution does, it is this key's failure.
    async fn one(&self, key: Key) {
        match panics::caught(self.attempt(&key)).await {
            Ok(errors) if errors.iter().all(Error::is_expected) && !errors.is_empty() => {
                debug!(controller = C::NAME, %key, "not done yet; it is planned again");
                self.queue.push_after_failure(key.clone(), Instant::now());
            }
            Ok(errors) => match errors.iter().find(|error| !error.is_expected()) {
                None => self.queue.succeeded(&key),
                Some(first) => {
                    let others = errors.len().saturating_sub(1);
                    let failures = self.queue.push_after_failure(key.clone(), Instant::now());
                    warn!(controller = C::NAME, %key, failures, others, error = first as &dyn std::error::Error, "an action failed; it is tried again");
                }
            },
            Err(panic) => {
                let failures = self.queue.push_after_failure(key.clone(), Instant::now());
                error!(controller = C::NAME, %key, failures, panics = panics::count(), panic, "a key panicked; the others go on, it is tried again");
            }
        }
        self.queue.done(&key);
    }

    async fn attempt(&self, key: &Key) -> Vec<Error> {
        let now = Timestamp::now();
        let Plan { actions, again_at } = self.controller.plan(&self.world, key, now);
        if let Some(time) = again_at {
            let wait = time.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
            self.queue.push_after(key.clone(), wait, Instant::now());
        }
        self.executor.run(actions).await
    }
}

/// The watches that fill the world.
struct Watches<'a> {
    client: &'a kube::Client,
    world: &'a Arc<World>,
    started: usize,
    synced: mpsc::Sender<()>,
    whole: mpsc::Receiver<()>,
}

/// More than there are kinds: a first list never finds the channel full.
const SYNCED_MAX: usize = 64;

impl<'a> Watches<'a> {
    fn new(client: &'a kube::Client, world: &'a Arc<World>) -> Self {
        let (synced, whole) = mpsc::channel(SYNCED_MAX);
        Self { client, world, started: 0, synced, whole }
    }

    fn start(&mut self) -> futures::future::SelectAll<BoxFuture<'static, crate::Error>> {
        use k8s_openapi::api::{
            apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
            policy::v1 as policy, rbac::v1 as rbac,
        };
        let root_ca = format!("metadata.name={}", service_account::ROOT_CA);
        let leases = Api::<Decoded<coordination::Lease>>::namespaced(self.client.clone(), node::LEASE_NAMESPACE);
        select_all([
            self.all::<apps::Deployment>(),
            self.all::<apps::ReplicaSet>(),
            self.all::<core::Pod>(),
            self.all::<core::Service>(),
            self.all::<core::Endpoints>(),
            self.all::<core::Namespace>(),
            self.all::<core::Node>(),
            self.all::<core::ServiceAccount>(),
            self.all::<discovery::EndpointSlice>(),
            self.all::<policy::PodDisruptionBudget>(),
            self.all::<rbac::ClusterRole>(),
            self.one(Api::<Decoded<ConfigMap>>::all(self.client.clone()), watcher::Config::default().fields(&root_ca)),
            self.one(leases, watcher::Config::default()),
        ])
    }

    fn all<K: Cached>(&mut self) -> BoxFuture<'static, crate::Error> {
        self.one(Api::<Decoded<K>>::all(self.client.clone()), watcher::Config::default())
    }

    fn one<K: Cached>(&mut self, api: Api<Decoded<K>>, config: watcher::Config) -> BoxFuture<'static, crate::Error> {
        self.started += 1;
        follow(Arc::clone(self.world), api, config, self.synced.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics about one key, and tells which others it was asked about.
    struct Shaky(mpsc::UnboundedSender<String>);

    impl Controller for Shaky {
        const NAME: &'static str = "shaky";
        const WORKERS: usize = 1;

        fn keys(&self, _world: &World, _changed: &Changed) -> Vec<Key> {
            panic!("what is this?")
        }

        fn plan(&self, _world: &World, key: &Key, _now: Timestamp) -> Plan {
            self.0.send(key.name.clone()).unwrap();
            assert_ne!(key.name, "poisoned");
            Plan::default()
        }
    }

    #[tokio::test]
    async fn a_key_that_panics_is_tried_again_and_the_others_go_on() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::io::Error>(http::Response::new(kube::client::Body::empty()))
        });
        let client = kube::Client::new(service, "default");
        let world = Arc::new(World::default());
        let mut fleet = Fleet { client: &client, world: &world, listeners: Vec::new(), ready: Vec::new() };
        let (told, mut asked) = mpsc::unbounded_channel();
        let queue = fleet.add(Shaky(told));
        let Fleet { listeners, mut ready, .. } = fleet;
        for name in ["a", "poisoned", "z"] {
            queue.push(Key::new("", name));
        }
        let running = tokio::spawn(ready.remove(0));
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(asked.recv().await.unwrap());
        }
        assert_eq!(order, ["a", "poisoned", "z", "poisoned"]);
        // A change that the controller does not understand reaches whoever listens beside it.
        world.listen(listeners);
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "d", "name": "p", "uid": "u"}});
        world.absorb(crate::kind::Kind::Pod, serde_json::from_value(pod).unwrap());
        assert!(!running.is_finished());
        running.abort();
    }
}
