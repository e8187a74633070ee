//! What the API is told of a pod: computed whole from facts, the last status only for what time has erased (transition times,
//! ends of collected containers). Pure; status_writer.rs sends it. Invariant: the phase never leaves Succeeded or Failed.

mod container;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::{Kind, LocalPod, RestartPolicy};
use crate::resources;
use crate::sync::{self, observed::Observed};

/// The condition of a pod that is ended by somebody else's need.
pub const DISRUPTION: &str = "DisruptionTarget";
/// Its reason where the kubelet ends the pod.
pub const DISRUPTION_REASON: &str = "TerminationByKubelet";

/// The condition of a pod whose running containers were made with other requests and limits than it has now.
pub const RESIZE: &str = "PodResizePending";

/// What the status needs to know of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub ips: Vec<String>,
    /// Prefix of container ids, such as `sampan`.
    pub runtime_name: String,
}

/// The status as of `now`. `previous` is the last one written or read.
#[must_use]
pub fn compute(
    pod: &LocalPod,
    observed: &Observed,
    node: &NodeFacts,
    previous: Option<&PodStatus>,
    now: Timestamp,
) -> PodStatus {
    let now = whole_seconds(now);
    let ending = sync::ending(pod, observed);
    let alive = observed.containers.iter().any(crate::sync::observed::Container::is_alive);
    let over = ending.is_some() && !alive && observed.busy.starting.is_empty();
    let of = |kinds: &'static [Kind], old: fn(&PodStatus) -> Option<&Vec<ContainerStatus>>| -> Vec<ContainerStatus> {
        let old = previous.and_then(old).map(Vec::as_slice).unwrap_or_default();
        let facts = container::Facts { pod, observed, node, over, now };
        pod.of(kinds).map(|m| facts.status(m, old.iter().find(|s| s.name == m.name()))).collect()
    };
    let inits = of(&[Kind::Init, Kind::Sidecar], |s| s.init_container_statuses.as_ref());
    let regular = of(&[Kind::Regular], |s| s.container_statuses.as_ref());
    let ephemeral = of(&[Kind::Ephemeral], |s| s.ephemeral_container_statuses.as_ref());
    let phase = match previous.and_then(|s| s.phase.as_deref()) {
        Some(old @ ("Succeeded" | "Failed")) => old.to_owned(),
        _ => phase(pod, observed, &inits, &regular, over).to_owned(),
    };
    let failed = observed.failed.as_ref();
    let ips = observed.sandbox().filter(|_| !over || pod.ended_in_api() || ending.is_some());
    let mut pod_ips: Vec<String> = ips.map(|s| s.ips.clone()).unwrap_or_default();
    if pod.host_network() && observed.sandbox().is_some() {
        pod_ips.clone_from(&node.ips);
    }
    if pod_ips.is_empty() && over {
        pod_ips = previous.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    // What is not acted on has not been observed: the generation with the new resources is not claimed.
    let generation = if is_resized(pod, observed) {
        previous.and_then(|s| s.observed_generation).filter(|seen| Some(*seen) < pod.meta().generation)
    } else {
        pod.meta().generation
    };
    let mut conditions = conditions(pod, observed, &phase, &inits, &regular, previous, now);
    for condition in &mut conditions {
        condition.observed_generation = generation;
    }
    let some = |list: Vec<ContainerStatus>| if list.is_empty() { None } else { Some(list) };
    PodStatus {
        observed_generation: generation,
        phase: Some(phase),
        reason: failed.map(|f| f.reason.clone()).or_else(|| previous.and_then(|s| s.reason.clone())),
        message: failed.map(|f| f.message.clone()).or_else(|| previous.and_then(|s| s.message.clone())),
        conditions: Some(conditions),
        host_ip: node.ips.first().cloned(),
        host_ips: Some(node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: if pod_ips.is_empty() { None } else { Some(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()) },
        start_time: observed.start_time.map(|t| Time(whole_seconds(t))),
        // The API server gave it, and takes no other afterwards.
        qos_class: previous.and_then(|s| s.qos_class.clone()).or_else(|| Some(resources::qos(&pod.spec).text().into())),
        init_container_statuses: some(inits),
        container_statuses: some(regular),
        ephemeral_container_statuses: some(ephemeral),
        ..PodStatus::default()
    }
}

/// API times have whole seconds.
#[must_use]
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

fn was_terminated(status: &ContainerStatus) -> bool {
    status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn phase(
    pod: &LocalPod,
    observed: &Observed,
    inits: &[ContainerStatus],
    regular: &[ContainerStatus],
    over: bool,
) -> &'static str {
    if observed.failed.is_some() {
        return "Failed";
    }
    let initialized = initialized(pod, inits, regular);
    if over {
        let clean = initialized && regular.iter().all(|s| exit_code(s) == Some(0));
        return if clean { "Succeeded" } else { "Failed" };
    }
    if !initialized {
        return "Pending";
    }
    let running = regular.iter().filter(|s| is_running(s)).count();
    let ended: Vec<i32> = regular.iter().filter_map(exit_code).collect();
    let stopped = ended.len() + regular.iter().filter(|s| is_waiting(s) && was_terminated(s)).count();
    if regular.iter().any(|s| is_waiting(s) && !was_terminated(s)) {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    if stopped > 0 && ended.len() == stopped && sync::completed(pod, observed).is_some() {
        let clean = ended.iter().all(|code| *code == 0);
        return match (clean, pod.restart_policy) {
            (_, RestartPolicy::Always) => "Running",
            (true, _) => "Succeeded",
            (false, _) => "Failed",
        };
    }
    if stopped > 0 { "Running" } else { "Pending" }
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_none_or(|s| s.waiting.is_some())
}

/// Every init container has ended well, every sidecar has started.
fn initialized(pod: &LocalPod, inits: &[ContainerStatus], regular: &[ContainerStatus]) -> bool {
    incomplete(pod, inits).is_empty() || regular.iter().any(|s| is_running(s) || exit_code(s).is_some())
}

fn incomplete(pod: &LocalPod, inits: &[ContainerStatus]) -> Vec<String> {
    let done = |status: &ContainerStatus| match pod.member(&status.name).map(|m| m.kind) {
        Some(Kind::Sidecar) => status.started == Some(true) || exit_code(status).is_some(),
        _ => exit_code(status) == Some(0),
    };
    inits.iter().filter(|s| !done(s)).map(|s| s.name.clone()).collect()
}

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Verdict {
        Verdict { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Verdict {
        Verdict { status: false, reason: Some(reason), message }
    }
}

fn conditions(
    pod: &LocalPod,
    observed: &Observed,
    phase: &str,
    inits: &[ContainerStatus],
    regular: &[ContainerStatus],
    previous: Option<&PodStatus>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox_up = observed.sandbox().is_some_and(|s| s.ready && (pod.host_network() || !s.ips.is_empty()));
    let containers = containers_ready(pod, phase, inits, regular);
    let ready =
        if containers.status { gates(pod) } else { Verdict { message: containers.message.clone(), ..containers } };
    let incomplete = incomplete(pod, inits);
    let initialized = if phase == "Succeeded" {
        Verdict { reason: Some("PodCompleted"), ..Verdict::yes() }
    } else if initialized(pod, inits, regular) {
        Verdict::yes()
    } else {
        Verdict::no(
            "ContainersNotInitialized",
            Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))),
        )
    };
    let up = Verdict { status: sandbox_up, ..Verdict::yes() };
    let all = [
        ("PodReadyToStartContainers", up),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready(pod, phase, inits, regular)),
        ("PodScheduled", Verdict::yes()),
    ];
    let old = previous.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ours = all.into_iter().map(|(kind, verdict)| {
        let status = if verdict.status { "True" } else { "False" };
        let since =
            old.iter().find(|c| c.type_ == kind && c.status == status).and_then(|c| c.last_transition_time.clone());
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: verdict.reason.map(Into::into),
            message: verdict.message,
            last_transition_time: since.or(Some(Time(now))),
            observed_generation: pod.meta().generation,
            ..PodCondition::default()
        }
    });
    let disruption = observed.failed.as_ref().filter(|failed| failed.is_disruption).map(|failed| PodCondition {
        type_: DISRUPTION.into(),
        status: "True".into(),
        reason: Some(DISRUPTION_REASON.into()),
        message: Some(failed.message.clone()),
        last_transition_time: old
            .iter()
            .find(|c| c.type_ == DISRUPTION)
            .and_then(|c| c.last_transition_time.clone())
            .or(Some(Time(now))),
        observed_generation: pod.meta().generation,
        ..PodCondition::default()
    });
    let resize = is_resized(pod, observed).then(|| PodCondition {
        type_: RESIZE.into(),
        status: "True".into(),
        reason: Some("Infeasible".into()),
        message: Some(
            "this node does not change what running containers may use; they get the new amounts when they are restarted"
                .into(),
        ),
        last_transition_time: old
            .iter()
            .find(|c| c.type_ == RESIZE)
            .and_then(|c| c.last_transition_time.clone())
            .or(Some(Time(now))),
        ..PodCondition::default()
    });
    ours.chain(disruption).chain(resize).collect()
}

/// Some running container was made with other requests or limits than the pod has now.
fn is_resized(pod: &LocalPod, observed: &Observed) -> bool {
    let differs = |c: &crate::sync::observed::Container| {
        let wanted = pod.member(&c.name).map(|m| m.resources_hash.as_str());
        c.is_running() && !c.resources_hash.is_empty() && wanted.is_some_and(|wanted| wanted != c.resources_hash)
    };
    observed.containers.iter().any(differs)
}

fn containers_ready(pod: &LocalPod, phase: &str, inits: &[ContainerStatus], regular: &[ContainerStatus]) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", None),
        "Failed" => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let sidecars = inits.iter().filter(|s| pod.member(&s.name).is_some_and(|m| m.kind == Kind::Sidecar));
    let unready: Vec<&str> = sidecars.chain(regular).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

/// Conditions that others write and that the pod's author made part of being ready.
fn gates(pod: &LocalPod) -> Verdict {
    let conditions = pod.status().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut problems = Vec::new();
    for gate in pod.spec.readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *kind) {
            None => problems.push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => {
                let status = &c.status;
                problems.push(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {status}"));
            }
            Some(_) => {}
        }
    }
    if problems.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ReadinessGatesNotReady", Some(problems.join(", ")))
}
