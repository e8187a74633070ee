//! Starts one container: image, configuration, creation, start, postStart hook. May be given up until it is created.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime_cri_api::v1 as cri;
use tokio_util::sync::CancellationToken;

use super::{Failure, chain};
use crate::container_config::{self, Inputs};
use crate::env::{self, Sources};
use crate::events::Severity;
use crate::handler::{Question, Target};
use crate::kit::Kit;
use crate::pod::{LocalPod, Member};
use crate::sync::observed::Sandbox;
use crate::volumes::{self, Prepared};
use crate::{image, profiles, sandbox_config};

/// A postStart hook has no timeout of its own; this is the end of patience.
const HOOK_TIMEOUT: Duration = Duration::from_secs(600);

/// Everything one start needs.
#[derive(Debug)]
pub struct Start {
    pub kit: Arc<Kit>,
    pub pod: Arc<LocalPod>,
    pub name: String,
    pub attempt: u32,
    pub sandbox: Sandbox,
    pub prepared: Prepared,
    /// Id of the container that an ephemeral one looks at.
    pub target: Option<String>,
    pub cancel: CancellationToken,
}

impl Start {
    /// # Errors
    /// With the reason that the waiting container shows.
    pub async fn run(self) -> Result<(), Failure> {
        let Some(member) = self.pod.member(&self.name) else { return Ok(()) };
        let config = sandbox_config::build(&self.pod, self.sandbox.attempt, &self.kit.host);
        let prepared = tokio::select! {
            prepared = self.prepare(member, &config) => prepared?,
            () = self.cancel.cancelled() => return Err(Failure::new("ContainerCreating", "the pod ends")),
        };
        self.launch(member, prepared, config).await
    }

    fn say(&self, severity: Severity, reason: &str, text: String) {
        self.kit.recorder.pod(&self.pod, Some(&self.name), severity, reason, text);
    }

    async fn prepare(&self, member: &Member, config: &cri::PodSandboxConfig) -> Result<cri::ContainerConfig, Failure> {
        let found = image::ensure(&self.kit, &self.pod, member, config).await?;
        let failed = |text: String| {
            self.say(Severity::Warning, "Failed", format!("Error: {text}"));
            Failure::new("CreateContainerConfigError", text)
        };
        let ips = if self.pod.host_network() { self.kit.facts.ips.clone() } else { self.sandbox.ips.clone() };
        let sources = self.sources(member, ips.clone()).await.map_err(|e| failed(chain(&e)))?;
        let dir = self.kit.host.pod_dir(&self.pod.uid);
        let variables = env::build(&self.pod, &member.container, &sources).map_err(|e| failed(e.to_string()))?;
        let mounts = volumes::mounts(&member.container, &self.prepared, &dir, &variables)
            .await
            .map_err(|e| failed(chain(&e)))?;
        self.check_profile(member).await.map_err(failed)?;
        let files = self.files(member, &dir, &ips);
        let (hosts_file, message_file) = files.await.map_err(|e| failed(format!("write the pod's own files: {e}")))?;
        let inputs = Inputs {
            attempt: self.attempt,
            environment: &sources,
            image: &found.image,
            image_ref: found.reference.clone(),
            mounts: &mounts,
            hosts_file: Some(hosts_file),
            message_file,
            target: self.target.clone(),
            data_dir: self.kit.host.data_dir.clone(),
            memory_capacity: self.kit.memory_capacity_bytes,
            selinux: self.kit.host.selinux,
        };
        container_config::build(&self.pod, member, &inputs).map_err(|e| failed(chain(&e)))
    }

    async fn check_profile(&self, member: &Member) -> Result<(), String> {
        let (pod, container, data_dir) = (self.pod.clone(), member.container.clone(), self.kit.host.data_dir.clone());
        let check = move || profiles::check_container(&pod, &container, &data_dir).map_err(|e| chain(&e));
        tokio::task::spawn_blocking(check).await.unwrap_or_else(|died| Err(died.to_string()))
    }

    async fn sources(&self, member: &Member, ips: Vec<String>) -> Result<Sources, crate::references::Error> {
        let mut sources = self.kit.sources(ips);
        let (maps, secrets) = env::references(&member.container);
        let references = &self.kit.access.references;
        let namespace = &self.pod.key.namespace;
        for name in maps {
            let found = references.config_map(namespace, &name, &self.pod.uid).await?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = references.secret(namespace, &name, &self.pod.uid).await?;
            sources.secrets.insert(name, found);
        }
        Ok(sources)
    }

