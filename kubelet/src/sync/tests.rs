//! The planner against tables and against random worlds. A small simulated runtime carries actions out, so that whole lives of
//! pods are checked, not only single answers.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::backoff::Backoff;
use super::observed::{Container, Exit, Observed, Probed, Sandbox, State, Volumes};
use super::{Action, Kill, plan};
use crate::pod::{LocalPod, Source};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn pod(policy: &str, inits: serde_json::Value) -> LocalPod {
    let object = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u1"},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": [
            {"name": "a", "image": "img"}, {"name": "b", "image": "img"}]}
    });
    LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
}

fn ready(pod: &LocalPod) -> Observed {
    let mut observed = Observed { volumes: Volumes::Mounted, ..Observed::default() };
    apply(pod, &mut observed, &Action::CreateSandbox { attempt: 0 }, at(0));
    observed
}

fn exited(code: i32, finished: i64) -> State {
    State::Exited(Exit {
        code,
        started_at: Some(at(0)),
        finished_at: at(finished),
        reason: String::new(),
        message: String::new(),
    })
}

/// The world's answer to one action, at once.
fn apply(pod: &LocalPod, observed: &mut Observed, action: &Action, now: Timestamp) {
    match action {
        Action::PrepareVolumes => observed.volumes = Volumes::Mounted,
        Action::CreateSandbox { attempt } => observed.sandboxes.insert(
            0,
            Sandbox {
                id: format!("s{attempt}"),
                attempt: *attempt,
                ready: true,
                ips: vec!["10.0.0.2".into()],
                created_at: now,
            },
        ),
        Action::StopSandbox { id } => {
            observed.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false)
        }
        Action::StartContainer { name, attempt } => {
            let member = pod.member(name).unwrap();
            let restart = Backoff::next(observed.restarts.get(name).copied(), now);
            if observed.newest(name).is_some() {
                observed.restarts.insert(name.clone(), restart);
            }
            observed.containers.insert(
                0,
                Container {
                    id: format!("{name}-{attempt}-{}", observed.containers.len()),
                    name: name.clone(),
                    sandbox_id: observed.sandboxes[0].id.clone(),
                    attempt: *attempt,
                    state: State::Running { since: now },
                    created_at: now,
                    image: "img".into(),
                    image_ref: "sha256:1".into(),
                    hash: member.hash.clone(),
                    resources_hash: member.resources_hash.clone(),
                    user: None,
                },
            );
        }
        Action::KillContainer { id, .. } => {
            for container in observed.containers.iter_mut().filter(|c| c.id == *id) {
                container.state = State::Exited(Exit {
                    code: 137,
                    started_at: None,
                    finished_at: now,
                    reason: "Error".into(),
                    message: String::new(),
                });
            }
        }
        Action::RemoveContainer { id } => observed.containers.retain(|c| c.id != *id),
        Action::Fail(failed) => observed.failed = Some(failed.clone()),
        Action::Release => observed.released = true,
        Action::PreStop { id, .. } => drop(observed.pre_stopped.insert(id.clone())),
        Action::CancelStarts | Action::Finish | Action::Wake { .. } => {}
    }
}

fn starts(actions: &[Action]) -> Vec<String> {
    let name = |a: &Action| match a {
        Action::StartContainer { name, attempt } => Some(format!("{name}#{attempt}")),
        _ => None,
    };
    actions.iter().filter_map(name).collect()
}

fn set(observed: &mut Observed, name: &str, state: State) {
    observed.containers.iter_mut().find(|c| c.name == name).unwrap().state = state;
}

/// Plans and applies until nothing but waiting is left.
fn settle(pod: &LocalPod, observed: &mut Observed, now: Timestamp) -> Vec<Action> {
    let mut all = Vec::new();
    for _ in 0..50 {
        let actions = plan(pod, observed, now);
        let real: Vec<Action> = actions.into_iter().filter(|a| !matches!(a, Action::Wake { .. })).collect();
        if real.is_empty() {
            return all;
        }
        real.iter().for_each(|a| apply(pod, observed, a, now));
        let finished = real.contains(&Action::Finish);
        all.extend(real);
        if finished {
            return all;
        }
    }
    panic!("never settles: {all:?}");
}

#[test]
fn a_new_pod_comes_up_in_order() {
    let pod = pod("Always", json!([]));
    let mut observed = Observed::default();
    let actions = settle(&pod, &mut observed, at(0));
    let expect = [
        Action::PrepareVolumes,
        Action::CreateSandbox { attempt: 0 },
        Action::StartContainer { name: "a".into(), attempt: 0 },
        Action::StartContainer { name: "b".into(), attempt: 0 },
    ];
    assert_eq!(actions, expect);
}

