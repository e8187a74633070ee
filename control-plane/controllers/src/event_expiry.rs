//! Events go an hour after they were last written, as upstream's API server forgets them (`--event-ttl`).
//!
//! Not a plan over a cache: events are many, nobody else here reads them, and their age is no event that could tell.

use std::sync::Arc;
use std::time::Duration;

use control_plane_decode::Decoded;
use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta, Preconditions};
use tracing::{debug, error, warn};

use crate::clock::after;
use crate::panics;

/// Between two looks: an event lives so much longer at most.
const EVERY: Duration = Duration::from_secs(60);
/// Metadata in one answer.
const PAGE: u32 = 500;
/// Deletes under way at once.
const DELETES_MAX: usize = 8;
/// For one look at everything; the next one goes on with what is left.
const SWEEP_MAX: Duration = Duration::from_secs(600);

type Metadata = Decoded<PartialObjectMeta<Event>>;

/// For ever.
pub(crate) async fn run(client: kube::Client, lifetime: SignedDuration) -> std::convert::Infallible {
    let all: Arc<Api<Metadata>> = Arc::new(Api::all(client.clone()));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sweep = tokio::time::timeout(SWEEP_MAX, sweep(&client, &all, lifetime, Timestamp::now()));
        match panics::caught(sweep).await {
            Ok(Ok(Ok(0))) => {}
            Ok(Ok(Ok(expired))) => debug!(expired, "events have expired"),
            Ok(Ok(Err(error))) => warn!(%error, "expired events could not be deleted; it is tried again"),
            Ok(Err(_late)) => warn!("deleting expired events takes long; the rest follows"),
            Err(panic) => error!(panics = panics::count(), panic, "the expiry of events panicked; it is tried again"),
        }
    }
}

async fn sweep(
    client: &kube::Client,
    all: &Api<Metadata>,
    lifetime: SignedDuration,
    now: Timestamp,
) -> Result<usize, kube::Error> {
    let mut expired = 0usize;
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = all.list(&page).await?;
        let old: Vec<ObjectMeta> = list
            .items
            .iter()
            .map(|event| event.meta().clone())
            .filter(|meta| is_expired(meta, lifetime, now))
            .collect();
        let results: Vec<_> =
            stream::iter(old).map(|meta| delete(client, meta)).buffer_unordered(DELETES_MAX).collect().await;
        for result in results {
            expired = expired.saturating_add(usize::from(result?));
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(expired),
        }
    }
}

/// Goes by times that the API server wrote: those of the event itself are its author's, who may be anywhere in time. One
/// whose metadata cannot be read has none, and goes.
fn is_expired(meta: &ObjectMeta, lifetime: SignedDuration, now: Timestamp) -> bool {
    let writes = meta.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
    let last = writes.chain(&meta.creation_timestamp).map(|time| time.0).filter(|time| *time <= now).max();
    last.is_none_or(|last| after(last, lifetime) <= now)
}

/// False if it has been written again, or is gone.
async fn delete(client: &kube::Client, meta: ObjectMeta) -> Result<bool, kube::Error> {
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: meta.uid, resource_version: meta.resource_version }),
        ..DeleteParams::default()
    };
    match Api::<Metadata>::namespaced(client.clone(), &namespace).delete(&name, &params).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_last_write_counts() {
        let check = |created: &str, writes: &[&str], expect: bool| {
            let managed: Vec<Value> = writes.iter().map(|time| json!({"manager": "m", "time": time})).collect();
            let mut meta = json!({"managedFields": managed});
            if !created.is_empty() {
                meta["creationTimestamp"] = json!(created);
            }
            let meta = serde_json::from_value(meta).unwrap();
            let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
            assert_eq!(is_expired(&meta, SignedDuration::from_hours(1), now), expect, "{created} {writes:?}");
        };
        check("2026-01-01T11:30:00Z", &[], false);
        check("2026-01-01T11:00:00Z", &[], true);
        check("2026-01-01T09:00:00Z", &["2026-01-01T11:59:00Z"], false);
        check("2026-01-01T09:00:00Z", &["2026-01-01T10:00:00Z"], true);
        check("2026-01-01T09:00:00Z", &["9999-01-01T00:00:00Z"], true);
        check("", &[], true);
    }
}
