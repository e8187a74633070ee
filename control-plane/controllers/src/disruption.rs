//! PodDisruptionBudgets: how many of the pods they cover may go now. The API server's `/eviction` spends what is counted here.
//!
//! Observed are the budget, the pods it selects and the workloads these belong to. An eviction notes its pod in
//! `status.disruptedPods`; the note counts as a disruption until the pod is seen to go, or until it was not deleted for so
//! long that nobody will do it any more.

mod expected;

use std::collections::BTreeMap;
use std::sync::Arc;

use control_plane_api::selector::Selector;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::action::{Action, Part, Plan};
use crate::cache::Key;
use crate::clock::after;
use crate::kind::Kind;
use crate::replica_set::{nulled, ready_since};
use crate::runner::Controller;
use crate::world::{Changed, World};
use expected::{Expected, Unknown};

/// An eviction that was allowed and not carried out in this time is taken back.
const EVICTION_MAX: SignedDuration = SignedDuration::from_mins(2);
const CONDITION: &str = "DisruptionAllowed";

pub(crate) struct Disruptions;

impl Controller for Disruptions {
    const NAME: &'static str = "controllermanager";

    fn keys(&self, world: &World, changed: &Changed) -> Vec<Key> {
        let all_in = |namespace: Option<String>| {
            let budgets = world.pod_disruption_budgets.in_namespace(&namespace.unwrap_or_default());
            budgets.iter().map(|budget| Key::of(budget.as_ref())).collect()
        };
        match changed {
            Changed::PodDisruptionBudget(change) => {
                change.latest().map(|budget| Key::of(budget.as_ref())).into_iter().collect()
            }
            Changed::Pod(change) => change.states().flat_map(|pod| budgets_of(world, pod)).collect(),
            // What a workload wants decides what its pods can spare; namespaces hold few budgets.
            Changed::Deployment(change) => all_in(change.latest().and_then(|one| one.namespace())),
            Changed::ReplicaSet(change) => all_in(change.latest().and_then(|one| one.namespace())),
            _ => Vec::new(),
        }
    }

    fn plan(&self, world: &World, key: &Key, now: Timestamp) -> Plan {
        let Some(budget) = world.pod_disruption_budgets.get(key) else { return Plan::default() };
        let mut pods = world.pods.in_namespace(&key.namespace);
        pods.retain(|pod| covers(&budget, pod));
        plan(&budget, &pods, expected::count(&budget, &pods, world), now)
    }
}

fn budgets_of(world: &World, pod: &Pod) -> Vec<Key> {
    let budgets = world.pod_disruption_budgets.in_namespace(&pod.namespace().unwrap_or_default());
    budgets.iter().filter(|budget| covers(budget, pod)).map(|budget| Key::of(budget.as_ref())).collect()
}

/// policy/v1: an empty selector covers every pod of the namespace, a missing one none.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let Some(selector) = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    let Ok(value) = serde_json::to_value(selector) else { return false };
    Selector::from_value(&value).is_ok_and(|one| one.matches(|key| pod.labels().get(key).map(String::as_str)))
}

/// Pure: the status that `budget` should have, given the pods that it covers.
fn plan(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: Result<Expected, Unknown>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if budget.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let disrupted = disrupted(budget, pods, now, &mut plan);
    let status = match expected {
        Ok(expected) => status(budget, pods, &expected, disrupted, now),
        Err(unknown) => {
            let note = unknown.to_string();
            plan.push(event(budget, true, "CalculateExpectedPodCountFailed", note.clone()));
            let old = budget.status.clone().unwrap_or_default();
            // Nothing may go while nobody can say how much is left.
            let condition = condition(budget, "False", "SyncFailed", note, now);
            let conditions = Some(vec![condition]);
            PodDisruptionBudgetStatus {
                disruptions_allowed: Some(0),
                disrupted_pods: Some(disrupted),
                conditions,
                ..old
            }
        }
    };
    if budget.status.as_ref().map(normal) == Some(normal(&status)) {
        // Said once, when it became so.
        plan.actions.clear();
        return plan;
    }
    if pods.is_empty() {
        plan.push(event(budget, false, "NoPods", "No matching pods found".into()));
    }
    plan.push(patch(budget, &status));
    plan
}

/// The evictions that are allowed and not done yet.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    let mut still = BTreeMap::new();
    for (name, since) in noted.into_iter().flatten() {
        let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        let is_awaited = pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none());
        let until = after(since.0, EVICTION_MAX);
        if is_awaited && until > now {
            plan.look_again_at(until);
            still.insert(name.clone(), since.clone());
        } else if is_awaited {
            let note =
                format!("Pod {name} was evicted, but nobody deleted it within {} minutes", EVICTION_MAX.as_mins());
            plan.push(event(budget, true, "NotDeleted", note));
        }
    }
    still
}

fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: &Expected,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let is_healthy = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(&pod.name_any())
            && ready_since(pod).is_some()
    };
    let healthy = i32::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected.pods > 0 { healthy.saturating_sub(expected.healthy).max(0) } else { 0 };
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.pods),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(vec![condition(budget, status, reason, String::new(), now)]),
    }
}

/// The one condition; its time is that of the last change of its status.
fn condition(budget: &PodDisruptionBudget, status: &str, reason: &str, message: String, now: Timestamp) -> Condition {
    let old = budget.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = old.into_iter().find(|one| one.type_ == CONDITION && one.status == status);
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Condition {
        type_: CONDITION.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: same.map_or(Time(now), |one| one.last_transition_time.clone()),
        observed_generation: budget.metadata.generation,
    }
}

