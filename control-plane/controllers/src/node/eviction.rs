//! Who leaves a node with a `NoExecute` taint, and when. Pure.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::delete;
use super::taints::NO_EXECUTE;
use crate::action::{Plan, Propagation};
use crate::clock::after;

enum Stay {
    ForEver,
    For(SignedDuration),
    No,
}

pub(super) fn plan(taints: &[Taint], pods: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) {
    let evicting: Vec<&Taint> = taints.iter().filter(|taint| taint.effect == NO_EXECUTE).collect();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let leaves_at = evicting.iter().filter_map(|taint| {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            match stay(pod, taint) {
                Stay::ForEver => None,
                Stay::For(duration) => Some(after(since, duration)),
                Stay::No => Some(now),
            }
        });
        match leaves_at.min() {
            Some(time) if time <= now => plan.push(delete(pod, Propagation::Background)),
            Some(time) => plan.look_again_at(time),
            None => {}
        }
    }
}

/// The shortest stay that any matching toleration allows.
fn stay(pod: &Pod, taint: &Taint) -> Stay {
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let matching: Vec<&Toleration> = tolerations.filter(|toleration| tolerates(toleration, taint)).collect();
    if matching.is_empty() {
        return Stay::No;
    }
    let shortest = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min();
    shortest.map_or(Stay::ForEver, |seconds| Stay::For(SignedDuration::from_secs(seconds.max(0))))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty_or =
        |field: &Option<String>, wanted: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == wanted);
    let is_exists = toleration.operator.as_deref() == Some("Exists");
    let has_key = toleration.key.as_deref().is_some_and(|key| !key.is_empty());
    let value_matches = toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    empty_or(&toleration.effect, &taint.effect)
        && empty_or(&toleration.key, &taint.key)
        && (is_exists || (has_key && value_matches))
}
