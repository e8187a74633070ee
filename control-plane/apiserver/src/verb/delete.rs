//! DELETE: at once, or by marking the object and leaving the rest to its finalizers and, for pods, its kubelet.
//!
//!     live --no finalizers, no grace--> gone
//!     live --finalizers or grace--> deleting (deletionTimestamp) --last finalizer removed, grace over--> gone

use control_plane_api::{Object, Row, Status, object::rfc3339};
use control_plane_store::{Change, Precondition, Revision, WriteError};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    commit::Commit,
    decode::Sent,
    delete_options::{DeleteOptions, Propagation},
    respond::{self, ListMeta},
};
use crate::{admission, allocate::Claim, behaviour, body::Body, status::Outcome, verb::Call, wire};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// A pod's grace period when its spec names none.
const GRACE_SECONDS_DEFAULT: i64 = 30;
/// A longer one is this long: whoever counts with it afterwards gets a moment that exists.
const GRACE_SECONDS_MAX: i64 = 1 << 32;
const ATTEMPTS_MAX: usize = 10;
/// Kinds whose deletion answers with the object that went, not with a Status.
const ANSWERED_WHOLE: [&str; 8] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "ipaddresses",
];

/// What became of the object.
#[derive(Debug)]
pub(crate) enum Deleted {
    Gone(Object),
    /// Still there, marked, until whoever holds it lets go.
    Marked(Object),
}

pub(crate) async fn one(call: &mut Call, sent: &Sent) -> Outcome<Response<Body>> {
    let options = DeleteOptions::parse(call, sent)?;
    match delete(call, &options).await? {
        Deleted::Marked(object) => respond::object(call, StatusCode::OK, &object),
        Deleted::Gone(object) if ANSWERED_WHOLE.contains(&call.row.resource) => {
            respond::object(call, StatusCode::OK, &object)
        }
        Deleted::Gone(object) => {
            let status = Status::success_deleted(call.row.group, call.row.resource, object.name(), object.uid());
            respond::value(call, StatusCode::OK, &status)
        }
    }
}

/// Deletes the object that the call's path names.
pub(crate) async fn delete(call: &mut Call, options: &DeleteOptions) -> Outcome<Deleted> {
    let collection = call.collection()?.clone();
    let key = collection.key(&call.path.namespace, &call.path.name);
    call.kernel.cache.catch_up().await?;
    for _ in 0..ATTEMPTS_MAX {
        let snapshot = collection.snapshot();
        let cached = snapshot.get(&key).ok_or_else(|| call.not_found())?;
        let live = call.in_version(cached);
        check_preconditions(call, &live, options)?;
        admission::validate_delete(call, &live)?;
        let next = marked(call.row, &live, options, call.now);
        if let Some(next) = &next
            && live.is_deleting()
            && *next == live
        {
            return Ok(Deleted::Marked(live));
        }
        if options.dry_run {
            return Ok(next.map_or(Deleted::Gone(live), Deleted::Marked));
        }
        // What is marked was stored before: no limit keeps an object from going.
        let (change, released) = match &next {
            Some(next) => (Change::Put(wire::stored(&behaviour::to_storage(call.row, next.clone()))), None),
            None => (Change::Delete, Some(live.clone())),
        };
        let (precondition, claim) = (Precondition::At(cached.revision), Claim::default());
        let commit = Commit { row: call.row, key: key.clone(), precondition, change, claim, released };
        match commit.run(&call.kernel).await {
            Ok(revision) => {
                return Ok(match next {
                    Some(mut next) => {
                        next.set_resource_version(revision.0);
                        Deleted::Marked(next)
                    }
                    None => {
                        let mut live = live;
                        live.set_resource_version(revision.0);
                        Deleted::Gone(live)
                    }
                });
            }
            Err(WriteError::Conflict { current: None }) => return Err(call.not_found().into()),
            Err(WriteError::Conflict { current: Some(current) }) => {
                call.kernel.cache.wait_for(Revision(current.revision.0)).await?;
            }
            Err(WriteError::Store(error)) => return Err(error.into()),
        }
    }
    Err(Status::stale(call.row.group, call.row.resource, &call.path.name).into())
}

