//! The requests that tests make, short.

use runtime_cri_api::v1::*;

use super::{House, IMAGE, Runtime};

/// As the kubelet asks for it; unsaid, the interface means one PID namespace for the pod.
fn own_pids() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

impl House {
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.path(&format!("logs/{name}")).display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.43.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pids()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn run_pod(&self, runtime: &mut Runtime, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub(crate) async fn remove_pod(&self, runtime: &mut Runtime, id: &str) {
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.unwrap();
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() }).await.unwrap();
    }

    pub(crate) fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(ToString::to_string).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(own_pids()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn create(
        &self,
        runtime: &mut Runtime,
        pod: &str,
        config: &ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request =
            CreateContainerRequest { pod_sandbox_id: pod.into(), config: Some(config.clone()), sandbox_config: None };
        Ok(runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Created and started.
    pub(crate) async fn start(&self, runtime: &mut Runtime, pod: &str, config: &ContainerConfig) -> String {
        let id = self.create(runtime, pod, config).await.unwrap();
        runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        id
    }

    pub(crate) async fn status(&self, runtime: &mut Runtime, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub(crate) async fn wait_exit(&self, runtime: &mut Runtime, id: &str) -> ContainerStatus {
        super::eventually("the container ends", || {
            let mut runtime = runtime.clone();
            async move { self.status(&mut runtime, id).await.state() == ContainerState::ContainerExited }
        })
        .await;
        self.status(runtime, id).await
    }

    /// Exit code and both outputs of a command.
    pub(crate) async fn exec(&self, runtime: &mut Runtime, id: &str, command: &[&str]) -> (i32, String, String) {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        let answer = runtime.exec_sync(request).await.unwrap().into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (answer.exit_code, text(&answer.stdout), text(&answer.stderr))
    }

    pub(crate) async fn address(&self, runtime: &mut Runtime, pod: &str) -> String {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: false };
        let status = runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
        status.network.unwrap().ip
    }

    /// The messages of a container's log, without times and tags.
    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        let text = std::fs::read_to_string(self.path(&format!("logs/{pod}/{container}.log"))).unwrap_or_default();
        text.lines().map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap_or_default())).collect()
    }
}
