//! Makes the pod's cgroup, log directory and sandbox.

use std::sync::Arc;

use super::{Failure, chain};
use crate::events::Severity;
use crate::kit::Kit;
use crate::pod::LocalPod;
use crate::{profiles, sandbox_config};

/// # Errors
/// With the reason `FailedCreatePodSandBox`, which is also an event.
pub async fn create(kit: Arc<Kit>, pod: Arc<LocalPod>, attempt: u32) -> Result<(), Failure> {
    let failed = |what: &str| {
        let text = format!("Failed to create pod sandbox: {what}");
        kit.recorder.pod(&pod, None, Severity::Warning, "FailedCreatePodSandBox", text.clone());
        Failure::new("FailedCreatePodSandBox", text)
    };
    let config = sandbox_config::build(&pod, attempt, &kit.host);
    let logs = config.log_directory.clone();
    let (cgroups, owner, data_dir) = (kit.cgroups.clone(), pod.clone(), kit.host.data_dir.clone());
    let prepare = move || -> Result<(), String> {
        profiles::check_pod(&owner, &data_dir).map_err(|e| chain(&e))?;
        std::fs::create_dir_all(&logs).map_err(|e| format!("create {logs}: {e}"))?;
        cgroups.ensure(&owner).map_err(|e| chain(&e))
    };
    match tokio::task::spawn_blocking(prepare).await {
        Ok(Ok(())) => {}
        Ok(Err(what)) => return Err(failed(&what)),
        Err(died) => return Err(failed(&died.to_string())),
    }
    let handler = pod.spec.runtime_class_name.clone().unwrap_or_default();
    kit.runtime.run_sandbox(config, handler).await.map(drop).map_err(|e| failed(&e.to_string()))
}