pub(crate) fn check_preconditions(call: &Call, live: &Object, options: &DeleteOptions) -> Outcome<()> {
    let refuse = |what: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(Status::conflict(call.row.group, call.row.resource, live.name(), &why).into())
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != live.uid()) {
        return refuse("UID", uid, live.uid());
    }
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != live.resource_version()) {
        return refuse("ResourceVersion", version, live.resource_version());
    }
    Ok(())
}

/// The object as it waits for its end; `None` when nothing holds it.
fn marked(row: &Row, live: &Object, options: &DeleteOptions, now: Timestamp) -> Option<Object> {
    let mut next = live.clone();
    let finalizers = finalizers(live, row, options.propagation);
    next.set_finalizers(&finalizers.iter().map(String::as_str).collect::<Vec<_>>());
    let is_namespace = row.group.is_empty() && row.resource == "namespaces";
    let held = !finalizers.is_empty() || (is_namespace && !live.list_at(&["spec", "finalizers"]).is_empty());
    let grace = grace_seconds(row, live, options);
    if !held && grace == 0 {
        return None;
    }
    if live.is_deleting() {
        // A shorter grace period may be asked for later, a longer one not.
        let current = live.deletion_grace_period_seconds().unwrap_or(0);
        if grace < current {
            // Counted from when the deletion began.
            let began = later(live.deletion_timestamp().unwrap_or(now), current.saturating_neg());
            let began = began.max(Timestamp::UNIX_EPOCH);
            set_deletion(&mut next, later(began, grace), grace);
        }
        return Some(next);
    }
    set_deletion(&mut next, later(now, grace), grace);
    if next.generation() > 0 {
        next.set_generation(next.generation().saturating_add(1));
    }
    if is_namespace {
        next.set(&["status", "phase"], "Terminating");
    }
    Some(next)
}

/// So many seconds later; the end of time when there is no such moment. Somebody else chose the number.
fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

