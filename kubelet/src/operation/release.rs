//! Gives back what an ended pod held: volumes and cgroup first, then, once the API has let go of it, sandboxes, logs, directories.

use std::sync::Arc;

use super::chain;
use crate::kit::Kit;
use crate::pod::LocalPod;
use crate::sync::observed::Sandbox;

/// Unmounts and removes volumes and the pod's cgroup. What cannot be removed is told in the log and tried again by the caller.
///
/// # Errors
/// A sentence with what is left.
pub async fn resources(kit: Arc<Kit>, pod: Arc<LocalPod>) -> Result<(), String> {
    kit.access.references.release(&pod.uid);
    kit.access.tokens.forget(&pod.uid);
    let dir = kit.host.pod_dir(&pod.uid);
    let cgroups = kit.cgroups.clone();
    let work = move || {
        let mut problems = Vec::new();
        if let Err(error) = crate::volumes::teardown(&dir) {
            problems.push(chain(&error));
        }
        if let Err(error) = cgroups.remove(&pod) {
            problems.push(chain(&error));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(died) => Err(died.to_string()),
    }
}

/// Removes what the runtime and the log directory still hold of the pod.
///
/// # Errors
/// A sentence with what is left.
pub async fn remains(kit: &Kit, pod: &LocalPod, sandboxes: &[Sandbox], containers: &[String]) -> Result<(), String> {
    let mut problems = Vec::new();
    for id in containers {
        problems.extend(kit.runtime.remove_container(id).await.err().map(|e| e.to_string()));
    }
    for sandbox in sandboxes {
        problems.extend(kit.runtime.remove_sandbox(&sandbox.id).await.err().map(|e| e.to_string()));
    }
    let logs = kit.host.log_dir(pod);
    match tokio::task::spawn_blocking(move || runtime_linux::tree::remove(&logs)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => problems.push(chain(&error)),
        Err(died) => problems.push(died.to_string()),
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}
