//! The life of a pod's task over its own falls. What the task has been told lies outside of it; one that panics is made anew from
//! that and from the runtime, after a growing pause. Invariant: nothing that was told is lost in a fall.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Event, Snapshot, Worker};
use crate::counters::Place;
use crate::events::Severity;
use crate::kit::Kit;
use crate::pod::LocalPod;
use crate::survival::{self, Pause};
use crate::sync::observed::Failed;

/// What a pod's task is told from outside and cannot find out again.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub pod: Arc<LocalPod>,
    pub failed: Option<Failed>,
    pub gone: bool,
    pub mirror: Option<String>,
    pub mirrored: Option<Arc<Pod>>,
}

/// The facts, in a place that outlives the task.
#[derive(Clone, Debug)]
pub(super) struct Told {
    facts: Arc<Mutex<Facts>>,
}

impl Told {
    pub(super) fn new(pod: Arc<LocalPod>, failed: Option<Failed>) -> Told {
        Told { facts: Arc::new(Mutex::new(Facts { pod, failed, gone: false, mirror: None, mirrored: None })) }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn facts(&self) -> Facts {
        self.lock().clone()
    }

    pub(super) fn note(&self, event: &Event) {
        match event {
            Event::Pod(pod) => self.lock().pod = pod.clone(),
            Event::Gone => self.lock().gone = true,
            Event::Mirror(uid) => {
                let mut facts = self.lock();
                facts.mirror.clone_from(uid);
                if uid.is_none() {
                    facts.mirrored = None;
                }
            }
            Event::Mirrored(mirror) => {
                let mut facts = self.lock();
                facts.mirror.clone_from(&mirror.metadata.uid);
                facts.mirrored = Some(mirror.clone());
            }
            Event::Look | Event::Referenced | Event::Evict(_) => {}
        }
    }

    /// The pod has failed for a reason of its own.
    pub(super) fn fail(&self, failed: &Failed) {
        self.lock().failed = Some(failed.clone());
    }
}

pub(super) async fn live(
    kit: Arc<Kit>,
    told: Told,
    mut events: mpsc::UnboundedReceiver<Event>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    shutdown: CancellationToken,
    finished: mpsc::UnboundedSender<String>,
) {
    let mut pause = Pause::default();
    loop {
        let (reports, mut heard) = mpsc::unbounded_channel();
        let (own, known, shown) = (kit.clone(), told.clone(), snapshot.clone());
        let life = async {
            let worker = Worker::new(own, known, shown, reports);
            worker.run(&mut events, &mut heard, &shutdown).await
        };
        let why = match survival::caught(life).await {
            Ok(true) => break,
            Ok(false) => return,
            Err(why) => why,
        };
        let wait = pause.fall(Instant::now());
        tell(&kit, &told.facts().pod, "its task", &why, wait);
        if tokio::time::timeout(wait, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
    let uid = told.facts().pod.uid.clone();
    kit.counters.forget(&uid);
    // A manager that is gone needs no word.
    let _ = finished.send(uid);
}

/// One line in the log, one event, one more in the count.
fn tell(kit: &Kit, pod: &LocalPod, what: &str, why: &str, wait: std::time::Duration) {
    kit.counters.panicked(Place::Pod);
    tracing::error!(pod = %pod.key, what, why, ?wait, "the work for a pod panicked; it is tried again");
    let text = format!("error syncing pod: {what} panicked: {why}; tried again in {wait:?}");
    kit.recorder.pod(pod, None, Severity::Warning, "FailedSync", text);
}

impl Worker {
    /// An operation panicked: nothing more is tried for this pod until the pause is over.
    pub(super) fn fell(&mut self, what: &str, why: &str) {
        let wait = self.falls.fall(Instant::now());
        tell(&self.kit, &self.pod, what, why, wait);
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO);
        self.resting_until = Some(Timestamp::now().saturating_add(wait).unwrap_or(Timestamp::MAX));
    }
}