fn set_deletion(object: &mut Object, at: Timestamp, grace: i64) {
    let metadata = object.metadata_mut();
    metadata.insert("deletionTimestamp".into(), rfc3339(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

/// Seconds that the object gets to end by itself: only pods do.
fn grace_seconds(row: &Row, live: &Object, options: &DeleteOptions) -> i64 {
    if !row.group.is_empty() || row.resource != "pods" {
        return 0;
    }
    let phase = live.str_at(&["status", "phase"]).unwrap_or("");
    let scheduled = live.str_at(&["spec", "nodeName"]).is_some_and(|node| !node.is_empty());
    if !scheduled || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let spec = live.i64_at(&["spec", "terminationGracePeriodSeconds"]).unwrap_or(GRACE_SECONDS_DEFAULT);
    // Negative means at once but not forced: a second, so that the kubelet still ends it.
    match options.grace_seconds.unwrap_or(spec) {
        negative if negative < 0 => 1,
        seconds => seconds.min(GRACE_SECONDS_MAX),
    }
}

fn finalizers(live: &Object, row: &Row, asked: Option<Propagation>) -> Vec<String> {
    let own: Vec<String> = live.finalizers().iter().map(|one| (*one).to_owned()).collect();
    let default = if row.resource == "replicationcontrollers" { Propagation::Orphan } else { Propagation::Background };
    let keep = |out: &[&str]| own.iter().filter(|one| !out.contains(&one.as_str())).cloned().collect::<Vec<_>>();
    let with = |mut list: Vec<String>, one: &str| {
        list.push(one.to_owned());
        list
    };
    match asked {
        // Without a wish, what an earlier deletion asked for stays.
        None if own.iter().any(|one| one == FOREGROUND || one == ORPHAN) => own,
        asked => match asked.unwrap_or(default) {
            Propagation::Foreground => with(keep(&[ORPHAN, FOREGROUND]), FOREGROUND),
            Propagation::Orphan => with(keep(&[ORPHAN, FOREGROUND]), ORPHAN),
            Propagation::Background => keep(&[ORPHAN, FOREGROUND]),
        },
    }
}

pub(crate) async fn collection(call: &mut Call, sent: &Sent) -> Outcome<Response<Body>> {
    let options = DeleteOptions::parse(call, sent)?;
    call.kernel.cache.catch_up().await?;
    let filter = call.filter()?;
    let snapshot = call.collection()?.snapshot();
    let found: Vec<_> = snapshot.range(filter.prefix(), "").filter(|cached| filter.matches(cached)).cloned().collect();
    let mut items = Vec::with_capacity(found.len());
    for cached in found {
        let mut single = call.clone();
        cached.name().clone_into(&mut single.path.name);
        if call.row.namespaced {
            cached.namespace().clone_into(&mut single.path.namespace);
        }
        match delete(&mut single, &options).await {
            Ok(Deleted::Gone(object) | Deleted::Marked(object)) => items.push(object),
            // Somebody else was quicker: gone is what was asked for.
            Err(failure) if failure.0.reason == control_plane_api::Reason::NotFound => {}
            Err(failure) => return Err(failure),
        }
    }
    let meta = ListMeta { resource_version: call.kernel.cache.applied().to_string(), ..ListMeta::default() };
    respond::list(call, &meta, &items)
}

/// Whether a version that is about to be stored has nothing left to wait for.
pub(crate) fn is_complete(row: &Row, next: &Object) -> bool {
    let is_namespace = row.group.is_empty() && row.resource == "namespaces";
    next.is_deleting()
        && next.finalizers().is_empty()
        && next.deletion_grace_period_seconds().unwrap_or(0) == 0
        && !(is_namespace
            && next.at(&["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|list| !list.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane_api::row;
    use serde_json::json;

    fn pod(extra: Value) -> Object {
        let mut value =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        json_patch::merge(&mut value, &extra);
        Object::from_value(value).unwrap()
    }

    #[test]
    fn grace_and_finalizers_decide_how_it_goes() {
        let pods = row("", "v1", "pods").unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let check =
            |live: &Object, grace: Option<i64>, propagation: Option<Propagation>, expect: Option<(&str, i64)>| {
                let options = DeleteOptions { grace_seconds: grace, propagation, ..DeleteOptions::default() };
                let next = marked(pods, live, &options, now);
                let found = next.as_ref().map(|next| {
                    let at = next.str_at(&["metadata", "deletionTimestamp"]).unwrap();
                    (at, next.deletion_grace_period_seconds().unwrap())
                });
                assert_eq!(found, expect);
            };
        check(&pod(json!({})), None, None, Some(("2026-01-01T00:00:30Z", 30)));
        check(&pod(json!({})), Some(5), None, Some(("2026-01-01T00:00:05Z", 5)));
        check(&pod(json!({})), Some(0), None, None);
        check(&pod(json!({"spec": {"nodeName": null}})), None, None, None);
        check(&pod(json!({"status": {"phase": "Succeeded"}})), None, None, None);
        check(&pod(json!({"metadata": {"finalizers": ["a/b"]}})), Some(0), None, Some(("2026-01-01T00:00:00Z", 0)));
        check(&pod(json!({})), Some(0), Some(Propagation::Foreground), Some(("2026-01-01T00:00:00Z", 0)));
        // A second deletion may only shorten.
        let dying = marked(pods, &pod(json!({})), &DeleteOptions::default(), now).unwrap();
        check(&dying, Some(60), None, Some(("2026-01-01T00:00:30Z", 30)));
        check(&dying, Some(10), None, Some(("2026-01-01T00:00:10Z", 10)));
        check(&dying, Some(0), None, None);
        // Numbers that nobody meant.
        let last = rfc3339(later(now, GRACE_SECONDS_MAX));
        let longest = Some((last.as_str(), GRACE_SECONDS_MAX));
        check(&pod(json!({})), Some(i64::MAX), None, longest);
        check(&pod(json!({})), Some(i64::MIN), None, Some(("2026-01-01T00:00:01Z", 1)));
        check(&pod(json!({"spec": {"terminationGracePeriodSeconds": i64::MAX}})), None, None, longest);
        let dying = pod(json!({"metadata": {"deletionTimestamp": "9999-12-30T22:00:00Z",
            "deletionGracePeriodSeconds": i64::MAX}}));
        check(&dying, Some(5), None, Some(("1970-01-01T00:00:05Z", 5)));
    }
}
