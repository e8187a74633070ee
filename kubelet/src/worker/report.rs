//! Writes the status to the API: one PATCH at a time, only what differs, the newest state whenever the last write is through.
//! Survives an API server that is away. Conditions of others are never touched.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::Worker;
use super::done::{Done, Work};
use crate::events::Severity;
use crate::pod::{LocalPod, Source};
use crate::status::{DISRUPTION, DISRUPTION_REASON};

const RETRY_FIRST: SignedDuration = SignedDuration::from_millis(250);
const RETRY_LAST: SignedDuration = SignedDuration::from_secs(15);

/// What the API has been told.
#[derive(Debug, Default)]
pub(super) struct Sent {
    status: Option<PodStatus>,
    writing: bool,
    retry_at: Option<Timestamp>,
    pause: Option<SignedDuration>,
}

impl Sent {
    pub(super) fn from_api(status: Option<&PodStatus>) -> Sent {
        Sent { status: status.map(ours), ..Sent::default() }
    }

    /// A status in the API that has no start time was never ours: it was reset by somebody.
    pub(super) fn hear_api(&mut self, pod: &LocalPod) {
        if self.status.is_some() && pod.status().is_none_or(|s| s.phase.is_none()) {
            self.status = None;
        }
    }

    pub(super) fn give_up(&mut self) {
        self.writing = false;
    }

    /// The API has this status and no write is under way.
    pub(super) fn is_settled(&self, status: &PodStatus) -> bool {
        !self.writing && self.status.as_ref() == Some(status)
    }
}

/// Without conditions that others wrote.
fn ours(status: &PodStatus) -> PodStatus {
    const OURS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        let is_ours = |c: &PodCondition| {
            let by_us = c.type_ == DISRUPTION && c.reason.as_deref() == Some(DISRUPTION_REASON);
            by_us || OURS.contains(&c.type_.as_str())
        };
        conditions.retain(is_ours);
    }
    status
}

impl Worker {
    pub(super) fn report(&mut self, now: Timestamp) {
        self.status = self.compute_status(now);
        self.tell_backoff();
        let uid = match self.pod.source {
            Source::Api => Some(self.pod.uid.clone()),
            Source::File => self.mirror.clone(),
        };
        let Some(uid) = uid.filter(|_| !self.observed.gone) else { return };
        if self.sent.writing || self.sent.status.as_ref() == Some(&self.status) {
            return;
        }
        if let Some(at) = self.sent.retry_at.filter(|at| !crate::sync::backoff::is_over(*at, now)) {
            self.wake_at(at);
            return;
        }
        self.sent.writing = true;
        let body = json!({"metadata": {"uid": uid}, "status": change(self.sent.status.as_ref(), &self.status)});
        let api: Api<Pod> = Api::namespaced(self.kit.client.clone(), &self.pod.key.namespace);
        let (name, status) = (self.pod.key.name.clone(), Box::new(self.status.clone()));
        self.begin(Work::Write, async move {
            let result = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await;
            Done::Written { status, result: result.map(Box::new) }
        });
    }

    pub(super) fn hear_written(&mut self, status: PodStatus, result: Result<Box<Pod>, kube::Error>) {
        self.sent.writing = false;
        match result {
            Ok(_) => {
                self.sent.status = Some(status);
                self.sent.retry_at = None;
                self.sent.pause = None;
                self.settle_pulls();
            }
            // Another pod has the name, or none: the watch will tell.
            Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => self.sent.status = Some(status),
            Err(error) => {
                let pause = self.sent.pause.map_or(RETRY_FIRST, |p| p.saturating_mul(2).min(RETRY_LAST));
                tracing::warn!(pod = %self.pod.key, %error, ?pause, "status not written");
                self.sent.pause = Some(pause);
                self.sent.retry_at = Timestamp::now().checked_add(pause).ok();
            }
        }
    }

