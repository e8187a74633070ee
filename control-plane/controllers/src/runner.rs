//! Starts the watches and, once they are whole, one task per controller.

use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt, select_all};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::action::Plan;
use crate::cache::Key;
use crate::executor::Executor;
use crate::garbage::{self, Graph};
use crate::queue::{Next, Queue};
use crate::world::{Cached, Changed, Listener, World, follow};
use crate::{Config, Error};
use crate::{
    cluster_role, deployment, disruption, endpoint_slices, endpoints, namespace, node, replica_set, service_account,
};

/// One controller: which keys a change concerns, and what to do about a key.
pub(crate) trait Controller: Send + Sync + 'static {
    /// The reporter of its events.
    const NAME: &'static str;

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key>;

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan;
}

pub(crate) async fn run(config: Config) -> Result<(), Error> {
    let client = config.client.clone();
    let world = Arc::new(World::default());
    let graph = Arc::new(Graph::default());
    let mut fleet = Fleet { client: &client, world: &world, listeners: Vec::new(), ready: Vec::new() };
    fleet.add(deployment::Deployments);
    fleet.add(replica_set::ReplicaSets);
    fleet.add(endpoint_slices::EndpointSlices);
    fleet.add(endpoints::EndpointsOfServices);
    fleet.add(disruption::Disruptions);
    fleet.add(cluster_role::ClusterRoles);
    fleet.add(service_account::ServiceAccounts { root_ca: config.root_ca });
    fleet.add(node::Nodes {
        cluster_cidr: config.cluster_cidr,
        node_prefix: config.node_prefix,
        heard: Mutex::default(),
    });
    let namespaces = fleet.add(namespace::Namespaces { graph: Arc::clone(&graph), swept: Mutex::default() });
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
        Some(Err(error)) = tasks.join_next() => Err(Error::Controller(error)),
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
    fn add<C: Controller>(&mut self, controller: C) -> Arc<Queue> {
        let controller = Arc::new(controller);
        let queue = Arc::new(Queue::default());
        let (listener, fed) = (Arc::clone(&controller), Arc::clone(&queue));
        self.listeners.push(Box::new(move |world, changed| {
            for key in listener.keys(world, changed) {
                fed.push(key);
            }
        }));
        let executor = Executor::new(self.client.clone(), Arc::clone(self.world), C::NAME);
        self.ready.push(control(controller, Arc::clone(self.world), Arc::clone(&queue), executor).boxed());
        queue
    }
}

/// One key after the other, for ever.
async fn control<C: Controller>(controller: Arc<C>, world: Arc<World>, queue: Arc<Queue>, executor: Executor) {
    loop {
        let now = Timestamp::now();
        let key = match queue.next(now) {
            Next::Key(key) => key,
            Next::Until(time) => {
                let wait = time.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
                tokio::select! {
                    () = queue.changed() => {}
                    () = tokio::time::sleep(wait) => {}
                }
                continue;
            }
            Next::Idle => {
                queue.changed().await;
                continue;
            }
        };
        let Plan { actions, again_at } = controller.plan(&world, &key, now);
        if let Some(time) = again_at {
            queue.push_at(key.clone(), time);
        }
        let errors = executor.run(actions).await;
        if errors.is_empty() {
            queue.succeeded(&key);
        } else {
            for error in errors {
                if error.is_conflict() {
                    debug!(controller = C::NAME, %key, %error, "somebody wrote first; it is planned again");
                    continue;
                }
                warn!(controller = C::NAME, %key, error = &error as &dyn std::error::Error, "an action failed; it is tried again");
            }
            queue.push_after_failure(key, Timestamp::now());
        }
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

    fn start(&mut self) -> futures::future::SelectAll<BoxFuture<'static, Error>> {
        use k8s_openapi::api::{
            apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
            policy::v1 as policy, rbac::v1 as rbac,
        };
        let root_ca = format!("metadata.name={}", service_account::ROOT_CA);
        let leases = Api::<coordination::Lease>::namespaced(self.client.clone(), node::LEASE_NAMESPACE);
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
            self.one(Api::<ConfigMap>::all(self.client.clone()), watcher::Config::default().fields(&root_ca)),
            self.one(leases, watcher::Config::default()),
        ])
    }

    fn all<K: Cached>(&mut self) -> BoxFuture<'static, Error> {
        self.one(Api::<K>::all(self.client.clone()), watcher::Config::default())
    }

    fn one<K: Cached>(&mut self, api: Api<K>, config: watcher::Config) -> BoxFuture<'static, Error> {
        self.started += 1;
        follow(Arc::clone(self.world), api, config, self.synced.clone())
    }
}
