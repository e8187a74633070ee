//! What makes a container, told step by step: each with its system call, what it isolates, why, and where the effect can be seen.
//!
//! [`explain`] tells the plan and touches nothing; an [`Observer`] given to [`crate::create_observed`] hears of each step when it has
//! been done, with its time, and may hold the container there. Not a tracer: what is told is the plan that is executed. Invariant:
//! without an observer, nothing here costs a container anything.

mod words;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::create;
use crate::error::Error;
use crate::plan::{Plan, Step};
use crate::{Bundle, ContainerId, CreateOptions, StateRoot};

pub(crate) use words::HostStep;

/// Who does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The runtime, on the host.
    Runtime,
    /// The container's first process, until it waits to be started.
    Init,
    /// The same process after `start`, until its program runs.
    Start,
}

/// One step in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// From 1, over all sides in the order in which they are done.
    pub number: usize,
    pub side: Side,
    /// As an error message names it.
    pub step: String,
    /// The system calls that do it, with their manual section.
    pub call: String,
    /// What the container gets of its own, or what is kept from it; empty where the step only prepares.
    pub isolates: &'static str,
    pub why: &'static str,
    /// A command that shows the effect; [`Explained::look`] fills in the process.
    #[serde(rename = "look")]
    look_template: String,
}

impl Explained {
    /// The command that shows the effect on the host; empty where nothing does. `None`: the process is not known yet.
    pub fn look(&self, pid: Option<i32>) -> String {
        match pid {
            Some(pid) => self.look_template.replace("PID", &pid.to_string()),
            None => self.look_template.clone(),
        }
    }
}

/// Hears of each step that has been done: the step, the container's process once there is one, and how long it took (`None`: its time
/// is in the next step's, since after a seccomp filter nothing can be reported). With `ControlFlow::Break` the container is not made.
pub type Tell<'a> = dyn FnMut(&Explained, Option<i32>, Option<Duration>) -> ControlFlow<()> + 'a;

/// Who watches a container being made.
pub struct Observer<'a> {
    tell: &'a mut Tell<'a>,
    /// The container's process waits after each of its steps until `tell` comes back.
    pauses: bool,
    steps: Vec<(Doer, Explained)>,
    /// How many have been told.
    told: usize,
    pid: Option<i32>,
    since: Instant,
}

impl std::fmt::Debug for Observer<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Observer").field("pauses", &self.pauses).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl<'a> Observer<'a> {
    /// Hears of the steps while they go on.
    pub fn new(tell: &'a mut Tell<'a>) -> Self {
        Self { tell, pauses: false, steps: Vec::new(), told: 0, pid: None, since: Instant::now() }
    }

    /// Holds the container's process after each step until `tell` comes back.
    pub fn pausing(tell: &'a mut Tell<'a>) -> Self {
        Self { pauses: true, ..Self::new(tell) }
    }

    pub(crate) fn pauses(&self) -> bool {
        self.pauses
    }

    pub(crate) fn begin(&mut self, plan: &Plan, cgroup: &str) {
        self.steps = tell_all(plan, cgroup);
        self.since = Instant::now();
    }

    pub(crate) fn container_is(&mut self, pid: i32) {
        self.pid = Some(pid);
    }

    /// A step of the runtime's own, done since the last one.
    pub(crate) fn host(&mut self, done: HostStep) -> Result<(), Error> {
        let took = self.since.elapsed();
        match self.steps.iter().position(|(doer, _)| *doer == Doer::Host(done)) {
            Some(index) => self.say(index, Some(took)),
            // One that this container has no need of.
            None => Ok(()),
        }
    }

    /// A step of the container's process, by its place in the plan.
    pub(crate) fn container(&mut self, place: u32, took: Duration) -> Result<(), Error> {
        match self.steps.iter().position(|(doer, _)| *doer == Doer::Container(place)) {
            Some(index) => self.say(index, Some(took)),
            None => Ok(()),
        }
    }

    /// The program runs, and so all is done that nobody could report.
    pub(crate) fn running(&mut self) -> Result<(), Error> {
        let took = self.since.elapsed();
        for index in self.told..self.steps.len() {
            self.say(index, Some(took).filter(|_| index + 1 == self.steps.len()))?;
        }
        Ok(())
    }

    fn say(&mut self, index: usize, took: Option<Duration>) -> Result<(), Error> {
        let Some((_, step)) = self.steps.get(index) else { return Ok(()) };
        let answer = (self.tell)(step, self.pid, took);
        self.since = Instant::now();
        self.told = index + 1;
        match answer {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Abandoned { step: step.step.clone() }),
        }
    }
}

/// What `create` and `start` would do with this bundle, in order, and the warnings that they would print. Nothing is touched.
pub fn explain(
    root: &StateRoot,
    id: &ContainerId,
    bundle: &Bundle,
    options: &CreateOptions,
) -> Result<(Vec<Explained>, Vec<String>), Error> {
    let (plan, cgroup) = create::dry_run(root, id, bundle, options)?;
    let steps = tell_all(&plan, &cgroup).into_iter().map(|(_, step)| step).collect();
    Ok((steps, plan.warnings))
}

/// Whose step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doer {
    Host(HostStep),
    /// By its place in the plan, the setup first.
    Container(u32),
}

/// Every step of all sides, in order.
fn tell_all(plan: &Plan, cgroup: &str) -> Vec<(Doer, Explained)> {
    let hosts = HostStep::of(plan);
    let host = |step: &HostStep| (Doer::Host(*step), words::host(*step, plan, cgroup));
    let mut places = 0..;
    let mut container =
        |step: &Step, side| (Doer::Container(places.next().unwrap_or(u32::MAX)), words::container(step, side));
    let mut steps: Vec<_> = hosts.iter().filter(|step| step.is_before_init()).map(host).collect();
    steps.extend(plan.setup.iter().map(|step| container(step, Side::Init)));
    steps.extend(hosts.iter().filter(|step| !step.is_before_init()).map(host));
    steps.extend(plan.start.iter().map(|step| container(step, Side::Start)));
    for ((_, step), number) in steps.iter_mut().zip(1..) {
        step.number = number;
    }
    steps
}

/// After the filter is on, the container's process may not be allowed to say anything any more.
pub(crate) fn ends_the_telling(step: &Step) -> bool {
    matches!(step, Step::Seccomp(_) | Step::FinalCapabilities(_) | Step::Exec)
}

#[cfg(test)]
mod tests;
