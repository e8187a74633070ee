//! The task of one pod. It alone changes what is known of the pod: events come in, operations are started and heard of, the plan
//! is asked after each.
//!
//! ```text
//!   events (API, runtime, probes, references) --+
//!   operations that are done -------------------+--> observe --> plan --> start operations --> write status --> wait
//!   the one timer ------------------------------+
//! ```
//! Not the decisions (sync.rs) nor the deeds (operation/). Invariants: nothing is planned before the runtime has been looked at; a
//! panic, of an operation or of the task itself, is this pod's alone, and is tried again after a growing pause (life.rs).

mod done;
mod life;
mod perform;
mod probes;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::events::Severity;
use crate::kit::Kit;
use crate::pod::{Kind, LocalPod, Source};
use crate::probe::{Purpose, Report};
use crate::status;
use crate::survival::Pause;
use crate::sync::backoff;
use crate::sync::observed::{Container, Failed, Observed, Probed, Sandbox};
use crate::sync::{self, Action};
use crate::volumes::{self, Prepared};

/// After the runtime did not answer.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(1);
/// However far off the next thing to do is, the clock is read again by then: somebody may have set it.
const SLEEP_MAX: Duration = Duration::from_secs(300);

/// What the pod's task is told. The queue has no limit of its own: every sender merges (watches) or waits (probes).
#[derive(Debug)]
pub enum Event {
    /// The pod as the API or the manifest has it now.
    Pod(Arc<LocalPod>),
    /// The API object or the manifest is no more.
    Gone,
    /// Something happened in the runtime.
    Look,
    /// A ConfigMap or Secret of the pod has changed.
    Referenced,
    /// The uid of the static pod's mirror, if it has one.
    Mirror(Option<String>),
    /// The mirror as the API has it now.
    Mirrored(Arc<Pod>),
    /// The node can no longer bear it.
    Evict(Box<Failed>),
}

/// What others may see of the pod.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub pod: Arc<LocalPod>,
    pub status: PodStatus,
    pub containers: Vec<Container>,
    pub sandbox: Option<Sandbox>,
    /// The runtime has been asked what it holds of the pod.
    pub looked: bool,
}

/// How others reach the pod's task.
#[derive(Clone, Debug)]
pub struct Handle {
    pub events: mpsc::UnboundedSender<Event>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
}

struct Worker {
    kit: Arc<Kit>,
    pod: Arc<LocalPod>,
    observed: Observed,
    prepared: Prepared,
    mirror: Option<String>,
    operations: JoinSet<done::Done>,
    /// Cancelled when the pod ends: what is being started is given up.
    cancel: CancellationToken,
    probes: BTreeMap<(String, Purpose), AbortOnDropHandle<()>>,
    reports: mpsc::UnboundedSender<Report>,
    status: PodStatus,
    sent: report::Sent,
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// Containers whose back-off has been told as an event.
    told_backoff: BTreeSet<String>,
    looked: bool,
    look_at: Option<Timestamp>,
    wake: Option<Timestamp>,
    finished: bool,
    told: life::Told,
    /// Falls of operations, and until when nothing is tried for it.
    falls: Pause,
    resting_until: Option<Timestamp>,
    /// Something that a volume shows changed while volumes were being written.
    refresh_again: bool,
}

/// Starts the pod's task. `failed` is the node's refusal of it. `finished` is sent the uid when nothing is left of the pod.
pub fn spawn(
    kit: Arc<Kit>,
    pod: LocalPod,
    failed: Option<Failed>,
    shutdown: CancellationToken,
    finished: mpsc::UnboundedSender<String>,
) -> Handle {
    let (events, receiver) = mpsc::unbounded_channel();
    let pod = Arc::new(pod);
    let status = pod.status().cloned().unwrap_or_default();
    let first = Snapshot { pod: pod.clone(), status, containers: Vec::new(), sandbox: None, looked: false };
    let (snapshot, seen) = watch::channel(Arc::new(first));
    let told = life::Told::new(pod, failed);
    tokio::spawn(life::live(kit, told, receiver, snapshot, shutdown, finished));
    Handle { events, snapshot: seen }
}