/// For comparison: no evictions is as good as an empty list of them.
fn normal(status: &PodDisruptionBudgetStatus) -> PodDisruptionBudgetStatus {
    let disrupted_pods = status.disrupted_pods.clone().filter(|pods| !pods.is_empty());
    PodDisruptionBudgetStatus { disrupted_pods, ..status.clone() }
}

fn patch(budget: &PodDisruptionBudget, status: &PodDisruptionBudgetStatus) -> Action {
    let mut body = nulled(&normal(status), budget.status.as_ref());
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    if let Some(pods) = body.get_mut("disruptedPods").and_then(Value::as_object_mut) {
        for name in noted.into_iter().flat_map(BTreeMap::keys) {
            pods.entry(name.clone()).or_insert(Value::Null);
        }
    }
    // An eviction that we have not seen must not be overwritten: it would be allowed twice.
    let metadata = json!({"uid": budget.uid(), "resourceVersion": budget.resource_version()});
    Action::Patch {
        kind: Kind::PodDisruptionBudget,
        namespace: budget.namespace().unwrap_or_default(),
        name: budget.name_any(),
        part: Part::Status,
        patch: json!({"metadata": metadata, "status": body}),
    }
}

fn event(budget: &PodDisruptionBudget, is_warning: bool, reason: &'static str, note: String) -> Action {
    Action::Event { regarding: Box::new(budget.object_ref(&())), is_warning, reason, note }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let metadata = json!({"namespace": "d", "name": "b", "uid": "b1", "generation": 2, "resourceVersion": "9"});
        let mut object = json!({"metadata": metadata, "spec": spec});
        if !status.is_null() {
            object["status"] = status;
        }
        serde_json::from_value(object).unwrap()
    }

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name, "labels": {"app": "web"}},
            "status": {"conditions": [{"type": "Ready", "status": status}]}}))
            .unwrap(),
        )
    }

    fn patched(plan: &Plan) -> Value {
        let Some(Action::Patch { patch, .. }) = plan.actions.last() else { panic!("{plan:?}") };
        assert_eq!(patch["metadata"]["resourceVersion"], "9", "the precondition");
        patch["status"].clone()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn counts_what_may_go() {
        let check = |ready: &[bool], expected: Expected, allowed: i32, reason: &str| {
            let pods: Vec<_> =
                ready.iter().enumerate().map(|(index, ready)| pod(&format!("p{index}"), *ready)).collect();
            let status = patched(&plan(&budget(json!({}), Value::Null), &pods, Ok(expected), at(5)));
            assert_eq!(status["disruptionsAllowed"], allowed, "{ready:?}");
            assert_eq!(status["conditions"][0]["reason"], reason);
            assert_eq!(status["observedGeneration"], 2);
        };
        check(&[true, true, true], Expected { pods: 3, healthy: 2 }, 1, "SufficientPods");
        check(&[true, true, false], Expected { pods: 3, healthy: 2 }, 0, "InsufficientPods");
        check(&[true, false, false], Expected { pods: 3, healthy: 2 }, 0, "InsufficientPods");
        check(&[], Expected { pods: 0, healthy: 0 }, 0, "InsufficientPods");
    }

    #[test]
    fn an_eviction_counts_until_its_pod_goes() {
        let status = json!({"disruptionsAllowed": 0, "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3,
            "disruptedPods": {"p0": "1970-01-01T00:01:40Z", "gone": "1970-01-01T00:01:40Z"}});
        let budget = budget(json!({}), status);
        let pods = [pod("p0", true), pod("p1", true), pod("p2", true)];
        let expected = || Ok(Expected { pods: 3, healthy: 2 });
        let early = plan(&budget, &pods, expected(), at(130));
        assert_eq!(early.again_at, Some(at(220)));
        let status = patched(&early);
        assert_eq!((&status["disruptionsAllowed"], &status["currentHealthy"]), (&json!(0), &json!(2)));
        assert_eq!(status["disruptedPods"], json!({"p0": "1970-01-01T00:01:40Z", "gone": null}));
        let late = plan(&budget, &pods, expected(), at(220));
        assert!(matches!(&late.actions[0], Action::Event { reason: "NotDeleted", .. }), "{late:?}");
        let status = patched(&late);
        assert_eq!((&status["disruptionsAllowed"], &status["disruptedPods"]), (&json!(1), &Value::Null));
    }

    #[test]
    fn a_settled_budget_plans_nothing() {
        let pods = [pod("p0", true), pod("p1", true)];
        let fresh = budget(json!({}), Value::Null);
        let expected = || Ok(Expected { pods: 2, healthy: 1 });
        let status = patched(&plan(&fresh, &pods, expected(), at(5)));
        assert_eq!(plan(&budget(json!({}), status), &pods, expected(), at(9)), Plan::default());
    }

    #[test]
    fn nothing_goes_when_the_count_is_unknown() {
        let unknown = || Err(Unknown::NoController { pod: "p0".into() });
        let status = json!({"disruptionsAllowed": 2, "currentHealthy": 3, "desiredHealthy": 1, "expectedPods": 3});
        let plan = plan(&budget(json!({}), status), &[pod("p0", true)], unknown(), at(5));
        let status = patched(&plan);
        assert_eq!((&status["disruptionsAllowed"], &status["currentHealthy"]), (&json!(0), &json!(3)));
        assert_eq!(status["conditions"][0]["reason"], "SyncFailed");
        assert!(matches!(&plan.actions[0], Action::Event { reason: "CalculateExpectedPodCountFailed", .. }));
    }
}