    /// The managed hosts file and an empty termination message.
    async fn files(&self, member: &Member, dir: &Path, ips: &[String]) -> std::io::Result<(PathBuf, PathBuf)> {
        let host_file = if self.pod.host_network() {
            tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default()
        } else {
            String::new()
        };
        let text = sandbox_config::hosts_file(&self.pod, ips, &self.kit.host.cluster_domain, &host_file);
        let (dir, name, attempt) = (dir.to_owned(), member.container.name.clone(), self.attempt.to_string());
        let write = move || {
            let hosts = dir.join("etc-hosts");
            let messages = dir.join("containers").join(name);
            std::fs::create_dir_all(&messages)?;
            // In place: containers of the pod that run have this file mounted.
            write_plain(&hosts, &text, 0o644)?;
            let message = messages.join(attempt);
            // Whatever user the container has must be able to write it.
            write_plain(&message, "", 0o666)?;
            Ok((hosts, message))
        };
        tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
    }

    async fn launch(
        &self,
        member: &Member,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<(), Failure> {
        let failed = |reason: &'static str, text: String| {
            self.say(Severity::Warning, "Failed", format!("Error: {text}"));
            Failure::new(reason, text)
        };
        let logs = Path::new(&sandbox_config.log_directory).join(&self.name);
        tokio::fs::create_dir_all(&logs)
            .await
            .map_err(|e| failed("CreateContainerError", format!("create {}: {e}", logs.display())))?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.kit.runtime.create_container(request).await;
        let id = created.map_err(|e| failed("CreateContainerError", e.to_string()))?;
        self.say(Severity::Normal, "Created", format!("Created container: {}", self.name));
        if let Err(error) = self.kit.runtime.start_container(&id).await {
            return Err(failed("RunContainerError", error.to_string()));
        }
        self.say(Severity::Normal, "Started", format!("Started container {}", self.name));
        self.post_start(member, &id).await
    }

    async fn post_start(&self, member: &Member, id: &str) -> Result<(), Failure> {
        let hook = member.container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
        let Some(hook) = hook else { return Ok(()) };
        let target = Target {
            runtime: self.kit.runtime.clone(),
            container_id: id.to_owned(),
            container: member.container.clone(),
            ip: pod_ip(&self.kit, &self.pod, &self.sandbox),
        };
        let ran = run_hook(&target, hook, HOOK_TIMEOUT);
        let answer = tokio::select! {
            answer = ran => answer,
            () = self.cancel.cancelled() => return Ok(()),
        };
        let Err(error) = answer else { return Ok(()) };
        let text = format!("PostStartHook failed: {error}");
        self.say(Severity::Warning, "FailedPostStartHook", text.clone());
        self.say(Severity::Normal, "Killing", "FailedPostStartHook".into());
        let grace = self.pod.grace_seconds().max(crate::sync::GRACE_SECONDS_MIN);
        if let Err(error) = self.kit.runtime.stop_container(id, grace).await {
            tracing::warn!(pod = %self.pod.key, container = self.name, %error, "container with a failed hook not stopped");
        }
        Err(Failure::new("PostStartHookError", text))
    }
}

/// Writes a file of the kubelet's own, through no link, with this mode whatever the umask.
fn write_plain(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags.bits()).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())
}

/// Where questions about the pod go that name no host.
#[must_use]
pub fn pod_ip(kit: &Kit, pod: &LocalPod, sandbox: &Sandbox) -> String {
    let first = if pod.host_network() { kit.facts.ips.first() } else { sandbox.ips.first() };
    first.cloned().unwrap_or_else(|| "127.0.0.1".into())
}

/// Runs one lifecycle hook to its end.
///
/// # Errors
/// What the handler answered.
pub async fn run_hook(
    target: &Target,
    hook: k8s_openapi::api::core::v1::LifecycleHandler,
    timeout: Duration,
) -> Result<(), crate::handler::Error> {
    if let Some(sleep) = hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(timeout)).await;
        return Ok(());
    }
    let question = hook.exec.map(Question::Exec).or(hook.http_get.map(Question::HttpGet));
    match question {
        Some(question) => target.ask(&question, timeout).await,
        // tcpSocket hooks have never done anything upstream; the field is kept for old manifests.
        None => Ok(()),
    }
}
