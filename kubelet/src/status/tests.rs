//! Statuses by table: facts in, what `kubectl get pod` shows out.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::{NodeFacts, compute};
use crate::pod::{LocalPod, Source};
use crate::sync::backoff::Backoff;
use crate::sync::observed::{Container, Exit, Failed, Failure, Observed, Sandbox, State};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn pod(policy: &str, init: bool) -> LocalPod {
    let inits = if init { json!([{"name": "i", "image": "x"}]) } else { json!([]) };
    let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u1"},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": [{"name": "a", "image": "x",
            "readinessProbe": {"exec": {"command": ["true"]}}}]}});
    LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
}

fn observed(states: &[(&str, State)]) -> Observed {
    let sandbox = Sandbox { id: "s0".into(), attempt: 0, ready: true, ips: vec!["10.0.0.2".into()], created_at: at(0) };
    let containers = states.iter().enumerate().rev().map(|(i, (name, state))| Container {
        id: format!("c{i}"),
        name: (*name).into(),
        sandbox_id: "s0".into(),
        attempt: u32::try_from(states[..i].iter().filter(|s| s.0 == *name).count()).unwrap(),
        state: state.clone(),
        created_at: at(0),
        image: "x".into(),
        image_ref: "sha256:1".into(),
        hash: String::new(),
        resources_hash: String::new(),
        user: None,
    });
    Observed {
        sandboxes: vec![sandbox],
        containers: containers.collect(),
        start_time: Some(at(0)),
        ..Observed::default()
    }
}

fn exited(code: i32) -> State {
    let reason = if code == 0 { "Completed" } else { "Error" };
    State::Exited(Exit {
        code,
        started_at: Some(at(0)),
        finished_at: at(5),
        reason: reason.into(),
        message: String::new(),
    })
}

const RUNNING: fn() -> State = || State::Running { since: at(1) };

/// `phase ready-of-all reason` as a table row.
fn row(status: &PodStatus) -> String {
    let phase = status.phase.as_deref().unwrap();
    let list = status.container_statuses.as_ref().unwrap();
    let ready = list.iter().filter(|s| s.ready).count();
    let state = list[0].state.as_ref().unwrap();
    let why = match (&state.waiting, &state.terminated) {
        (Some(w), _) => w.reason.clone().unwrap(),
        (_, Some(t)) => t.reason.clone().unwrap(),
        _ => "running".into(),
    };
    let condition =
        |kind: &str| status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap().status.clone();
    format!("{phase} {ready} {why} {} {}", condition("Initialized"), condition("Ready"))
}

fn check(pod: &LocalPod, observed: &Observed, expect: &str) -> PodStatus {
    let node = NodeFacts { ips: vec!["192.0.2.1".into()], runtime_name: "sampan".into() };
    let status = compute(pod, observed, &node, pod.status(), at(6));
    assert_eq!(row(&status), expect);
    status
}

#[test]
fn phases() {
    check(&pod("Always", false), &observed(&[]), "Pending 0 ContainerCreating True False");
    check(&pod("Always", true), &observed(&[]), "Pending 0 PodInitializing False False");
    check(&pod("Always", true), &observed(&[("i", RUNNING())]), "Pending 0 PodInitializing False False");
    check(&pod("Always", true), &observed(&[("i", exited(0)), ("a", RUNNING())]), "Running 0 running True False");
    check(&pod("Never", true), &observed(&[("i", exited(1))]), "Failed 0 PodInitializing False False");
    check(&pod("Never", false), &observed(&[("a", exited(0))]), "Succeeded 0 Completed True False");
    check(&pod("Never", false), &observed(&[("a", exited(3))]), "Failed 0 Error True False");
    check(&pod("OnFailure", false), &observed(&[("a", exited(3))]), "Running 0 Error True False");
    check(&pod("Always", false), &observed(&[("a", exited(0))]), "Running 0 Completed True False");
}

#[test]
fn a_ready_container_and_its_ids() {
    let mut facts = observed(&[("a", exited(2)), ("a", RUNNING())]);
    let probed = crate::sync::observed::Probed { started: true, ready: true, unhealthy: None };
    facts.probes.insert("c1".into(), probed);
    let status = check(&pod("Always", false), &facts, "Running 1 running True True");
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.container_id.as_deref(), Some("sampan://c1"));
    assert_eq!(container.restart_count, 1);
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
}

#[test]
fn crash_loop_and_failed_pull_wait() {
    let mut facts = observed(&[("a", exited(1))]);
    facts.restarts.insert("a".into(), Backoff::next(None, at(0)));
    let status = check(&pod("Always", false), &facts, "Running 0 CrashLoopBackOff True False");
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        container.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref(),
        Some("back-off 10s restarting failed container=a pod=p_d(u1)")
    );
    assert!(container.last_state.as_ref().unwrap().terminated.is_some());
    let mut facts = observed(&[]);
    let failure = Failure {
        reason: "ErrImagePull".into(),
        message: "m".into(),
        retry_at: at(20),
        backoff: Backoff::next(None, at(0)),
    };
    facts.failures.insert("a".into(), failure);
    check(&pod("Always", false), &facts, "Pending 0 ErrImagePull True False");
}

#[test]
fn a_refused_pod_failed_and_stays_so() {
    let mut refused = pod("Always", false);
    let failed = Some(Failed::new("NodeAffinity", "m"));
    let facts = Observed { failed, ..Observed::default() };
    let status = check(&refused, &facts, "Failed 0 ContainerCreating True False");
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    refused.object.status = Some(status);
    check(&refused, &Observed::default(), "Failed 0 ContainerCreating True False");
}

#[test]
fn transition_times_change_only_with_the_status() {
    let mut before = pod("Always", false);
    let node = NodeFacts::default();
    let first = compute(&before, &observed(&[]), &node, None, at(1));
    before.object.status = Some(first);
    let second = compute(&before, &observed(&[("a", RUNNING())]), &node, before.status(), at(9));
    let times: Vec<_> = second.conditions.unwrap().into_iter().map(|c| c.last_transition_time.unwrap().0).collect();
    assert!(times.iter().all(|t| *t == at(1)), "{times:?}");
}

#[test]
fn a_deleted_pod_ends_by_its_exit_codes() {
    let mut pod = pod("Always", false);
    pod.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(40)));
    check(&pod, &observed(&[("a", RUNNING())]), "Running 0 running True False");
    check(&pod, &observed(&[("a", exited(137))]), "Failed 0 Error True False");
    check(&pod, &observed(&[("a", exited(0))]), "Succeeded 0 Completed True False");
}

#[test]
fn a_resize_that_is_not_acted_on_is_not_observed() {
    let mut pod = pod("Always", false);
    pod.object.metadata.generation = Some(3);
    let mut facts = observed(&[("a", RUNNING())]);
    let node = NodeFacts::default();
    let mut check = |hash: &str, generation: Option<i64>, pending: bool| {
        facts.containers[0].resources_hash = hash.into();
        let before = PodStatus { observed_generation: Some(2), ..PodStatus::default() };
        let status = compute(&pod, &facts, &node, Some(&before), at(6));
        let conditions = status.conditions.unwrap();
        assert_eq!(status.observed_generation, generation, "{hash}");
        assert!(conditions.iter().all(|c| c.observed_generation == generation));
        assert_eq!(conditions.iter().any(|c| c.type_ == super::RESIZE && c.status == "True"), pending, "{hash}");
    };
    let own = pod.members[0].resources_hash.clone();
    check(&own, Some(3), false);
    check("other", Some(2), true);
    check("", Some(3), false);
}