#[test]
fn init_containers_run_one_after_another_and_sidecars_stay() {
    let inits = json!([{"name": "i", "image": "img"},
        {"name": "side", "image": "img", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["true"]}}},
        {"name": "j", "image": "img"}]);
    let pod = pod("Always", inits);
    let mut observed = ready(&pod);
    assert_eq!(starts(&settle(&pod, &mut observed, at(1))), ["i#0"]);
    set(&mut observed, "i", exited(0, 2));
    assert_eq!(starts(&settle(&pod, &mut observed, at(2))), ["side#0"]);
    let side = observed.newest("side").unwrap().id.clone();
    observed.probes.insert(side, Probed { started: true, ready: true, unhealthy: None });
    assert_eq!(starts(&settle(&pod, &mut observed, at(3))), ["j#0"]);
    set(&mut observed, "j", exited(0, 4));
    assert_eq!(starts(&settle(&pod, &mut observed, at(4))), ["a#0", "b#0"]);
    // An ended init container that has been collected is not run again; a dead sidecar is.
    observed.containers.retain(|c| c.name != "i" && c.name != "j");
    set(&mut observed, "side", exited(1, 5));
    assert_eq!(starts(&settle(&pod, &mut observed, at(6))), ["side#1"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod("Never", json!([{"name": "i", "image": "img"}]));
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    set(&mut observed, "i", exited(3, 2));
    assert_eq!(settle(&pod, &mut observed, at(2)), [Action::StopSandbox { id: "s0".into() }, Action::Release]);
}

#[test]
fn restarts_follow_the_policy() {
    for (policy, code, expect) in [
        ("Always", 0, vec!["a#1"]),
        ("Always", 1, vec!["a#1"]),
        ("OnFailure", 0, vec![]),
        ("OnFailure", 1, vec!["a#1"]),
    ] {
        let pod = pod(policy, json!([]));
        let mut observed = ready(&pod);
        settle(&pod, &mut observed, at(1));
        set(&mut observed, "a", exited(code, 2));
        assert_eq!(starts(&settle(&pod, &mut observed, at(2))), expect, "{policy} {code}");
    }
}

#[test]
fn a_crashing_container_waits_longer_each_time() {
    let pod = pod("Always", json!([]));
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    let mut now = 2;
    let mut pauses = Vec::new();
    for _ in 0..4 {
        set(&mut observed, "a", exited(1, now));
        let wake = plan(&pod, &observed, at(now)).into_iter().find_map(|a| match a {
            Action::Wake { at } => Some(at),
            _ => None,
        });
        let until = wake.unwrap_or(at(now));
        pauses.push(until.duration_since(at(now)).as_secs());
        now = until.as_second() - at(0).as_second();
        assert_eq!(starts(&settle(&pod, &mut observed, at(now))).len(), 1);
        now += 1;
    }
    assert_eq!(pauses, [0, 10, 20, 40]);
}

#[test]
fn a_dead_sandbox_is_made_anew_and_its_containers_with_it() {
    let pod = pod("Always", json!([]));
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    observed.sandboxes[0].ready = false;
    let actions = settle(&pod, &mut observed, at(20));
    assert!(actions.iter().any(|a| matches!(a, Action::KillContainer { why: Kill::SandboxLost, .. })));
    assert!(actions.contains(&Action::CreateSandbox { attempt: 1 }));
    assert_eq!(starts(&actions), ["a#1", "b#1"]);
}

#[test]
fn an_unhealthy_container_is_killed_with_the_probes_grace() {
    let pod = pod("Always", json!([]));
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    let id = observed.newest("a").unwrap().id.clone();
    observed.probes.insert(id.clone(), Probed { started: true, ready: false, unhealthy: Some(("no".into(), Some(7))) });
    let actions = plan(&pod, &observed, at(2));
    let why = Kill::Unhealthy("no".into());
    assert_eq!(actions, [Action::KillContainer { id, name: "a".into(), grace_seconds: 7, why }]);
}

#[test]
fn deletion_stops_sidecars_last_and_a_shorter_grace_kills_again() {
    let inits = json!([{"name": "s1", "image": "img", "restartPolicy": "Always"},
        {"name": "s2", "image": "img", "restartPolicy": "Always"}]);
    let mut pod = pod("Always", inits);
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    pod.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(40)));
    pod.object.metadata.deletion_grace_period_seconds = Some(30);
    let actions = plan(&pod, &observed, at(10));
    assert_eq!(actions.len(), 2, "{actions:?}");
    for container in observed.containers.clone() {
        observed.busy.killing.insert(container.id, at(40));
    }
    assert_eq!(plan(&pod, &observed, at(10)), []);
    pod.object.metadata.deletion_grace_period_seconds = Some(0);
    let again = plan(&pod, &observed, at(11));
    assert!(matches!(&again[0], Action::KillContainer { grace_seconds: 2, .. }), "{again:?}");
    observed.busy.killing.clear();
    let names: Vec<String> = settle(&pod, &mut observed, at(12))
        .iter()
        .map(|a| match a {
            Action::KillContainer { name, .. } => name.clone(),
            other => format!("{other:?}").split([' ', '{']).next().unwrap().to_owned(),
        })
        .collect();
    assert_eq!(names, ["b", "a", "s2", "s1", "StopSandbox", "Release", "Finish"]);
}

