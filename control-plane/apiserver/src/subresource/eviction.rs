//! /eviction: a deletion that asks the pod's disruption budget first.

use control_plane_api::{Cause, CauseType, Object, Status, selector::Selector};
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    body::Body,
    cache::Cached,
    status::Outcome,
    verb::{Call, decode, delete, delete_options::DeleteOptions, respond, write},
};

const POLICY: &str = "policy";
const BUDGETS: &str = "poddisruptionbudgets";
/// When to ask again about a budget that the disruption controller has not seen yet.
const PROCESSED_AFTER_SECONDS: u32 = 10;

pub(super) async fn serve(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    let body = decode::Sent::read(request).await?;
    let eviction = decode::object_of(&mut call, &body, (POLICY, "v1", "Eviction"))?;
    if !eviction.name().is_empty() && eviction.name() != call.path.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object").into());
    }
    let text = |path: &[&str]| eviction.str_at(path).map(str::to_owned);
    let mut options = DeleteOptions {
        grace_seconds: eviction.i64_at(&["deleteOptions", "gracePeriodSeconds"]),
        uid: text(&["deleteOptions", "preconditions", "uid"]),
        resource_version: text(&["deleteOptions", "preconditions", "resourceVersion"]),
        dry_run: call.dry_run()? || !eviction.list_at(&["deleteOptions", "dryRun"]).is_empty(),
        propagation: None,
    };
    call.path.subresource.clear();
    let pod = call.read().await?.object();
    // Before anything is taken from a budget or told to anybody.
    delete::check_preconditions(&call, &pod, &options)?;
    let phase = pod.str_at(&["status", "phase"]).unwrap_or("");
    // A pod that does not run disrupts nothing, and one that is going already is not asked about again.
    if !matches!(phase, "Succeeded" | "Failed" | "Pending") && !pod.is_deleting() {
        ask_budget(&call, &pod, options.dry_run).await?;
    }
    // The budget has given its disruption: from here to the deletion nobody who hangs up may come in between.
    let mut own = call.clone();
    let gone = tokio::spawn(async move {
        if !options.dry_run && !pod.is_deleting() {
            let marked = mark(&own, options.resource_version.as_deref()).await?;
            // The mark is a version of its own; it followed the one that was asked for.
            options.resource_version = options.resource_version.map(|_| marked.resource_version().to_owned());
        }
        delete::delete(&mut own, &options).await
    });
    gone.await.map_err(|_| Status::internal("the eviction ended early"))??;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    respond::value(&call, StatusCode::CREATED, &status)
}

/// Tells in the pod's conditions why it goes, for Jobs and people that ask afterwards.
async fn mark(call: &Call, wanted_version: Option<&str>) -> Outcome<Object> {
    let mut other = call.clone();
    "status".clone_into(&mut other.path.subresource);
    let now = control_plane_api::object::rfc3339(call.now);
    let produce = &mut |_: &mut Call, live: &Object| {
        let mut conditions = live.list_at(&["status", "conditions"]).to_vec();
        conditions.retain(|one| one["type"] != "DisruptionTarget");
        conditions.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now}));
        let mut next = live.clone();
        match wanted_version {
            Some(version) => next.metadata_mut().insert("resourceVersion".into(), version.into()),
            None => next.metadata_mut().remove("resourceVersion"),
        };
        next.set(&["status", "conditions"], conditions);
        Ok(next)
    };
    write::change(&mut other, produce).await
}

/// Takes one disruption from the budget that covers the pod.
async fn ask_budget(call: &Call, pod: &Object, dry_run: bool) -> Outcome<()> {
    let budgets: Vec<Object> = covering(call, pod);
    let budget = match &budgets[..] {
        [] => return Ok(()),
        [one] => one,
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::internal(why).into());
        }
    };
    let ready = pod.list_at(&["status", "conditions"]).iter().any(|condition| {
        let text = |key: &str| condition.get(key).and_then(Value::as_str);
        text("type") == Some("Ready") && text("status") == Some("True")
    });
    let count = |field: &str| budget.i64_at(&["status", field]).unwrap_or(0);
    let always = budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow");
    // An unhealthy pod is no loss while enough others are healthy.
    if !ready && (always || (count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0)) {
        return Ok(());
    }
    if dry_run {
        return if count("disruptionsAllowed") > 0 { Ok(()) } else { Err(refused(budget).into()) };
    }
    let row = control_plane_api::row(POLICY, "v1", BUDGETS).ok_or_else(|| Status::internal("no budgets"))?;
    let mut other = call.clone();
    other.row = row;
    budget.name().clone_into(&mut other.path.name);
    "status".clone_into(&mut other.path.subresource);
    POLICY.clone_into(&mut other.path.group);
    BUDGETS.clone_into(&mut other.path.resource);
    let now = control_plane_api::object::rfc3339(call.now);
    let name = pod.name().to_owned();
    let produce = &mut |_: &mut Call, live: &Object| {
        if live.generation() > live.i64_at(&["status", "observedGeneration"]).unwrap_or(0) {
            let why = format!("The disruption budget {} is still being processed by the server.", live.name());
            return Err(over_budget(why, PROCESSED_AFTER_SECONDS).into());
        }
        let allowed = live.i64_at(&["status", "disruptionsAllowed"]).unwrap_or(0);
        if allowed <= 0 {
            return Err(refused(live).into());
        }
        let mut next = live.clone();
        next.set(&["status", "disruptionsAllowed"], allowed.saturating_sub(1));
        next.set(&["status", "disruptedPods", name.as_str()], now.as_str());
        Ok(next)
    };
    write::change(&mut other, produce).await?;
    Ok(())
}

fn refused(budget: &Object) -> Status {
    let needed = budget.i64_at(&["status", "desiredHealthy"]).unwrap_or(0);
    let healthy = budget.i64_at(&["status", "currentHealthy"]).unwrap_or(0);
    let message = match failed_count(budget) {
        Some(why) => format!("The disruption budget {} cannot be counted: {why}", budget.name()),
        None => {
            format!("The disruption budget {} needs {needed} healthy pods and has {healthy} currently", budget.name())
        }
    };
    over_budget(message, 0)
}

/// Why the disruption controller cannot say what may go.
fn failed_count(budget: &Object) -> Option<String> {
    let failed = budget.list_at(&["status", "conditions"]).iter().find(|one| one["reason"] == "SyncFailed")?;
    Some(failed["message"].as_str().unwrap_or("no reason was given").to_owned())
}

fn over_budget(message: String, retry_after_seconds: u32) -> Status {
    let why = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::too_many_requests(why, retry_after_seconds);
    // client-go knows a refusal of the budget from a busy server by this cause.
    let cause = Cause { kind: CauseType::DisruptionBudget, field: String::new(), message };
    status.details.get_or_insert_default().causes.push(cause);
    status
}

fn covering(call: &Call, pod: &Object) -> Vec<Object> {
    let Some(budgets) = call.kernel.cache.of(POLICY, BUDGETS) else { return Vec::new() };
    let prefix = format!("{}{}/", budgets.prefix(), pod.namespace());
    let snapshot = budgets.snapshot();
    let objects = snapshot.range(&prefix, "").map(|cached: &std::sync::Arc<Cached>| cached.object());
    let selects = |budget: &Object| {
        let selector = budget.at(&["spec", "selector"]).and_then(|value| Selector::from_value(value).ok());
        selector.is_some_and(|selector| selector.matches_object(pod))
    };
    objects.filter(selects).collect()
}
