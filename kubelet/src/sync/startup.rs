//! The way up, once the sandbox stands: init containers one after another, then the others, each with its pause after a failure.
//! At most one container is started at a time, so that a postStart hook holds back those after it, as upstream does.

use jiff::Timestamp;

use super::backoff::is_over;
use super::observed::{Container, Observed, State};
use super::{Action, Kill, kill, newest_in, next_attempt};
use crate::pod::{Kind, LocalPod, Member, RestartPolicy};

pub(super) fn plan(pod: &LocalPod, observed: &Observed, now: Timestamp, actions: &mut Vec<Action>) {
    let mut start = Start { pod, observed, now, free: observed.busy.starting.is_empty(), actions };
    start.kill_unwanted();
    if !start.inits() {
        return;
    }
    for member in pod.of(&[Kind::Regular]) {
        start.regular(member);
    }
    for member in pod.of(&[Kind::Ephemeral]) {
        if observed.newest(member.name()).is_none() {
            start.start(member);
        }
    }
}

struct Start<'a> {
    pod: &'a LocalPod,
    observed: &'a Observed,
    now: Timestamp,
    /// Nothing is being started.
    free: bool,
    actions: &'a mut Vec<Action>,
}

impl Start<'_> {
    fn sandbox_id(&self) -> &str {
        self.observed.sandbox().map_or("", |s| s.id.as_str())
    }

    fn kill_unwanted(&mut self) {
        for container in self.observed.containers.iter().filter(|c| c.is_alive()) {
            if self.pod.member(&container.name).is_none() || container.sandbox_id != self.sandbox_id() {
                kill(self.observed, container, self.pod.grace_seconds(), Kill::Unwanted, self.now, self.actions);
            }
        }
    }

    /// True when every init container has done its part, so that the regular ones may run.
    fn inits(&mut self) -> bool {
        let pod = self.pod;
        let members: Vec<&Member> = pod.of(&[Kind::Init, Kind::Sidecar]).collect();
        // An ended init container may have been collected: a later one that exists proves that it was done.
        let sandbox = self.sandbox_id().to_owned();
        let mut proven = pod.of(&[Kind::Regular]).any(|m| newest_in(self.observed, m.name(), &sandbox).is_some());
        let mut reached = if proven { members.len() } else { 0 };
        for (index, member) in members.iter().enumerate().rev() {
            if !proven && newest_in(self.observed, member.name(), &sandbox).is_some() {
                reached = index;
                proven = true;
            }
        }
        let mut ready = true;
        for (index, member) in members.iter().enumerate() {
            let done = match member.kind {
                Kind::Sidecar => self.sidecar(member, &sandbox),
                _ => index < reached || self.init(member, &sandbox),
            };
            // What comes after waits; but sidecars before this one have been looked after by now.
            if !done && index >= reached {
                ready = false;
                break;
            }
        }
        ready
    }

    fn init(&mut self, member: &Member, sandbox: &str) -> bool {
        let Some(container) = newest_in(self.observed, member.name(), sandbox) else {
            self.start(member);
            return false;
        };
        match &container.state {
            State::Exited(exit) if exit.code == 0 => true,
            State::Exited(exit) => {
                if member.restart_policy.restarts(exit.code) {
                    self.restart(member, container);
                }
                false
            }
            State::Running { .. } => {
                if changed(member, container) {
                    self.kill(container, Kill::Changed, None);
                }
                false
            }
            State::Created | State::Unknown => {
                self.leftover(container);
                false
            }
        }
    }

    fn sidecar(&mut self, member: &Member, sandbox: &str) -> bool {
        let Some(container) = newest_in(self.observed, member.name(), sandbox) else {
            self.start(member);
            return false;
        };
        match &container.state {
            State::Running { .. } => {
                self.check(member, container);
                self.observed.probed(&container.id).started || member.container.startup_probe.is_none()
            }
            State::Exited(_) => {
                self.restart(member, container);
                false
            }
            State::Created | State::Unknown => {
                self.leftover(container);
                false
            }
        }
    }

    fn regular(&mut self, member: &Member) {
        let Some(container) = self.observed.newest(member.name()) else {
            self.start(member);
            return;
        };
        match &container.state {
            State::Running { .. } => self.check(member, container),
            State::Exited(exit) => {
                let replaced = changed(member, container) && member.restart_policy != RestartPolicy::Never;
                if replaced {
                    self.start(member);
                } else if member.restart_policy.restarts(exit.code) {
                    self.restart(member, container);
                }
            }
            State::Created | State::Unknown => self.leftover(container),
        }
    }

    /// A running container: does it still match, is it well?
    fn check(&mut self, member: &Member, container: &Container) {
        if changed(member, container) {
            self.kill(container, Kill::Changed, None);
        } else if let Some((why, grace)) = self.observed.probed(&container.id).unhealthy {
            self.kill(container, Kill::Unhealthy(why), grace);
        }
    }

    fn kill(&mut self, container: &Container, why: Kill, grace: Option<i64>) {
        let grace = grace.unwrap_or_else(|| self.pod.grace_seconds());
        kill(self.observed, container, grace, why, self.now, self.actions);
    }

    /// Made but never started, by a kubelet that died in between or a start that failed: end it, so that the next can be made.
    fn leftover(&mut self, container: &Container) {
        if !self.observed.busy.starting.contains(&container.name) {
            kill(self.observed, container, 0, Kill::Unwanted, self.now, self.actions);
        }
    }

    fn restart(&mut self, member: &Member, container: &Container) {
        let ended = container.exit().map_or(self.now, |e| e.finished_at);
        let pause = self.observed.restarts.get(member.name()).and_then(|b| b.until(ended));
        match pause.filter(|until| !is_over(*until, self.now)) {
            Some(at) => self.actions.push(Action::Wake { at }),
            None => self.start(member),
        }
    }

    fn start(&mut self, member: &Member) {
        if self.observed.busy.starting.contains(member.name()) {
            return;
        }
        if let Some(failure) = self.observed.failures.get(member.name()).filter(|f| !is_over(f.retry_at, self.now)) {
            self.actions.push(Action::Wake { at: failure.retry_at });
            return;
        }
        if self.free {
            self.free = false;
            let attempt = next_attempt(self.pod, self.observed, member.name());
            self.actions.push(Action::StartContainer { name: member.name().to_owned(), attempt });
        }
    }
}

fn changed(member: &Member, container: &Container) -> bool {
    !container.hash.is_empty() && container.hash != member.hash
}
