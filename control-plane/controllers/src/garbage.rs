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

use futures::StreamExt;
use futures::stream::SelectAll;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use tracing::{debug, warn};

use crate::cache::Key;
use crate::executor::Executor;
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

/// How long an object waits after the API server failed to take what was planned for it.
const RETRY_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

type Metadata = PartialObjectMeta<DynamicObject>;
type Tagged = (usize, watcher::Result<watcher::Event<Metadata>>);

/// Collects for ever. `namespaces` hears of every namespace whose last object may be gone.
pub(crate) async fn run(client: kube::Client, graph: Arc<Graph>, namespaces: Arc<Queue>) -> Error {
    let resources = watched();
    let executor = Executor::new(client.clone(), Arc::new(World::default()), "garbage-collector");
    let mut events: SelectAll<futures::stream::BoxStream<'static, Tagged>> = SelectAll::new();
    for (index, resource) in resources.iter().enumerate() {
        let api: Api<Metadata> = Api::all_with(client.clone(), resource);
        let watch = watcher(api, watcher::Config::default()).default_backoff();
        events.push(watch.map(move |event| (index, event)).boxed());
    }
    let mut pending = resources.len();
    loop {
        // Nothing is judged before every kind has been listed: an owner not yet listed would look gone.
        if pending == 0
            && let Some(uid) = graph.next_suspect()
        {
            collect(&client, &executor, &graph, &uid).await;
            // Events go first where there are any, so that a judgement is never much behind the world.
            if let Some(event) = futures::FutureExt::now_or_never(events.next()).flatten() {
                pending -= usize::from(take_in(&graph, &resources, event, &namespaces));
            }
            continue;
        }
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(RETRY_DELAY), if graph.has_failed() => {
                graph.suspect_failed();
                continue;
            }
        };
        match event {
            Some(event) => {
                pending = pending.saturating_sub(usize::from(take_in(&graph, &resources, event, &namespaces)))
            }
            None => return Error::WatchEnded { what: "all metadata".into() },
        }
    }
}

/// True when a kind's first list is whole.
fn take_in(graph: &Graph, resources: &[ApiResource], (index, event): Tagged, namespaces: &Queue) -> bool {
    let resource = &resources[index];
    let touched = match event {
        Ok(watcher::Event::Init) => {
            graph.begin_list(index);
            Vec::new()
        }
        Ok(watcher::Event::InitApply(object)) => graph.upsert(index, resource, &object.metadata, true),
        Ok(watcher::Event::Apply(object)) => graph.upsert(index, resource, &object.metadata, false),
        Ok(watcher::Event::Delete(object)) => graph.remove(object.metadata.uid.as_deref().unwrap_or_default()),
        Ok(watcher::Event::InitDone) => {
            let (is_first, touched) = graph.end_list(index);
            for namespace in touched {
                namespaces.push(Key::new("", namespace));
            }
            return is_first;
        }
        Err(error) => {
            warn!(kind = resource.kind, %error, "the watch broke; it is taken up again");
            Vec::new()
        }
    };
    for namespace in touched {
        namespaces.push(Key::new("", namespace));
    }
    false
}

async fn collect(client: &kube::Client, executor: &Executor, graph: &Graph, uid: &str) {
    let step = match graph.step(uid) {
        Some(step) => step,
        None => return,
    };
    match step {
        Step::Act(actions) => {
            let errors = executor.run(actions).await;
            for error in errors {
                warn!(uid, error = &error as &dyn std::error::Error, "collecting failed; it is tried again");
                graph.note_failed(uid);
            }
        }
        Step::Ask { resource, namespace, name, owner_uid } => {
            let api: Api<DynamicObject> = if namespace.is_empty() {
                Api::all_with(client.clone(), resource.as_ref())
            } else {
                Api::namespaced_with(client.clone(), &namespace, resource.as_ref())
            };
            match api.get_metadata_opt(&name).await {
                Ok(Some(found)) if found.metadata.uid.as_deref() == Some(owner_uid.as_str()) => {
                    debug!(owner_uid, "the owner exists and will be shown by its watch");
                    graph.note_present(&owner_uid);
                }
                Ok(_) => graph.note_absent(&owner_uid),
                Err(error) => {
                    warn!(owner_uid, %error, "could not ask for an owner; nothing is deleted for its sake");
                    graph.note_failed(uid);
                }
            }
        }
    }
}
