//! Starts the operation for each planned action and marks it as under way.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use super::Worker;
use super::done::{Done, Work};
use crate::events::Severity;
use crate::operation::{release, sandbox, start::Start, stop::Stop};
use crate::pod::Source;
use crate::sync::backoff::Backoff;
use crate::sync::{Action, Kill};
use crate::{survival, volumes};

/// After an operation failed that has no pause of its own.
const RETRY: Duration = Duration::from_secs(1);

impl Worker {
    /// Starts an operation whose panic is told as that of `work`.
    pub(super) fn begin(&mut self, work: Work, operation: impl Future<Output = Done> + Send + 'static) {
        self.operations.spawn(async move {
            match survival::caught(operation).await {
                Ok(done) => done,
                Err(why) => Done::Died { work, why },
            }
        });
    }

    pub(super) fn perform(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = %self.pod.key, ?action, "planned");
        match action {
            Action::PrepareVolumes => self.prepare_volumes(),
            Action::CreateSandbox { attempt } => {
                self.observed.busy.sandbox = true;
                let (kit, pod) = (self.kit.clone(), self.pod.clone());
                self.begin(Work::Sandbox, async move { Done::Sandbox(sandbox::create(kit, pod, attempt).await) });
            }
            Action::StopSandbox { id } => {
                self.observed.busy.sandbox = true;
                let kit = self.kit.clone();
                self.begin(Work::Sandbox, async move {
                    Done::SandboxStopped(slow_on_error(kit.runtime.stop_sandbox(&id).await).await)
                });
            }
            Action::StartContainer { name, attempt } => self.start_container(name, attempt, now),
            Action::KillContainer { id, grace_seconds, why, .. } => self.kill_container(&id, grace_seconds, why, now),
            Action::PreStop { id, grace_seconds } => self.pre_stop(&id, grace_seconds),
            Action::RemoveContainer { id } => self.remove_container(&id),
            Action::CancelStarts => self.cancel.cancel(),
            Action::Fail(failed) => {
                self.kit.recorder.pod(&self.pod, None, Severity::Normal, &failed.reason, failed.message.clone());
                self.told.fail(&failed);
                self.observed.failed = Some(failed);
            }
            Action::Release => {
                self.observed.busy.releasing = true;
                let (kit, pod) = (self.kit.clone(), self.pod.clone());
                self.begin(Work::Release, async move {
                    Done::Released(slow_on_error(release::resources(kit, pod).await).await)
                });
            }
            Action::Finish => self.finish(),
            Action::Wake { at } => self.wake_at(at),
        }
    }

    fn prepare_volumes(&mut self) {
        self.observed.busy.volumes = true;
        let (kit, pod, cancel) = (self.kit.clone(), self.pod.clone(), self.cancel.clone());
        self.begin(Work::Volumes, async move {
            let dir = kit.host.pod_dir(&pod.uid);
            let sources = kit.sources(Vec::new());
            tokio::select! {
                made = volumes::prepare(&pod, &dir, &kit.access, &sources, Timestamp::now()) => Done::Volumes(made),
                () = cancel.cancelled() => Done::VolumesGivenUp,
            }
        });
    }

    /// Brings volumes that stand up to date.
    pub(super) fn refresh_volumes(&mut self) {
        if crate::sync::ending(&self.pod, &self.observed).is_some() {
            return;
        }
        if self.observed.busy.volumes {
            // What is being written may have been read before the change.
            self.refresh_again = true;
            return;
        }
        self.prepared.refresh_at = None;
        self.prepare_volumes();
    }

    fn start_container(&mut self, name: String, attempt: u32, now: Timestamp) {
        let Some(sandbox) = self.observed.sandbox().cloned() else { return };
        if let Some(last) = self.observed.newest(&name).filter(|c| c.exit().is_some()) {
            let hash = self.pod.member(&name).map_or("", |m| m.hash.as_str());
            if last.hash.is_empty() || last.hash == hash {
                let pause = Backoff::next(self.observed.restarts.get(&name).copied(), now);
                self.observed.restarts.insert(name.clone(), pause);
            } else {
                // Another image has not crashed yet.
                self.observed.restarts.remove(&name);
            }
        }
        self.observed.busy.starting.insert(name.clone());
        let ephemeral = self.pod.spec.ephemeral_containers.iter().flatten().find(|c| c.name == name);
        let looks_at = ephemeral.and_then(|c| c.target_container_name.as_deref());
        let target = looks_at.and_then(|t| self.observed.newest(t)).map(|c| c.id.clone());
        let start = Start {
            kit: self.kit.clone(),
            pod: self.pod.clone(),
            name: name.clone(),
            attempt,
            sandbox,
            prepared: self.prepared.clone(),
            target,
            cancel: self.cancel.clone(),
        };
        self.begin(Work::Start(name.clone()), async move { Done::Started { name, result: start.run().await } });
    }

    fn kill_container(&mut self, id: &str, grace_seconds: i64, why: Kill, now: Timestamp) {
        let Some(container) = self.observed.containers.iter().find(|c| c.id == id).cloned() else { return };
        let deadline = now.saturating_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(Timestamp::MAX);
        let again = self.observed.busy.killing.insert(id.to_owned(), deadline).is_some();
        let hook_ran = !self.observed.pre_stopped.insert(id.to_owned());
        let stop = Stop {
            kit: self.kit.clone(),
            pod: self.pod.clone(),
            container,
            sandbox: self.observed.sandbox().cloned(),
            grace_seconds,
            why,
            again,
            hook_ran,
        };
        let id = id.to_owned();
        self.begin(Work::Kill(id.clone()), async move {
            Done::Killed { id, result: slow_on_error(stop.run().await).await }
        });
    }

    /// Only the hook; the container is told to end when it is its turn.
    fn pre_stop(&mut self, id: &str, grace_seconds: i64) {
        let Some(container) = self.observed.containers.iter().find(|c| c.id == id).cloned() else { return };
        self.observed.busy.pre_stopping.insert(id.to_owned());
        self.observed.pre_stopped.insert(id.to_owned());
        let hook = Stop {
            kit: self.kit.clone(),
            pod: self.pod.clone(),
            container,
            sandbox: self.observed.sandbox().cloned(),
            grace_seconds,
            why: Kill::Stopping,
            again: false,
            hook_ran: false,
        };
        let id = id.to_owned();
        self.begin(Work::PreStop(id.clone()), async move {
            hook.pre_stop().await;
            Done::PreStopped { id }
        });
    }

    pub(super) fn remove_container(&mut self, id: &str) {
        self.observed.busy.killing.insert(id.to_owned(), Timestamp::MIN);
        let (kit, id) = (self.kit.clone(), id.to_owned());
        let log = self
            .observed
            .containers
            .iter()
            .find(|c| c.id == id)
            .map(|c| self.kit.host.log_dir(&self.pod).join(crate::container_config::log_path(&c.name, c.attempt)));
        self.begin(Work::Kill(id.clone()), async move {
            let result = slow_on_error(kit.runtime.remove_container(&id).await).await;
            if let Some(log) = log {
                // A log that never was, or that the runtime has removed, is no problem.
                let _ = tokio::fs::remove_file(log).await;
            }
            Done::Killed { id, result }
        });
    }

    pub(super) fn remove_sandbox(&mut self, id: String) {
        self.observed.busy.sandbox = true;
        let kit = self.kit.clone();
        self.begin(Work::Sandbox, async move {
            Done::SandboxStopped(slow_on_error(kit.runtime.remove_sandbox(&id).await).await)
        });
    }

    /// First the API object goes, with its last status written; then, once it is gone, what is left here.
    fn finish(&mut self) {
        if self.observed.gone {
            self.observed.busy.releasing = true;
            let (kit, pod) = (self.kit.clone(), self.pod.clone());
            let sandboxes = self.observed.sandboxes.clone();
            let containers: Vec<String> = self.observed.containers.iter().map(|c| c.id.clone()).collect();
            self.begin(Work::Release, async move {
                Done::Cleared(slow_on_error(release::remains(&kit, &pod, &sandboxes, &containers).await).await)
            });
            return;
        }
        if self.pod.source == Source::File || !self.sent.is_settled(&self.compute_status(Timestamp::now())) {
            return;
        }
        self.observed.busy.releasing = true;
        let (kit, pod) = (self.kit.clone(), self.pod.clone());
        self.begin(Work::Release, async move {
            let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(kit.client.clone(), &pod.key.namespace);
            let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
            let parameters =
                DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
            let result = api.delete(&pod.key.name, &parameters).await.map(drop);
            if result.is_err() {
                tokio::time::sleep(RETRY).await;
            }
            Done::Deleted(result)
        });
    }
}

/// Gives whoever refused a moment before it is asked again.
async fn slow_on_error<T, E>(result: Result<T, E>) -> Result<T, E> {
    if result.is_err() {
        tokio::time::sleep(RETRY).await;
    }
    result
}