impl Worker {
    fn new(
        kit: Arc<Kit>,
        told: life::Told,
        snapshot: watch::Sender<Arc<Snapshot>>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Worker {
        let life::Facts { pod, failed, gone, mirror, mirrored } = told.facts();
        let status = pod.status().cloned().unwrap_or_default();
        let started = status.start_time.as_ref().map(|t| t.0);
        let start_time = Some(started.unwrap_or_else(Timestamp::now));
        Worker {
            observed: Observed { failed, gone, start_time, ..Observed::default() },
            prepared: Prepared::default(),
            mirror,
            operations: JoinSet::new(),
            cancel: CancellationToken::new(),
            probes: BTreeMap::new(),
            reports,
            sent: match (&mirrored, pod.source) {
                (Some(mirror), _) => report::Sent::from_api(mirror),
                (None, Source::Api) => report::Sent::from_api(&pod.object),
                (None, Source::File) => report::Sent::default(),
            },
            status,
            snapshot,
            told_backoff: BTreeSet::new(),
            looked: false,
            look_at: None,
            wake: None,
            finished: false,
            told,
            falls: Pause::default(),
            resting_until: None,
            refresh_again: false,
            kit,
            pod,
        }
    }

    /// Until nothing is left of the pod (true), or nobody wants to know any more.
    async fn run(
        mut self,
        events: &mut mpsc::UnboundedReceiver<Event>,
        reports: &mut mpsc::UnboundedReceiver<Report>,
        shutdown: &CancellationToken,
    ) -> bool {
        self.look().await;
        loop {
            self.step();
            if self.finished {
                return true;
            }
            let mut look = false;
            tokio::select! {
                () = shutdown.cancelled() => return false,
                event = events.recv() => match event {
                    Some(event) => look |= self.hear(event),
                    None => return false,
                },
                Some(report) = reports.recv() => self.hear_probe(report),
                Some(done) = self.operations.join_next() => look |= self.hear_done(done),
                () = sleep_until(self.wake) => {
                    look |= self.look_at.is_some_and(|at| backoff::is_over(at, Timestamp::now()));
                }
            }
            while let Ok(event) = events.try_recv() {
                look |= self.hear(event);
            }
            while let Some(done) = self.operations.try_join_next() {
                look |= self.hear_done(done);
            }
            if look {
                self.look().await;
            }
        }
    }

    /// True if the runtime is to be looked at.
    fn hear(&mut self, event: Event) -> bool {
        self.told.note(&event);
        match event {
            Event::Pod(pod) => {
                self.sent.hear_api(&pod.object);
                if pod.ended_in_api() && !self.pod.ended_in_api() {
                    // Someone else ended it, such as the node lifecycle controller.
                    self.status.phase = pod.status().and_then(|s| s.phase.clone());
                }
                let shown_differently = volumes::shows_other_fields(&self.pod, &pod);
                self.pod = pod;
                if shown_differently && self.observed.volumes == sync::observed::Volumes::Mounted {
                    self.refresh_volumes();
                }
                false
            }
            Event::Gone => {
                self.observed.gone = true;
                self.observed.busy.releasing = false;
                false
            }
            Event::Look => true,
            Event::Referenced => {
                self.hear_reference();
                false
            }
            Event::Mirror(uid) => {
                if self.mirror != uid {
                    self.sent = report::Sent::default();
                }
                self.mirror = uid;
                false
            }
            Event::Mirrored(mirror) => {
                if self.mirror != mirror.metadata.uid {
                    self.sent = report::Sent::default();
                    self.mirror.clone_from(&mirror.metadata.uid);
                }
                self.sent.hear_api(&mirror);
                false
            }
            Event::Evict(failed) => {
                if sync::ending(&self.pod, &self.observed).is_none() {
                    let text = failed.message.clone();
                    self.kit.recorder.pod(&self.pod, None, Severity::Warning, &failed.reason, text);
                    self.told.fail(&failed);
                    self.observed.failed = Some(*failed);
                }
                false
            }
        }
    }

    /// What failed for want of an object may work now; volumes made of it are brought up to date.
    fn hear_reference(&mut self) {
        self.observed.failures.retain(|_, failure| failure.reason != "CreateContainerConfigError");
        match self.observed.volumes {
            sync::observed::Volumes::Failed(_) => self.observed.volumes = sync::observed::Volumes::Absent,
            sync::observed::Volumes::Mounted => self.refresh_volumes(),
            sync::observed::Volumes::Absent => {}
        }
    }

    /// Reads what the runtime holds of the pod.
    async fn look(&mut self) {
        let host = &self.kit.host;
        let place = crate::cri::Place { pod_dir: host.pod_dir(&self.pod.uid), log_dir: host.log_dir(&self.pod) };
        match self.kit.runtime.observe(&self.pod.uid, &self.observed.containers, &place).await {
            Ok((sandboxes, containers)) => {
                self.look_at = None;
                self.observed.sandboxes = sandboxes;
                self.observed.containers = containers;
                if !self.looked {
                    self.adopt();
                }
                self.looked = true;
                let alive: BTreeSet<&str> = self.observed.containers.iter().map(|c| c.id.as_str()).collect();
                self.observed.probes.retain(|id, _| alive.contains(id.as_str()));
                self.observed.pre_stopped.retain(|id| alive.contains(id.as_str()));
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.key, %error, "runtime did not tell about the pod");
                self.look_at = Timestamp::now().checked_add(LOOK_AGAIN).ok();
            }
        }
    }

