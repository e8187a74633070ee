//! What happens once after a start: pods that run already are found again, and what nobody wants any more is cleared away.
//!
//! ```text
//!   API's list heard --+
//!   manifests heard ---+--> orphans cleared --> every pod's task has looked --> told how many were found
//! ```
//! Invariant: nothing in the runtime is called an orphan before both sources have told all their pods.

use std::collections::BTreeMap;

use runtime_cri_api::v1 as cri;
use tokio::sync::watch;

use super::Pods;
use crate::cri::POD_UID;
use crate::pod::{CONFIG_SOURCE, LocalPod, Source};

/// What is known of the manifest directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifests {
    Awaited,
    /// All of them have been heard, or there is no directory.
    Known,
    /// The directory cannot be followed; pods that came from it are left alone.
    Unknown,
}

/// How far the takeover has come.
#[derive(Debug)]
pub struct Takeover {
    api_told: bool,
    manifests: Manifests,
    is_done: bool,
    /// Hears how many pods were found again, once.
    found: Option<watch::Sender<Option<usize>>>,
}

impl Takeover {
    #[must_use]
    pub fn new(manifests: Manifests, found: Option<watch::Sender<Option<usize>>>) -> Takeover {
        Takeover { api_told: false, manifests, is_done: false, found }
    }

    pub(super) fn api_told(&mut self) {
        self.api_told = true;
    }

    pub(super) fn manifests_told(&mut self, manifests: Manifests) {
        self.manifests = manifests;
    }

    fn is_due(&self) -> bool {
        self.api_told && self.manifests != Manifests::Awaited && !self.is_done
    }
}

impl Pods {
    /// Does what is due after a start; called whenever that may have become possible.
    pub(super) async fn take_over(&mut self) {
        if !self.takeover.is_due() {
            return;
        }
        match self.clear_orphans().await {
            Ok(()) => self.takeover.is_done = true,
            // When the runtime's events are connected again, this is called again.
            Err(error) => tracing::warn!(%error, "orphans not looked for: the runtime does not answer"),
        }
        self.tell_found();
    }

    /// Tells how many pods run, once each pod's task has looked at the runtime.
    fn tell_found(&mut self) {
        let Some(found) = self.takeover.found.take() else { return };
        let handles = self.registry.all();
        tokio::spawn(async move {
            let mut count = 0;
            for mut handle in handles {
                // A task that has ended found nothing.
                let seen = handle.snapshot.wait_for(|snapshot| snapshot.looked).await;
                count += usize::from(
                    seen.is_ok_and(|snapshot| snapshot.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready)),
                );
            }
            found.send_replace(Some(count));
        });
    }

    /// Pods that the runtime knows and nobody else: they were deleted while the kubelet was away.
    async fn clear_orphans(&mut self) -> Result<(), crate::cri::Error> {
        let mut orphans: BTreeMap<String, cri::PodSandbox> = BTreeMap::new();
        for sandbox in self.kit.runtime.sandboxes(None).await? {
            let Some(uid) = sandbox.labels.get(POD_UID).cloned() else { continue };
            let is_static = sandbox.annotations.get(CONFIG_SOURCE).is_some_and(|source| source == "file");
            let may_be_wanted = is_static && self.takeover.manifests == Manifests::Unknown;
            // The API has it, and it cannot be read: whoever could not be understood is not gone.
            let is_unread = self.hearing.contains(&uid);
            if self.registry.get(&uid).is_none() && !may_be_wanted && !is_unread {
                orphans.insert(uid, sandbox);
            }
        }
        for (uid, sandbox) in orphans {
            match orphan(&uid, &sandbox) {
                Some(pod) => {
                    tracing::info!(pod = %pod.key, uid, "orphaned pod is cleared away");
                    self.start(pod);
                    self.lose(&uid);
                }
                None => tracing::warn!(uid, "orphaned sandbox without a pod's name is left alone"),
            }
        }
        self.clear_directories().await;
        Ok(())
    }

    /// Directories and cgroups of pods that neither API nor runtime knows.
    async fn clear_directories(&self) {
        let root = self.kit.host.data_dir.join("pods");
        let Ok(mut entries) = tokio::fs::read_dir(&root).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if self.registry.get(&uid).is_some() || self.hearing.contains(&uid) {
                continue;
            }
            let (path, cgroups) = (entry.path(), self.kit.cgroups.clone());
            let work = move || {
                if let Err(error) = crate::volumes::teardown(&path) {
                    tracing::warn!(%error, "orphaned volumes not cleared");
                }
                if let Err(error) = cgroups.remove_by_uid(&uid) {
                    tracing::warn!(%error, "orphaned cgroup not cleared");
                }
            };
            // A failure has been logged inside.
            let _ = tokio::task::spawn_blocking(work).await;
        }
    }
}

/// As much of a pod as its sandbox tells; enough to end it.
fn orphan(uid: &str, sandbox: &cri::PodSandbox) -> Option<LocalPod> {
    let metadata = sandbox.metadata.as_ref()?;
    let grace: i64 = sandbox.annotations.get(crate::cri::POD_GRACE).and_then(|g| g.parse().ok()).unwrap_or(30);
    let object = serde_json::json!({
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": uid},
        "spec": {"containers": [], "terminationGracePeriodSeconds": grace},
    });
    LocalPod::parse(serde_json::from_value(object).ok()?, Source::Api).ok()
}