/// Ends the pod at second 0, each container deaf for as long as it gets; returns when each was told to end, with its grace.
fn deaf_end(grace: i64, quick: &[&str]) -> Vec<(String, i64, i64)> {
    let inits = json!([{"name": "s1", "image": "img", "restartPolicy": "Always"},
        {"name": "s2", "image": "img", "restartPolicy": "Always"}]);
    let mut pod = pod("Always", inits);
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(-10));
    pod.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(grace)));
    pod.object.metadata.deletion_grace_period_seconds = Some(grace);
    observed.ending_since = Some(at(0));
    let mut told = Vec::new();
    for second in 0..100 {
        let now = at(second);
        let over: Vec<String> =
            observed.busy.killing.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        for id in over {
            observed.busy.killing.remove(&id);
            observed.containers.iter_mut().filter(|c| c.id == id).for_each(|c| c.state = exited(137, second));
        }
        for action in plan(&pod, &observed, now) {
            if let Action::KillContainer { id, name, grace_seconds, .. } = action {
                let takes = if quick.contains(&name.as_str()) { 0 } else { grace_seconds };
                observed.busy.killing.insert(id, at(second + takes));
                told.push((name, second, grace_seconds));
            }
        }
    }
    assert!(observed.containers.iter().all(|c| !c.is_alive()));
    told
}

#[test]
fn all_containers_of_a_pod_share_one_grace_period() {
    let check = |grace, quick: &[&str], expect: &[(&str, i64, i64)]| {
        let told = deaf_end(grace, quick);
        let told: Vec<(&str, i64, i64)> = told.iter().map(|(name, at, grace)| (name.as_str(), *at, *grace)).collect();
        assert_eq!(told, expect, "{quick:?}");
    };
    check(10, &[], &[("b", 0, 10), ("a", 0, 10), ("s2", 10, 2), ("s1", 12, 2)]);
    check(10, &["a", "b"], &[("b", 0, 10), ("a", 0, 10), ("s2", 1, 9), ("s1", 10, 2)]);
    check(10, &["a", "b", "s2"], &[("b", 0, 10), ("a", 0, 10), ("s2", 1, 9), ("s1", 2, 8)]);
}

#[test]
fn hooks_of_sidecars_run_when_the_pod_begins_to_end_and_once() {
    let hook = json!({"preStop": {"exec": {"command": ["drain"]}}});
    let inits = json!([{"name": "s1", "image": "img", "restartPolicy": "Always", "lifecycle": hook}]);
    let mut pod = pod("Always", inits);
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(-10));
    pod.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(10)));
    pod.object.metadata.deletion_grace_period_seconds = Some(10);
    observed.ending_since = Some(at(0));
    let names = |actions: &[Action]| -> Vec<String> {
        let name = |a: &Action| match a {
            Action::KillContainer { name, .. } => name.clone(),
            other => format!("{other:?}").split([' ', '{']).next().unwrap().to_owned(),
        };
        actions.iter().map(name).collect()
    };
    let actions = plan(&pod, &observed, at(0));
    assert_eq!(names(&actions), ["b", "a", "PreStop"]);
    let side = observed.newest("s1").unwrap().id.clone();
    observed.busy.pre_stopping.insert(side.clone());
    actions.iter().for_each(|a| apply(&pod, &mut observed, a, at(1)));
    assert_eq!(plan(&pod, &observed, at(1)), [], "the hook is waited for");
    observed.busy.pre_stopping.remove(&side);
    assert_eq!(names(&plan(&pod, &observed, at(4))), ["s1"]);
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_up() {
    let pod = pod("Always", json!([]));
    let mut observed = ready(&pod);
    settle(&pod, &mut observed, at(1));
    set(&mut observed, "a", exited(1, 2));
    settle(&pod, &mut observed, at(2));
    set(&mut observed, "a", exited(1, 3));
    assert!(starts(&plan(&pod, &observed, at(4))).is_empty(), "it backs off");
    assert_eq!(starts(&plan(&pod, &observed, at(-86_400))), ["a#2"], "a day back");
    assert_eq!(starts(&plan(&pod, &observed, at(86_400))), ["a#2"], "a day ahead");
}