    /// Containers that run already keep the readiness that the API knows of, so that a restart of the kubelet is not felt.
    fn adopt(&mut self) {
        let old = self.pod.status();
        let statuses = old
            .into_iter()
            .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
        for status in statuses {
            let id = status.container_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
            if let Some(container) = self.observed.containers.iter().find(|c| c.id == id && c.is_running()) {
                let probed = Probed { started: status.started.unwrap_or(false), ready: status.ready, unhealthy: None };
                self.observed.probes.insert(container.id.clone(), probed);
            }
        }
    }

    /// Plans, starts what is planned, reports.
    fn step(&mut self) {
        let now = Timestamp::now();
        self.wake = self.look_at;
        let resting = self.resting_until.filter(|until| !backoff::is_over(*until, now));
        if let Some(until) = resting {
            self.wake_at(until);
        } else if self.looked && self.look_at.is_none() {
            self.mark_started();
            if sync::ending(&self.pod, &self.observed).is_some() {
                self.observed.ending_since.get_or_insert(now);
            }
            for _ in 0..3 {
                let actions = sync::plan(&self.pod, &self.observed, now);
                let again = actions.iter().any(|a| matches!(a, Action::Fail(_)));
                for action in actions {
                    self.perform(action, now);
                }
                if !again {
                    break;
                }
            }
            self.tidy();
            self.sync_probes();
            self.renew_volumes(now);
            self.report(now);
        }
        let snapshot = Snapshot {
            pod: self.pod.clone(),
            status: self.status.clone(),
            containers: self.observed.containers.clone(),
            sandbox: self.observed.sandbox().cloned(),
            looked: self.looked,
        };
        self.snapshot.send_replace(Arc::new(snapshot));
    }

    /// A container without a startup probe counts as started as soon as it runs.
    fn mark_started(&mut self) {
        for container in self.observed.containers.iter().filter(|c| c.is_running()) {
            let waits = self.pod.member(&container.name).is_some_and(|m| m.container.startup_probe.is_some());
            if !waits {
                self.observed.probes.entry(container.id.clone()).or_default().started = true;
            }
        }
    }

    fn renew_volumes(&mut self, now: Timestamp) {
        let Some(at) = self.prepared.refresh_at else { return };
        if sync::ending(&self.pod, &self.observed).is_some() {
            return;
        }
        if at <= now {
            self.refresh_volumes();
        } else {
            self.wake_at(at);
        }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Of ended containers the newest two of a name are kept, for `state` and `lastState`; of sandboxes the newest.
    fn tidy(&mut self) {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut old = Vec::new();
        for container in &self.observed.containers {
            let count = seen.entry(container.name.as_str()).or_default();
            *count += 1;
            if *count > 2 && container.exit().is_some() && !self.observed.busy.killing.contains_key(&container.id) {
                old.push(container.clone());
            }
        }
        for container in old {
            self.remove_container(&container.id);
        }
        let stale: Vec<String> =
            self.observed.sandboxes.iter().skip(1).filter(|s| !s.ready).map(|s| s.id.clone()).collect();
        for id in stale {
            let used = self.observed.containers.iter().any(|c| c.sandbox_id == id);
            if !used && !self.observed.busy.sandbox {
                self.remove_sandbox(id);
            }
        }
    }

    /// The newest running container of each member that can be probed.
    fn probed_containers(&self) -> Vec<Container> {
        let members = self.pod.of(&[Kind::Sidecar, Kind::Regular]);
        members.filter_map(|m| self.observed.newest(m.name()).filter(|c| c.is_running()).cloned()).collect()
    }

    fn compute_status(&self, now: Timestamp) -> PodStatus {
        let known = self.status.phase.is_some();
        status::compute(&self.pod, &self.observed, &self.kit.facts, Some(&self.status).filter(|_| known), now)
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::time::sleep(left.min(SLEEP_MAX)).await;
        }
        None => std::future::pending().await,
    }
}
