//! The garbage collector: what is owned goes with its owner, in the way that the delete asked for.
//!
//! Every kind's metadata is watched into one graph of owners and dependents. A change makes objects *suspects*; each suspect
//! is planned alone, from the graph. An owner that the graph does not know is asked for once at the API server before
//! anything is deleted for its sake.
//!
//! - background: the owner is gone; its dependents follow.
//! - foreground: the owner has the finalizer `foregroundDeletion`; dependents that block it go first, then the finalizer.
//! - orphan: the owner has the finalizer `orphan`; dependents lose the reference, then the finalizer goes.

mod graph;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use control_plane_decode::{Decoded, Skipped};
use futures::StreamExt;
use futures::stream::{FuturesUnordered, SelectAll};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::cache::Key;
use crate::executor::Executor;
use crate::panics;
use crate::queue::Queue;
use crate::world::World;
use crate::{Error, garbage::plan::Step};

pub(crate) use graph::Graph;

pub(crate) fn resource_of(row: &control_plane_api::Row) -> ApiResource {
    ApiResource {
        group: row.group.to_owned(),
        version: row.version.to_owned(),
        api_version: row.api_version(),
        kind: row.kind.to_owned(),
        plural: row.resource.to_owned(),
    }
}

/// Kinds whose objects can own or be owned. Events are many, own nothing and go by age.
fn watched() -> Vec<ApiResource> {
    let rows = control_plane_api::rows().iter();
    let rows = rows.filter(|row| {
        row.has_verb("watch") && row.has_verb("delete") && row.storage_api_version() == row.api_version()
    });
    rows.filter(|row| row.resource != "events").map(resource_of).collect()
}

/// Suspects that are judged at once.
const WORKERS: usize = 16;

type Metadata = PartialObjectMeta<DynamicObject>;
type Tagged = (usize, watcher::Result<watcher::Event<Decoded<Metadata>>>);

/// Collects for ever. `namespaces` hears of every namespace whose last object may be gone.
pub(crate) async fn run(client: kube::Client, graph: Arc<Graph>, namespaces: Arc<Queue<Key>>) -> Error {
    let resources = watched();
    let collector = Collector {
        executor: Executor::new(client.clone(), Arc::new(World::default()), "garbage-collector"),
        client: client.clone(),
        graph: Arc::clone(&graph),
    };
    let mut events: SelectAll<futures::stream::BoxStream<'static, Tagged>> = SelectAll::new();
    for (index, resource) in resources.iter().enumerate() {
        let api: Api<Decoded<Metadata>> = Api::all_with(client.clone(), resource);
        let watch = watcher(api, watcher::Config::default()).default_backoff();
        events.push(watch.map(move |event| (index, event)).boxed());
    }
    let mut intake =
        Intake { resources: &resources, namespaces: &namespaces, skipped: Skipped::new("garbage-collector") };
    let mut unlisted = resources.len();
    let mut running = FuturesUnordered::new();
    loop {
        // Nothing is judged before every kind has been listed: an owner not yet listed would look gone.
        while unlisted == 0
            && running.len() < WORKERS
            && let Some(uid) = graph.suspects().next(Instant::now())
        {
            running.push(collector.one(uid));
        }
        let due = graph.suspects().due();
        let timer = async {
            match due {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Events go first where there are any, so that a judgement is never much behind the world.
            biased;
            event = events.next() => match event {
                Some(event) => unlisted = unlisted.saturating_sub(usize::from(intake.take(&graph, event))),
                None => return Error::WatchEnded { what: "all metadata".into() },
            },
            Some(()) = running.next() => {}
            () = graph.suspects().changed(), if running.len() < WORKERS && unlisted == 0 => {}
            () = timer, if running.len() < WORKERS && unlisted == 0 => {}
        }
    }
}

struct Intake<'a> {
    resources: &'a [ApiResource],
    namespaces: &'a Queue<Key>,
    skipped: Skipped,
}