#[test]
fn the_deadline_ends_the_pod() {
    let mut pod = pod("Always", json!([]));
    pod.spec.active_deadline_seconds = Some(10);
    let mut observed = ready(&pod);
    observed.start_time = Some(at(0));
    assert!(plan(&pod, &observed, at(1)).contains(&Action::Wake { at: at(10) }));
    assert!(matches!(&plan(&pod, &observed, at(10))[..], [Action::Fail(f)] if f.reason == "DeadlineExceeded"));
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Created),
        Just(State::Unknown),
        Just(State::Running { since: at(0) }),
        (0..3i32, 0..100i64).prop_map(|(code, finished)| exited(code, finished)),
    ]
}

prop_compose! {
    fn world()(policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
               with_init in any::<bool>(), deleted in any::<bool>(), gone in any::<bool>(), sandbox in 0..3u8,
               states in proptest::collection::vec((0..4usize, state(), 0..2usize), 0..8))
        -> (LocalPod, Observed) {
        let inits = if with_init {
            json!([{"name": "i", "image": "img"}, {"name": "s", "image": "img", "restartPolicy": "Always"}])
        } else { json!([]) };
        let mut pod = pod(policy, inits);
        if deleted {
            pod.object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(50)));
            pod.object.metadata.deletion_grace_period_seconds = Some(5);
        }
        let mut observed = Observed { volumes: Volumes::Mounted, gone, ..Observed::default() };
        for attempt in 0..u32::from(sandbox) {
            apply(&pod, &mut observed, &Action::CreateSandbox { attempt }, at(0));
        }
        for (index, (name, state, lost)) in states.into_iter().enumerate() {
            let name = ["a", "b", "i", "s"][name];
            if pod.member(name).is_none() || observed.sandboxes.is_empty() { continue; }
            let place = lost.min(observed.sandboxes.len() - 1);
            let hash = pod.member(name).unwrap().hash.clone();
            observed.containers.insert(0, Container {
                id: format!("c{index}"), name: name.into(), sandbox_id: observed.sandboxes[place].id.clone(),
                attempt: u32::try_from(index).unwrap(), state, created_at: at(i64::try_from(index).unwrap()),
                image: "img".into(), image_ref: String::new(), hash, resources_hash: String::new(), user: None });
        }
        (pod, observed)
    }
}

/// What a kubelet that has forgotten everything finds: the runtime's containers, and what the API has told.
fn forget(observed: &Observed) -> Observed {
    Observed {
        sandboxes: observed.sandboxes.clone(),
        containers: observed.containers.clone(),
        gone: observed.gone,
        failed: observed.failed.clone(),
        ..Observed::default()
    }
}

/// What counts in the end: who runs, whether the network stands, whether all is over.
fn outcome(pod: &LocalPod, observed: &Observed) -> (Vec<String>, usize, Option<super::Ending>) {
    let mut running: Vec<String> =
        observed.containers.iter().filter(|c| c.is_running()).map(|c| c.name.clone()).collect();
    running.sort();
    (running, observed.sandboxes.iter().filter(|s| s.ready).count(), super::ending(pod, observed))
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(i64::MIN), Just(-1), Just(0), Just(1), Just(i64::MAX), any::<i64>()]
}

fn moment() -> impl Strategy<Value = Timestamp> {
    let seconds = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
    prop_oneof![
        Just(Timestamp::MIN),
        Just(Timestamp::MAX),
        Just(at(0)),
        seconds.prop_map(|s| Timestamp::from_second(s).unwrap())
    ]
}

