//! Deleting containers and ending the shim: killed at once, cleared away when the kernel is done with them.
//!
//! ```text
//!   Killed --its exit--> Emptied --no process in its cgroup--> cleared, answered
//!      \--------------------\------ LIMIT ------> answered with what is in the way; may be asked again
//! ```
//!
//! Invariant: nothing here waits. The exit comes from the loop, which reaps meanwhile: a first process of a PID namespace ends only once
//! every exec in it has been reaped; pid_namespaces(7).

use super::container::{chain, failed, failure, note, oci_failure};
use super::conversation::{About, Asked};
use super::server::Server;
use runtime_linux::{pidfd, tree};
use runtime_oci::ContainerId;
use runtime_shim::{ContainerState, Failure, FailureCode, Reply};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);
/// How soon to look again whether the cgroup is empty, which v1 has no event for; doubled each time up to the second.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// Whether a delete takes the exit record along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    Keep,
    Remove,
}

#[derive(Debug)]
pub(crate) struct Deletion {
    /// Nobody for those of a shutdown.
    askers: Vec<Asked>,
    records: Records,
    until: Instant,
    /// When to look again; only the exit brings it on before there is one.
    next: Option<Instant>,
    look: Duration,
}

impl Server {
    /// Answers now or later.
    pub(crate) fn delete_for(&mut self, asked: Asked, id: &str, force: bool) {
        match self.begin_deletion(id, force, Records::Remove) {
            Ok(true) => {
                if let Some(deletion) = self.deletions.get_mut(id) {
                    deletion.askers.push(asked);
                }
                self.advance_deletion(id, Instant::now());
            }
            Ok(false) => match self.defer_to_creation(asked, id) {
                true => self.abandon(id, Instant::now()),
                false => {
                    let cleared = self.clear_leftover(id);
                    self.answer(asked, cleared.map(|()| Reply::Done), None);
                }
            },
            Err(failure) => self.answer(asked, Err(failure), None),
        }
    }

