//! Writes the status to the API: one PATCH at a time, only what differs, the newest state whenever the last write is through.
//! Survives an API server that is away. Conditions of others are never touched. Invariant: what is written is the difference to the
//! object as the API has it, not to what was written last: what somebody else has changed is repaired.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::Worker;
use super::done::{Done, Work};
use crate::events::Severity;
use crate::pod::Source;
use crate::status::{DISRUPTION, DISRUPTION_REASON, RESIZE};

const RETRY_FIRST: SignedDuration = SignedDuration::from_millis(250);
const RETRY_LAST: SignedDuration = SignedDuration::from_secs(15);

/// What the API has of the status, and what was asked of it last.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// As it was last seen, by the watch or in the answer to a write.
    seen: Option<PodStatus>,
    version: Option<u64>,
    /// The last write, and what the API server made of it: its own way to write a value is no difference.
    written: Option<(PodStatus, PodStatus)>,
    writing: bool,
    retry_at: Option<Timestamp>,
    pause: Option<SignedDuration>,
}

impl Sent {
    pub(super) fn from_api(pod: &Pod) -> Sent {
        let mut sent = Sent::default();
        sent.hear_api(pod);
        sent
    }

    /// The object as the API has it. An answer may overtake the watch: what is older than what is known is nothing new.
    pub(super) fn hear_api(&mut self, pod: &Pod) {
        let version = pod.metadata.resource_version.as_ref().and_then(|v| v.parse().ok());
        if self.version.zip(version).is_some_and(|(known, new): (u64, u64)| new < known) {
            return;
        }
        self.version = version;
        self.seen = Some(pod.status.as_ref().map(ours).unwrap_or_default());
    }

    pub(super) fn give_up(&mut self) {
        self.writing = false;
    }

    /// The API has this status and no write is under way.
    pub(super) fn is_settled(&self, status: &PodStatus) -> bool {
        !self.writing && self.has(status)
    }

    fn has(&self, wanted: &PodStatus) -> bool {
        let as_made = |(asked, made): &(PodStatus, PodStatus)| asked == wanted && self.seen.as_ref() == Some(made);
        self.seen.as_ref() == Some(wanted) || self.written.as_ref().is_some_and(as_made)
    }

    /// The wait after a write that has to be made again.
    fn hold_back(&mut self) -> SignedDuration {
        let pause = self.pause.map_or(RETRY_FIRST, |p| p.saturating_mul(2).min(RETRY_LAST));
        self.pause = Some(pause);
        self.retry_at = Timestamp::now().checked_add(pause).ok();
        pause
    }
}

/// Without what others write.
fn ours(status: &PodStatus) -> PodStatus {
    const OURS: [&str; 6] =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", RESIZE];
    let mut status = status.clone();
    if let Some(conditions) = &mut status.conditions {
        let is_ours = |c: &PodCondition| {
            let by_us = c.type_ == DISRUPTION && c.reason.as_deref() == Some(DISRUPTION_REASON);
            by_us || OURS.contains(&c.type_.as_str())
        };
        conditions.retain(is_ours);
        // Somebody else's order is no difference.
        conditions.sort_by_key(|c| OURS.iter().position(|name| *name == c.type_).unwrap_or(OURS.len()));
    }
    PodStatus {
        nominated_node_name: None,
        resource_claim_statuses: None,
        extended_resource_claim_status: None,
        resize: None,
        ..status
    }
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
        if self.sent.writing || self.sent.has(&self.status) {
            return;
        }
        if let Some(at) = self.sent.retry_at.filter(|at| !crate::sync::backoff::is_over(*at, now)) {
            self.wake_at(at);
            return;
        }
        if self.sent.written.as_ref().is_some_and(|(asked, _)| *asked == self.status) {
            // Somebody has changed what was written. It is repaired, but not in a race.
            self.sent.hold_back();
        }
        self.sent.writing = true;
        let body = json!({"metadata": {"uid": uid}, "status": change(self.sent.seen.as_ref(), &self.status)});
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
            Ok(answer) => {
                self.sent.hear_api(&answer);
                let made = answer.status.as_ref().map(ours).unwrap_or_default();
                if self.sent.written.as_ref().is_none_or(|(asked, _)| *asked != status) {
                    self.sent.retry_at = None;
                    self.sent.pause = None;
                }
                self.sent.written = Some((status, made));
                self.settle_pulls();
            }
            // Another pod has the name, or none: the watch will tell.
            Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => {
                let seen = self.sent.seen.get_or_insert_default().clone();
                self.sent.written = Some((status, seen));
            }
            Err(error) => {
                let pause = self.sent.hold_back();
                tracing::warn!(pod = %self.pod.key, %error, ?pause, "status not written");
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
    let after = new.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let over: Vec<Value> = before
        .iter()
        .filter_map(|c| c.get("type"))
        .filter(|kind| after.iter().all(|c| c.get("type") != Some(kind)))
        .map(|kind| json!({"$patch": "delete", "type": kind}))
        .collect();
    if let Some(Value::Array(conditions)) = out.get_mut("conditions") {
        conditions.extend(over);
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
    fn a_condition_that_is_over_is_deleted() {
        let parse = |v: Value| serde_json::from_value::<PodStatus>(json!({"conditions": v})).unwrap();
        let old = parse(json!([{"type": "Ready", "status": "True"}, {"type": RESIZE, "status": "True"}]));
        let new = parse(json!([{"type": "Ready", "status": "True"}]));
        let expect = json!({"conditions": [{"type": "Ready", "status": "True"}, {"$patch": "delete", "type": RESIZE}]});
        assert_eq!(change(Some(&old), &new), expect);
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