    /// Once the failed pull has been told, what remains to be told is the wait.
    fn settle_pulls(&mut self) {
        let pod = self.pod.clone();
        for (name, failure) in &mut self.observed.failures {
            if failure.reason != "ErrImagePull" {
                continue;
            }
            let image = pod.member(name).map_or("", |m| m.image());
            let text = format!("Back-off pulling image \"{image}\"");
            self.kit.recorder.pod(&pod, Some(name), Severity::Normal, "BackOff", text.clone());
            self.kit.recorder.pod(&pod, Some(name), Severity::Warning, "Failed", "Error: ImagePullBackOff");
            failure.message = format!("{text}: ErrImagePull: {}", failure.message);
            failure.reason = "ImagePullBackOff".into();
        }
    }

    fn tell_backoff(&mut self) {
        for member in &self.pod.members {
            let Some(newest) = self.observed.newest(member.name()).filter(|c| c.exit().is_some()) else { continue };
            let all = [&self.status.container_statuses, &self.status.init_container_statuses];
            let waits = all.into_iter().flatten().flatten().any(|s| {
                let waiting = s.state.as_ref().and_then(|s| s.waiting.as_ref());
                s.name == member.name() && waiting.and_then(|w| w.reason.as_deref()) == Some("CrashLoopBackOff")
            });
            if waits && self.told_backoff.insert(newest.id.clone()) {
                let (key, uid) = (&self.pod.key, &self.pod.uid);
                let text = format!(
                    "Back-off restarting failed container {} in pod {}_{}({uid})",
                    member.name(),
                    key.name,
                    key.namespace
                );
                self.kit.recorder.pod(&self.pod, Some(member.name()), Severity::Warning, "BackOff", text);
            }
        }
        let known = &self.observed.containers;
        self.told_backoff.retain(|id| known.iter().any(|c| c.id == *id));
    }
}

/// The fields that differ, for a strategic merge: `null` removes one, addresses that are gone are deleted by their key, and
/// a condition that holds again loses the reason and message of why it did not.
fn change(old: Option<&PodStatus>, new: &PodStatus) -> Value {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (old.map(object).unwrap_or_default(), object(new));
    let mut out = Map::new();
    for (key, value) in &new {
        if old.get(key) != Some(value) {
            out.insert(key.clone(), value.clone());
        }
    }
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        out.insert(key.clone(), Value::Null);
    }
    let before = old.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for condition in out.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(Value::Object(then)) = before.iter().find(|b| b.get("type") == condition.get("type")) else {
            continue;
        };
        if let Value::Object(now) = condition {
            for key in then.keys() {
                now.entry(key).or_insert(Value::Null);
            }
        }
    }
    let ip = |v: &Value| v.get("ip").cloned();
    let list = |map: &Map<String, Value>| map.get("podIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let (before, after) = (list(&old), list(&new));
    if let Some(Value::Array(ips)) = out.get_mut("podIPs") {
        for gone in before.iter().filter(|b| after.iter().all(|a| ip(a) != ip(b))) {
            ips.push(json!({"$patch": "delete", "ip": ip(gone)}));
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sent() {
        let parse = |v: Value| serde_json::from_value::<PodStatus>(v).unwrap();
        let old =
            parse(json!({"phase": "Pending", "reason": "x", "hostIP": "1.1.1.1", "podIPs": [{"ip": "10.0.0.1"}]}));
        let new = parse(json!({"phase": "Running", "hostIP": "1.1.1.1", "podIPs": [{"ip": "10.0.0.2"}]}));
        let expect = json!({"phase": "Running", "reason": null,
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}]});
        assert_eq!(change(Some(&old), &new), expect);
        assert_eq!(change(Some(&new), &new), json!({}));
        assert_eq!(change(None, &new).as_object().unwrap().len(), 3);
    }

    #[test]
    fn a_condition_that_holds_loses_its_reason() {
        let parse = |v: Value| serde_json::from_value::<PodStatus>(json!({"conditions": v})).unwrap();
        let old = parse(json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}]));
        let new = parse(json!([{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]));
        let expect = json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null},
            {"type": "Initialized", "status": "True"}]});
        assert_eq!(change(Some(&old), &new), expect);
    }
}