    /// False where there is no such container.
    fn begin_deletion(&mut self, id: &str, force: bool, records: Records) -> Result<bool, Failure> {
        if !force && self.is_being_created(id) {
            return Err(failure(FailureCode::WrongState, format!("container {id} is being created")));
        }
        let Some(container) = self.containers.get(id) else { return Ok(false) };
        if container.exit.is_none() {
            if !force {
                container.expect("delete", ContainerState::Exited)?;
            }
            let what = format!("delete container {id}");
            match pidfd::send_signal(&container.pidfd, nix::libc::SIGKILL) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(failed(&what, &error)),
            }
        }
        let now = Instant::now();
        let until = now.checked_add(LIMIT).unwrap_or(now);
        let new = || Deletion { askers: Vec::new(), records, until, next: Some(now), look: FIRST_LOOK };
        self.deletions.entry(id.to_owned()).or_insert_with(new);
        Ok(true)
    }

    /// One that is being created is given up first, and its maker's failure is this one's answer.
    fn defer_to_creation(&mut self, asked: Asked, id: &str) -> bool {
        for talking in self.conversations.values_mut() {
            if let About::Create { coming, .. } = &mut talking.about
                && coming.id.as_str() == id
            {
                coming.deleters.push(asked);
                return true;
            }
        }
        false
    }

    /// What a creation left whose process could not be ended in time.
    fn clear_leftover(&self, id: &str) -> Result<(), Failure> {
        let Ok(id) = ContainerId::parse(id) else { return Ok(()) };
        runtime_oci::delete(&self.root, &id, runtime_oci::Deletion::Force)
            .map(drop)
            .map_err(|error| oci_failure(&format!("delete container {id}"), &error))
    }

    pub(crate) fn advance_deletion(&mut self, id: &str, now: Instant) {
        let Some(mut deletion) = self.deletions.remove(id) else { return };
        match self.clear(id, &mut deletion, now) {
            Ok(false) if now < deletion.until => {
                self.deletions.insert(id.to_owned(), deletion);
            }
            Ok(false) => {
                let message = format!("delete container {id}: it was killed but does not end; try again");
                self.deleted(deletion, &Err(failure(FailureCode::Failed, message)));
            }
            Ok(true) => self.deleted(deletion, &Ok(())),
            Err(error) => self.deleted(deletion, &Err(error)),
        }
    }

    fn deleted(&mut self, deletion: Deletion, result: &Result<(), Failure>) {
        if let Err(failure) = result {
            // Not ended, and to be asked again.
            for asked in self.shutdown.take().unwrap_or_default() {
                self.answer(asked, Err(failure.clone()), None);
            }
        }
        for asked in deletion.askers {
            self.answer(asked, result.clone().map(|()| Reply::Done), None);
        }
    }

    /// Goes on as far as it can; true once everything is gone.
    fn clear(&mut self, id: &str, deletion: &mut Deletion, now: Instant) -> Result<bool, Failure> {
        let what = format!("delete container {id}");
        let Some(container) = self.containers.get(id) else { return Ok(true) };
        if container.exit.is_none() {
            deletion.next = Some(deletion.until);
            return Ok(false);
        }
        if let Some(cgroup) = &container.cgroup {
            if let Err(error) = cgroup.kill() {
                // What is left is named by the removal that follows.
                note(&format!("{what}: {}", chain(&error)));
            }
            if !cgroup.try_remove().map_err(|error| failed(&what, &error))? {
                deletion.next = now.checked_add(deletion.look);
                deletion.look = deletion.look.saturating_mul(2).min(LAST_LOOK);
                return Ok(false);
            }
        }
        runtime_oci::delete(&self.root, &container.id, runtime_oci::Deletion::Force)
            .map_err(|error| oci_failure(&what, &error))?;
        if let Some(container) = self.containers.remove(id) {
            self.pids.retain(|_, target| target.id != id);
            container.close(&mut self.reactor);
        }
        if deletion.records == Records::Remove {
            self.unsaved.remove(id);
            let directory = self.dir.join("containers").join(id);
            tree::remove(&directory).map_err(|error| failed(&what, &error))?;
        }
        Ok(true)
    }

    pub(crate) fn deletion_due(&self) -> Option<Instant> {
        self.deletions.values().filter_map(|deletion| deletion.next.map(|next| next.min(deletion.until))).min()
    }

    pub(crate) fn advance_deletions(&mut self, now: Instant) {
        let is_due = |deletion: &Deletion| deletion.next.is_some_and(|next| next <= now) || deletion.until <= now;
        let due: Vec<String> =
            self.deletions.iter().filter(|(_, deletion)| is_due(deletion)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.advance_deletion(&id, now);
        }
    }

    /// Ends the shim once every container is gone. Records stay, which `cri` removes with the directory.
    pub(crate) fn shut_down_for(&mut self, asked: Asked, force: bool) {
        if !force && let Err(failure) = self.has_ended() {
            return self.answer(asked, Err(failure), None);
        }
        self.shutdown.get_or_insert_default().push(asked);
        let now = Instant::now();
        let creating: Vec<String> = self
            .conversations
            .values()
            .filter(|talking| matches!(talking.about, About::Create { .. }))
            .map(|talking| talking.about.container().to_owned())
            .collect();
        for id in creating {
            self.abandon(&id, now);
        }
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            if let Err(failure) = self.begin_deletion(&id, true, Records::Keep) {
                note(&failure.message);
            }
            self.advance_deletion(&id, now);
        }
    }

    fn has_ended(&self) -> Result<(), Failure> {
        let wrong = |id: &str| {
            let message = format!("container {id} has not ended: stop it first, or use force");
            Err(failure(FailureCode::WrongState, message))
        };
        if let Some(talking) = self.conversations.values().next() {
            return wrong(talking.about.container());
        }
        let alive = self.containers.values().find(|container| container.state() != ContainerState::Exited);
        alive.map_or(Ok(()), |container| wrong(container.id.as_str()))
    }

    /// After the last container: the pod itself.
    pub(crate) fn advance_shutdown(&mut self) {
        if self.shutdown.is_none() || !self.containers.is_empty() || !self.conversations.is_empty() {
            return;
        }
        let askers = self.shutdown.take().unwrap_or_default();
        if let Some(pause) = self.pod.pause.take() {
            pause.kill();
        }
        self.save_unsaved();
        let unpinned = runtime_shim::orphan::unpin(&self.dir).map_err(|error| failed("shut down", &error));
        self.ending = unpinned.is_ok();
        for asked in askers {
            self.answer(asked, unpinned.clone().map(|()| Reply::Done), None);
        }
    }
}
