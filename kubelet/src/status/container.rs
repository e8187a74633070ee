//! The status of one container, from the newest one the runtime has, why it cannot start, and what was known before.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{NodeFacts, whole_seconds};
use crate::pod::{Kind, LocalPod, Member};
use crate::sync::observed::{Container, Exit, Observed, State};

pub(super) struct Facts<'a> {
    pub pod: &'a LocalPod,
    pub observed: &'a Observed,
    pub node: &'a NodeFacts,
    /// The pod ends and nothing of it lives any more.
    pub over: bool,
    pub now: Timestamp,
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let reason = Some(reason.to_owned());
    ContainerState { waiting: Some(ContainerStateWaiting { reason, message }), ..ContainerState::default() }
}

impl Facts<'_> {
    pub(super) fn status(&self, member: &Member, old: Option<&ContainerStatus>) -> ContainerStatus {
        let mine: Vec<&Container> = self.observed.containers.iter().filter(|c| c.name == member.name()).collect();
        let mut status = match mine.first() {
            Some(newest) => self.of_container(member, newest, mine.get(1).copied(), old),
            None => self.of_nothing(member, old),
        };
        if let Some((reason, message)) = self.held_back(member, mine.first().copied()) {
            // What it is waiting for tells more than how it ended; the end moves to lastState.
            if let Some(ended) = status.state.take().filter(|s| s.terminated.is_some()) {
                status.last_state = Some(ended);
            }
            status.state = Some(waiting(&reason, Some(message)));
            status.ready = false;
            status.started = Some(false);
        }
        status
    }

    /// Why the container is not being started although it should run.
    fn held_back(&self, member: &Member, newest: Option<&Container>) -> Option<(String, String)> {
        if self.over
            || crate::sync::ending(self.pod, self.observed).is_some()
            || newest.is_some_and(Container::is_alive)
        {
            return None;
        }
        let name = member.name();
        if let Some(failure) = self.observed.failures.get(name) {
            return Some((failure.reason.clone(), failure.message.clone()));
        }
        let exit = newest?.exit()?;
        if self.observed.busy.starting.contains(name) || !member.restart_policy.restarts(exit.code) {
            return None;
        }
        let backoff = self.observed.restarts.get(name)?;
        backoff.until(exit.finished_at).filter(|until| !crate::sync::backoff::is_over(*until, self.now))?;
        let message = format!(
            "back-off {} restarting failed container={name} pod={}_{}({})",
            backoff.text(),
            self.pod.key.name,
            self.pod.key.namespace,
            self.pod.uid
        );
        Some(("CrashLoopBackOff".into(), message))
    }

    fn of_container(
        &self,
        member: &Member,
        newest: &Container,
        before: Option<&Container>,
        old: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let probed = self.observed.probed(&newest.id);
        let running = newest.is_running();
        let started = running && (member.container.startup_probe.is_none() || probed.started);
        let ready = match (member.kind, &newest.state) {
            (Kind::Init, State::Exited(exit)) => exit.code == 0,
            (Kind::Init | Kind::Ephemeral, _) => false,
            _ => started && (member.container.readiness_probe.is_none() || probed.ready),
        };
        let state = match &newest.state {
            State::Created => waiting("ContainerCreating", None),
            State::Running { since } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(*since))) }),
                ..ContainerState::default()
            },
            State::Exited(exit) => {
                ContainerState { terminated: Some(self.terminated(&newest.id, exit)), ..ContainerState::default() }
            }
            State::Unknown => {
                waiting("ContainerStatusUnknown", Some("the runtime does not know what became of it".into()))
            }
        };
        let last = before.and_then(|c| c.exit().map(|e| self.terminated(&c.id, e)));
        let remembered = || self.remembered_end(newest, old);
        let last = last.or_else(remembered);
        ContainerStatus {
            name: member.name().to_owned(),
            state: Some(state),
            last_state: Some(ContainerState { terminated: last, ..ContainerState::default() }),
            ready,
            started: Some(started),
            restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
            image: if newest.image.is_empty() { member.image().to_owned() } else { newest.image.clone() },
            image_id: newest.image_ref.clone(),
            container_id: Some(self.container_id(&newest.id)),
            user: newest.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser { uid: *uid, gid: *gid, supplemental_groups: Some(groups.clone()) }),
            }),
            ..ContainerStatus::default()
        }
    }

    /// The end of the container before `newest`, when only the API remembers it.
    fn remembered_end(&self, newest: &Container, old: Option<&ContainerStatus>) -> Option<ContainerStateTerminated> {
        let old = old?;
        let same = old.container_id.as_deref() == Some(self.container_id(&newest.id).as_str());
        let from = if same {
            old.last_state.as_ref()
        } else {
            old.state.as_ref().filter(|s| s.terminated.is_some()).or(old.last_state.as_ref())
        };
        let ended = from.and_then(|s| s.terminated.clone())?;
        // Never its own end.
        (ended.container_id.as_deref() != Some(self.container_id(&newest.id).as_str())).then_some(ended)
    }

    fn of_nothing(&self, member: &Member, old: Option<&ContainerStatus>) -> ContainerStatus {
        let ended = |s: &&ContainerStatus| s.state.as_ref().is_some_and(|s| s.terminated.is_some());
        let init_done = member.kind == Kind::Init && old.is_some_and(|s| s.ready);
        if let Some(old) = old.filter(ended)
            && (self.over || init_done || self.pod.ended_in_api())
        {
            return old.clone();
        }
        let was_running = old.filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()));
        if let Some(old) = was_running.filter(|_| self.over) {
            let lost = ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                container_id: old.container_id.clone(),
                ..ContainerStateTerminated::default()
            };
            let state = Some(ContainerState { terminated: Some(lost), ..ContainerState::default() });
            return ContainerStatus { state, ready: false, started: Some(false), ..old.clone() };
        }
        let pending_init = self.pod.of(&[Kind::Init, Kind::Sidecar]).next().is_some();
        let reason =
            if pending_init && member.kind != Kind::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
        let last_state =
            old.and_then(|s| s.state.clone().filter(|s| s.terminated.is_some()).or_else(|| s.last_state.clone()));
        ContainerStatus {
            name: member.name().to_owned(),
            state: Some(waiting(reason, None)),
            last_state: Some(last_state.unwrap_or_default()),
            started: Some(false),
            image: member.image().to_owned(),
            restart_count: old.map_or(0, |s| s.restart_count),
            ..ContainerStatus::default()
        }
    }

    fn terminated(&self, id: &str, exit: &Exit) -> ContainerStateTerminated {
        let reason = match (exit.reason.as_str(), exit.code) {
            ("", 0) => "Completed",
            ("", _) => "Error",
            (reason, _) => reason,
        };
        ContainerStateTerminated {
            container_id: Some(self.container_id(id)),
            exit_code: exit.code,
            reason: Some(reason.to_owned()),
            message: Some(exit.message.clone()).filter(|m| !m.is_empty()),
            started_at: exit.started_at.map(|t| Time(whole_seconds(t))),
            finished_at: Some(Time(whole_seconds(exit.finished_at))),
            ..ContainerStateTerminated::default()
        }
    }

    fn container_id(&self, id: &str) -> String {
        format!("{}://{id}", self.node.runtime_name)
    }
}
