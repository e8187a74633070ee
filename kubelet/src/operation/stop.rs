//! Ends one container: preStop hook, then the signal and, after the grace period, the kill; both share one grace period.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::start::{pod_ip, run_hook};
use crate::events::Severity;
use crate::handler::Target;
use crate::kit::Kit;
use crate::pod::LocalPod;
use crate::sync::observed::{Container, Sandbox};
use crate::sync::{GRACE_SECONDS_MIN, Kill};

#[derive(Debug)]
pub struct Stop {
    pub kit: Arc<Kit>,
    pub pod: Arc<LocalPod>,
    pub container: Container,
    pub sandbox: Option<Sandbox>,
    pub grace_seconds: i64,
    pub why: Kill,
    /// An earlier, slower kill of the same container runs its hook already.
    pub again: bool,
    /// The hook has been run, or is running, already.
    pub hook_ran: bool,
}

impl Stop {
    /// # Errors
    /// If the runtime could not end it.
    pub async fn run(self) -> Result<(), crate::cri::Error> {
        let name = self.container.name.clone();
        if !self.again {
            let text = match &self.why {
                Kill::Stopping | Kill::SandboxLost | Kill::Unwanted => format!("Stopping container {name}"),
                Kill::Unhealthy(why) => format!("Container {name} failed {why}, will be restarted"),
                Kill::Changed => format!("Container {name} definition changed, will be restarted"),
            };
            self.kit.recorder.pod(&self.pod, Some(&name), Severity::Normal, "Killing", text);
        }
        let began = Instant::now();
        if self.container.is_running() && self.why != Kill::SandboxLost && !self.again && !self.hook_ran {
            self.pre_stop().await;
        }
        let spent = i64::try_from(began.elapsed().as_secs()).unwrap_or(0);
        let left = (self.grace_seconds - spent).max(GRACE_SECONDS_MIN);
        self.kit.runtime.stop_container(&self.container.id, left).await
    }

    /// Runs the hook to its end, or to that of the grace period.
    pub async fn pre_stop(&self) {
        let member = self.pod.member(&self.container.name);
        let hook = member.and_then(|m| m.container.lifecycle.as_ref()).and_then(|l| l.pre_stop.clone());
        let (Some(member), Some(hook)) = (member, hook) else { return };
        let ip = self.sandbox.as_ref().map_or_else(String::new, |s| pod_ip(&self.kit, &self.pod, s));
        let target = Target {
            runtime: self.kit.runtime.clone(),
            container_id: self.container.id.clone(),
            container: member.container.clone(),
            ip,
        };
        let timeout = Duration::from_secs(u64::try_from(self.grace_seconds).unwrap_or(0));
        let failed = match tokio::time::timeout(timeout, run_hook(&target, hook, timeout)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("did not finish within {} s", timeout.as_secs()),
        };
        let text = format!("PreStopHook failed: {failed}");
        self.kit.recorder.pod(&self.pod, Some(&self.container.name), Severity::Warning, "FailedPreStopHook", text);
    }
}