proptest! {
    /// The kubelet may forget everything at any moment and still comes right.
    #[test]
    fn who_forgets_everything_at_any_moment_comes_right(
        (pod, world) in world(), forgets in proptest::collection::vec(any::<bool>(), 60)
    ) {
        let mut straight = world.clone();
        settle(&pod, &mut straight, at(1000));
        let mut forgetful = forget(&world);
        let mut steps = 0;
        for forgets in forgets.into_iter().chain(std::iter::repeat_n(false, 60)) {
            if forgets {
                forgetful = forget(&forgetful);
            }
            let actions = plan(&pod, &forgetful, at(1000));
            let real: Vec<_> = actions.into_iter().filter(|a| !matches!(a, Action::Wake { .. })).collect();
            // A kubelet that is not interrupted does all that it planned, one that is does the first of it.
            real.iter().take(if forgets { 1 } else { usize::MAX }).for_each(|a| apply(&pod, &mut forgetful, a, at(1000)));
            steps += 1;
            if real.is_empty() && steps > 60 || real.contains(&Action::Finish) {
                break;
            }
        }
        prop_assert_eq!(outcome(&pod, &straight), outcome(&pod, &forgetful));
    }

    /// No number of a pod or of the runtime, and no time, panics the planner or the status.
    #[test]
    fn no_number_and_no_time_is_too_wild(
        (mut pod, mut observed) in world(), grace in number(), own in number(), deadline in number(),
        started in moment(), now in moment(), ended in moment(), attempt in any::<u32>(), code in any::<i32>()
    ) {
        pod.spec.termination_grace_period_seconds = Some(own);
        pod.spec.active_deadline_seconds = Some(deadline);
        pod.object.metadata.deletion_grace_period_seconds = Some(grace);
        observed.start_time = Some(started);
        observed.ending_since = Some(ended);
        for container in &mut observed.containers {
            container.attempt = attempt;
            container.created_at = started;
            if let State::Exited(exit) = &mut container.state {
                exit.finished_at = ended;
                exit.code = code;
            }
            let unhealthy = Some(("liveness probe".to_owned(), Some(own)));
            observed.probes.insert(container.id.clone(), Probed { started: true, ready: true, unhealthy });
        }
        for sandbox in &mut observed.sandboxes {
            sandbox.attempt = attempt;
        }
        observed.restarts.insert("a".into(), Backoff { delay: super::backoff::LAST, since: started });
        for action in plan(&pod, &observed, now) {
            if let Action::KillContainer { grace_seconds, .. } = action {
                prop_assert!((2..=i64::from(i32::MAX)).contains(&grace_seconds));
            }
        }
        let facts = crate::status::NodeFacts::default();
        let status = crate::status::compute(&pod, &observed, &facts, None, now);
        prop_assert!(status.phase.is_some());
    }

    /// Whatever the world looks like, planning and doing reaches a rest, starts no name twice at once and, for a pod that
    /// ends, leaves nothing alive.
    #[test]
    fn every_world_settles((pod, mut observed) in world()) {
        let ending = super::ending(&pod, &observed);
        let actions = settle(&pod, &mut observed, at(1000));
        for member in &pod.members {
            let alive = observed.containers.iter().filter(|c| c.name == member.name() && c.is_running()).count();
            prop_assert!(alive <= 1 || ending.is_none(), "{} of {}", alive, member.name());
        }
        if ending.is_some() {
            prop_assert!(starts(&actions).is_empty());
            prop_assert!(observed.containers.iter().all(|c| !c.is_alive()));
            prop_assert!(observed.sandboxes.iter().all(|s| !s.ready));
            prop_assert_eq!(actions.contains(&Action::Finish), ending == Some(super::Ending::Removed));
        }
    }

    /// While something is under way it is not asked for again, and at most one start goes out per answer.
    #[test]
    fn nothing_is_asked_for_twice((pod, mut observed) in world()) {
        let actions = plan(&pod, &observed, at(1000));
        prop_assert!(starts(&actions).len() <= 1);
        for action in &actions {
            match action {
                Action::CreateSandbox { .. } | Action::StopSandbox { .. } => observed.busy.sandbox = true,
                Action::StartContainer { name, .. } => { observed.busy.starting.insert(name.clone()); }
                Action::KillContainer { id, .. } | Action::RemoveContainer { id } => {
                    observed.busy.killing.insert(id.clone(), at(1000));
                }
                Action::Release | Action::Finish => observed.busy.releasing = true,
                _ => {}
            }
        }
        let again = plan(&pod, &observed, at(1000));
        let real: Vec<_> = again.iter().filter(|a| !matches!(a, Action::Wake { .. } | Action::CancelStarts | Action::Fail(_))).collect();
        prop_assert!(real.is_empty(), "{:?} then {:?}", actions, again);
    }
}