impl Intake<'_> {
    /// True when a kind's first list is whole.
    fn take(&mut self, graph: &Graph, (index, event): Tagged) -> bool {
        let resource = &self.resources[index];
        let mut is_first = false;
        let touched = match event {
            Ok(watcher::Event::Init) => {
                graph.begin_list(index);
                Vec::new()
            }
            Ok(watcher::Event::InitApply(object)) => {
                self.upsert(object, |metadata| graph.upsert(index, resource, metadata, true))
            }
            Ok(watcher::Event::Apply(object)) => {
                self.upsert(object, |metadata| graph.upsert(index, resource, metadata, false))
            }
            Ok(watcher::Event::Delete(object)) => graph.remove(object.meta().uid.as_deref().unwrap_or_default()),
            Ok(watcher::Event::InitDone) => {
                let (first, touched) = graph.end_list(index);
                is_first = first;
                touched
            }
            Err(error) => {
                warn!(kind = resource.kind, %error, "the watch broke; it is taken up again");
                Vec::new()
            }
        };
        for namespace in touched {
            self.namespaces.push(Key::new("", namespace));
        }
        is_first
    }

    /// An object whose metadata cannot be read counts in its namespace, and nothing is judged by what it says.
    fn upsert(&mut self, object: Decoded<Metadata>, upsert: impl FnOnce(&ObjectMeta) -> Vec<String>) -> Vec<String> {
        match object.into_result() {
            Ok(object) => upsert(&object.metadata),
            Err(unreadable) => {
                self.skipped.tell("metadata", &unreadable);
                upsert(&unreadable.metadata)
            }
        }
    }
}

struct Collector {
    client: kube::Client,
    executor: Executor,
    graph: Arc<Graph>,
}

impl Collector {
    /// One suspect, behind a wall.
    async fn one(&self, uid: String) {
        let suspects = self.graph.suspects();
        match panics::caught(self.collect(&uid)).await {
            Ok(true) => suspects.succeeded(&uid),
            Ok(false) => drop(suspects.push_after_failure(uid.clone(), Instant::now())),
            Err(panic) => {
                let failures = suspects.push_after_failure(uid.clone(), Instant::now());
                error!(uid, failures, panics = panics::count(), panic, "collecting panicked; it is tried again");
            }
        }
        suspects.done(&uid);
    }

    /// False if it is to be tried again.
    async fn collect(&self, uid: &str) -> bool {
        match self.graph.step(uid) {
            None => true,
            Some(Step::Act(actions)) => {
                let errors = self.executor.run(actions).await;
                if let Some(first) = errors.iter().find(|error| !error.is_expected()) {
                    let others = errors.len().saturating_sub(1);
                    warn!(uid, others, error = first as &dyn std::error::Error, "collecting failed; it is tried again");
                }
                errors.is_empty()
            }
            Some(Step::Ask { resource, namespace, name, owner_uid }) => {
                self.ask(&resource, &namespace, &name, &owner_uid).await
            }
        }
    }

    async fn ask(&self, resource: &ApiResource, namespace: &str, name: &str, owner_uid: &str) -> bool {
        let api: Api<DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        };
        match tokio::time::timeout(ASK_MAX, api.get_metadata_opt(name)).await {
            Ok(Ok(Some(found))) if found.metadata.uid.as_deref() == Some(owner_uid) => {
                debug!(owner_uid, "the owner exists and will be shown by its watch");
                self.graph.note_present(owner_uid);
                true
            }
            Ok(Ok(_)) => {
                self.graph.note_absent(owner_uid);
                true
            }
            Ok(Err(error)) => {
                warn!(owner_uid, %error, "could not ask for an owner; nothing is deleted for its sake");
                false
            }
            Err(_late) => {
                warn!(owner_uid, "no answer about an owner; nothing is deleted for its sake");
                false
            }
        }
    }
}

/// How long the API server, which is in this process, may take to say whether an owner exists.
const ASK_MAX: Duration = Duration::from_secs(60);
