//! The task that follows Services and EndpointSlices and keeps the table in step.
//!
//!     listing --(both lists complete)--> in step --(event)--> dirty --(queue empty)--> apply --> in step
//!                                                        apply fails --> wait --> apply
//!
//! Nothing is written to the kernel before both lists are complete: half a list would look like deletions.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use control_plane_decode::{Decoded, Skipped};
use futures::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, error, warn};

use crate::catalog::{Catalog, ServiceName};
use crate::proxy::Proxy;

/// Events taken together into one transaction at most.
const EVENTS_MAX: usize = 4096;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

enum Change {
    Service(Box<Event<Service>>),
    Slice(Box<Event<EndpointSlice>>),
}

#[derive(Default)]
struct Progress {
    has_services: bool,
    has_slices: bool,
    dirty: HashSet<ServiceName>,
}

/// Runs until it is dropped.
pub(crate) async fn follow(client: Client, catalog: Arc<RwLock<Catalog>>, proxy: Proxy) {
    let services = events(watch(Api::<Decoded<Service>>::all(client.clone()), watcher::Config::default()), "services");
    let slices =
        events(watch(Api::<Decoded<EndpointSlice>>::all(client), watcher::Config::default()), "endpointslices");
    let mut changes = stream::select(
        services.map(|event| Change::Service(Box::new(event))).boxed(),
        slices.map(|event| Change::Slice(Box::new(event))).boxed(),
    )
    .fuse();
    let mut progress = Progress::default();
    let mut proxy = Some(proxy);
    let mut retry: Option<Duration> = None;
    loop {
        let mut next = match retry {
            None => match changes.next().await {
                Some(change) => Some(change),
                // Watches do not end by themselves.
                None => return,
            },
            Some(delay) => tokio::time::timeout(delay, changes.next()).await.unwrap_or(None),
        };
        for _ in 0..EVENTS_MAX {
            let Some(change) = next else { break };
            take(&catalog, &mut progress, change);
            next = changes.next().now_or_never().flatten();
        }
        if let Some(change) = next {
            take(&catalog, &mut progress, change);
        }
        let is_due = retry.is_some() || !progress.dirty.is_empty();
        if !(progress.has_services && progress.has_slices && is_due) {
            continue;
        }
        retry = apply(&catalog, &mut progress, &mut proxy, retry).await;
    }
}

/// Takes dirty Services into the proxy and writes the difference; returns when to try again.
async fn apply(
    catalog: &Arc<RwLock<Catalog>>,
    progress: &mut Progress,
    slot: &mut Option<Proxy>,
    retry: Option<Duration>,
) -> Option<Duration> {
    let dirty = std::mem::take(&mut progress.dirty);
    let mut proxy = slot.take()?;
    let catalog = Arc::clone(catalog);
    let count = dirty.len();
    let worked = tokio::task::spawn_blocking(move || {
        {
            let catalog = catalog.read().unwrap_or_else(PoisonError::into_inner);
            for name in &dirty {
                proxy.set(name, catalog.get(name));
            }
        }
        let outcome = proxy.apply();
        (proxy, outcome)
    });
    match worked.await {
        Ok((proxy, Ok(()))) => {
            *slot = Some(proxy);
            debug!(services = count, "service rules are in step");
            None
        }
        Ok((proxy, Err(failure))) => {
            *slot = Some(proxy);
            let delay = retry.map_or(RETRY_FIRST, |last| (last * 2).min(RETRY_MAX));
            error!(error = &failure as &dyn std::error::Error, ?delay, "service rules are not in step; trying again");
            Some(delay)
        }
        Err(join) => {
            // The proxy is lost with the panic; without it nothing can be done until a restart.
            error!(error = &join as &dyn std::error::Error, "service rules: the writer ended");
            None
        }
    }
}

fn take(catalog: &RwLock<Catalog>, progress: &mut Progress, change: Change) {
    let mut catalog = catalog.write().unwrap_or_else(PoisonError::into_inner);
    let names = match change {
        Change::Service(event) => {
            if matches!(*event, Event::InitDone) && !progress.has_services {
                progress.has_services = true;
                progress.dirty.extend(catalog.iter().map(|(name, _)| name.clone()));
                // An empty cluster has a table too.
                progress.dirty.insert(ServiceName { namespace: String::new(), name: String::new() });
            }
            catalog.service_event(*event)
        }
        Change::Slice(event) => {
            progress.has_slices |= matches!(*event, Event::InitDone);
            catalog.slice_event(*event)
        }
    };
    progress.dirty.extend(names);
}

/// The events of a watch; errors are logged, and the watch goes on after a pause. An object that cannot be read is skipped.
fn events<K>(
    stream: impl Stream<Item = watcher::Result<Event<Decoded<K>>>> + Send,
    resource: &'static str,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send,
{
    let mut skipped = Skipped::new("services");
    stream.default_backoff().filter_map(move |event| {
        std::future::ready(match event {
            Ok(event) => skipped.event(event),
            Err(failure) => {
                warn!(resource, error = &failure as &dyn std::error::Error, "watch broke; it starts again");
                None
            }
        })
    })
}
