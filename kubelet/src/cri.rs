//! The container runtime, reached over CRI v1: the one place of the kubelet that speaks gRPC. It turns messages into the facts of
//! sync/observed.rs and back; it decides nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use runtime_cri_api::v1 as cri;
use runtime_cri_api::v1::image_service_client::ImageServiceClient;
use runtime_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use runtime_linux::rooted::Root;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};

use crate::config::CriEndpoint;
use crate::sync::observed::{Container, Exit, Sandbox, State};

/// Labels and annotations of sandboxes and containers; the names are upstream's, so that other tools find their way.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Ours: names the requests and limits that the container was made with.
pub const CONTAINER_RESOURCES: &str = "sampan.dev/container.resources";
pub const CONTAINER_RESTARTS: &str = "io.kubernetes.container.restartCount";
pub const CONTAINER_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const CONTAINER_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Calls that do no more than look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Making and removing sandboxes and containers.
const ACT_TIMEOUT: Duration = Duration::from_secs(240);
/// No call waits longer. gRPC's header has room for eight digits of hours, and tonic panics on more.
const TIMEOUT_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// A message larger than this is not from a runtime.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A termination message is cut off here.
const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
const TERMINATION_LOG_BYTES_MAX: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the path of the runtime's socket {path} has no file name")]
    SocketPath { path: PathBuf },
    #[error("{}", message(.source))]
    Call { call: &'static str, source: Box<Status> },
}

impl Error {
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Call { source, .. } if source.code() == Code::NotFound)
    }

    /// The runtime did not answer at all.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Call { source, .. } if matches!(source.code(), Code::Unavailable | Code::Cancelled))
    }
}

/// What upstream prints of a gRPC error, so that events and scripts look the same.
fn message(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

fn call(call: &'static str) -> impl Fn(Status) -> Error {
    move |source| Error::Call { call, source: Box::new(source) }
}

fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout.min(TIMEOUT_MAX));
    request
}

/// Cheap to clone; all clones share one connection.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

impl Runtime {
    /// Does not connect yet: the first call does, and again after a loss.
    ///
    /// # Errors
    /// If the endpoint is no file's path.
    pub fn open(endpoint: &CriEndpoint) -> Result<Runtime, Error> {
        let channel = match endpoint {
            CriEndpoint::Channel(channel) => channel.clone(),
            CriEndpoint::Socket(path) => {
                if path.file_name().is_none() {
                    return Err(Error::SocketPath { path: path.clone() });
                }
                let path = path.clone();
                // The URI is only a name; every connection goes to the socket.
                Endpoint::from_static("http://cri.local")
                    .connect_timeout(Duration::from_secs(5))
                    .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { Ok::<_, std::io::Error>(TokioIo::new(dial(&path).await?)) }
                    }))
            }
        };
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Runtime { runtime, images })
    }

    pub async fn version(&self) -> Result<cri::VersionResponse, Error> {
        let message = cri::VersionRequest { version: "v1".into() };
        let answer = self.runtime.clone().version(request(message, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("Version"))?.into_inner())
    }

    pub async fn status(&self) -> Result<cri::StatusResponse, Error> {
        let message = cri::StatusRequest { verbose: false };
        Ok(self.runtime.clone().status(request(message, LOOK_TIMEOUT)).await.map_err(call("Status"))?.into_inner())
    }

    pub async fn set_pod_cidr(&self, pod_cidr: String) -> Result<(), Error> {
        let runtime_config = Some(cri::RuntimeConfig { network_config: Some(cri::NetworkConfig { pod_cidr }) });
        let message = cri::UpdateRuntimeConfigRequest { runtime_config };
        self.runtime
            .clone()
            .update_runtime_config(request(message, LOOK_TIMEOUT))
            .await
            .map_err(call("UpdateRuntimeConfig"))?;
        Ok(())
    }

    pub async fn events(&self) -> Result<Streaming<cri::ContainerEventResponse>, Error> {
        let answer = self.runtime.clone().get_container_events(cri::GetEventsRequest {}).await;
        Ok(answer.map_err(call("GetContainerEvents"))?.into_inner())
    }

    /// Every sandbox, or those of one pod.
    pub async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<cri::PodSandbox>, Error> {
        let label_selector: HashMap<String, String> =
            pod_uid.map(|uid| (POD_UID.into(), uid.into())).into_iter().collect();
        let filter = Some(cri::PodSandboxFilter { label_selector, ..cri::PodSandboxFilter::default() });
        let answer =
            self.runtime.clone().list_pod_sandbox(request(cri::ListPodSandboxRequest { filter }, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ListPodSandbox"))?.into_inner().items)
    }

    pub async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<cri::Container>, Error> {
        let label_selector: HashMap<String, String> =
            pod_uid.map(|uid| (POD_UID.into(), uid.into())).into_iter().collect();
        let filter = Some(cri::ContainerFilter { label_selector, ..cri::ContainerFilter::default() });
        let answer =
            self.runtime.clone().list_containers(request(cri::ListContainersRequest { filter }, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ListContainers"))?.into_inner().containers)
    }

    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<String, Error> {
        let message = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let answer = self.runtime.clone().run_pod_sandbox(request(message, ACT_TIMEOUT)).await;
        Ok(answer.map_err(call("RunPodSandbox"))?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        let message = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_done(
            self.runtime.clone().stop_pod_sandbox(request(message, ACT_TIMEOUT)).await.map_err(call("StopPodSandbox")),
        )
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let message = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_done(
            self.runtime
                .clone()
                .remove_pod_sandbox(request(message, ACT_TIMEOUT))
                .await
                .map_err(call("RemovePodSandbox")),
        )
    }

    pub async fn create_container(&self, message: cri::CreateContainerRequest) -> Result<String, Error> {
        let answer = self.runtime.clone().create_container(request(message, ACT_TIMEOUT)).await;
        Ok(answer.map_err(call("CreateContainer"))?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let message = cri::StartContainerRequest { container_id: id.into() };
        self.runtime.clone().start_container(request(message, ACT_TIMEOUT)).await.map_err(call("StartContainer"))?;
        Ok(())
    }

    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), Error> {
        let message = cri::StopContainerRequest { container_id: id.into(), timeout: grace_seconds };
        let timeout = ACT_TIMEOUT.saturating_add(Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0)));
        gone_is_done(
            self.runtime.clone().stop_container(request(message, timeout)).await.map_err(call("StopContainer")),
        )
    }

    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let message = cri::RemoveContainerRequest { container_id: id.into() };
        gone_is_done(
            self.runtime.clone().remove_container(request(message, ACT_TIMEOUT)).await.map_err(call("RemoveContainer")),
        )
    }

    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Error> {
        let message = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.clone().container_status(request(message, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ContainerStatus"))?.into_inner().status.unwrap_or_default())
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let message = cri::ReopenContainerLogRequest { container_id: id.into() };
        self.runtime
            .clone()
            .reopen_container_log(request(message, LOOK_TIMEOUT))
            .await
            .map_err(call("ReopenContainerLog"))?;
        Ok(())
    }

    /// Runs a command to its end; a command that outlives `timeout` is the runtime's `DeadlineExceeded`.
    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, Error> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let message = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: seconds };
        let answer =
            self.runtime.clone().exec_sync(request(message, timeout.saturating_add(Duration::from_secs(2)))).await;
        Ok(answer.map_err(call("ExecSync"))?.into_inner())
    }

    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Error> {
        let image = Some(cri::ImageSpec { image: image.into(), ..cri::ImageSpec::default() });
        let message = cri::ImageStatusRequest { image, verbose: false };
        let answer = self.images.clone().image_status(request(message, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ImageStatus"))?.into_inner().image)
    }

    /// Without a deadline: how long a pull may take is the runtime's to know. Dropping the future gives it up.
    pub async fn pull(&self, message: cri::PullImageRequest) -> Result<String, Error> {
        Ok(self.images.clone().pull_image(message).await.map_err(call("PullImage"))?.into_inner().image_ref)
    }

    pub async fn list_images(&self) -> Result<Vec<cri::Image>, Error> {
        let answer =
            self.images.clone().list_images(request(cri::ListImagesRequest { filter: None }, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ListImages"))?.into_inner().images)
    }

    pub async fn remove_image(&self, id: &str) -> Result<(), Error> {
        let image = Some(cri::ImageSpec { image: id.into(), ..cri::ImageSpec::default() });
        let answer = self.images.clone().remove_image(request(cri::RemoveImageRequest { image }, ACT_TIMEOUT)).await;
        gone_is_done(answer.map_err(call("RemoveImage")))
    }

    pub async fn image_filesystems(&self) -> Result<cri::ImageFsInfoResponse, Error> {
        let answer = self.images.clone().image_fs_info(request(cri::ImageFsInfoRequest {}, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ImageFsInfo"))?.into_inner())
    }

    pub async fn writable_layer_bytes(&self, id: &str) -> Result<u64, Error> {
        let message = cri::ContainerStatsRequest { container_id: id.into() };
        let answer = self.runtime.clone().container_stats(request(message, LOOK_TIMEOUT)).await;
        let stats = answer.map_err(call("ContainerStats"))?.into_inner().stats;
        Ok(stats.and_then(|s| s.writable_layer?.used_bytes).map_or(0, |bytes| bytes.value))
    }

    pub async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>, Error> {
        let message = cri::ListContainerStatsRequest { filter: None };
        let answer = self.runtime.clone().list_container_stats(request(message, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ListContainerStats"))?.into_inner().stats)
    }

    pub async fn sandbox_stats(&self) -> Result<Vec<cri::PodSandboxStats>, Error> {
        let message = cri::ListPodSandboxStatsRequest { filter: None };
        let answer = self.runtime.clone().list_pod_sandbox_stats(request(message, LOOK_TIMEOUT)).await;
        Ok(answer.map_err(call("ListPodSandboxStats"))?.into_inner().stats)
    }

    /// Everything the runtime holds of one pod, newest first. `known` are containers seen before: one that has ended is not
    /// asked for again, for it cannot change.
    pub async fn observe(
        &self,
        pod_uid: &str,
        known: &[Container],
        place: &Place,
    ) -> Result<(Vec<Sandbox>, Vec<Container>), Error> {
        let (list, containers) = tokio::try_join!(self.sandboxes(Some(pod_uid)), self.containers(Some(pod_uid)))?;
        let mut sandboxes = Vec::new();
        for sandbox in list {
            let message = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
            let answer = self.runtime.clone().pod_sandbox_status(request(message, LOOK_TIMEOUT)).await;
            match answer.map_err(call("PodSandboxStatus")) {
                Ok(answer) => sandboxes.extend(answer.into_inner().status.map(self::sandbox)),
                // Removed since the list was made.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        let mut found = Vec::new();
        for listed in containers {
            if let Some(ended) = known.iter().find(|c| c.id == listed.id && c.exit().is_some()) {
                found.push(ended.clone());
                continue;
            }
            match self.container_status(&listed.id).await {
                Ok(status) => found.push(container(status, listed.pod_sandbox_id, place).await),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.attempt)));
        Ok((sandboxes, found))
    }
}

fn gone_is_done<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Connects by way of the directory, for a path may be longer than `sun_path`; unix(7).
pub(crate) async fn dial(path: &Path) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "socket path without a directory"));
    };
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)).await
}

/// A CRI time in nanoseconds; 0 means never.
fn time(nanos: i64) -> Option<Timestamp> {
    if nanos <= 0 { None } else { Timestamp::from_nanosecond(i128::from(nanos)).ok() }
}

fn sandbox(status: cri::PodSandboxStatus) -> Sandbox {
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Sandbox {
        ready: status.state == cri::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.map_or(0, |m| m.attempt),
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        created_at: time(status.created_at).unwrap_or_default(),
        id: status.id,
    }
}

/// Where the kubelet's own files of a pod are.
#[derive(Clone, Debug)]
pub struct Place {
    pub pod_dir: PathBuf,
    pub log_dir: PathBuf,
}

async fn container(status: cri::ContainerStatus, sandbox_id: String, place: &Place) -> Container {
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => {
            State::Running { since: time(status.started_at).or_else(|| time(status.created_at)).unwrap_or_default() }
        }
        Ok(cri::ContainerState::ContainerExited) => State::Exited(Exit {
            code: status.exit_code,
            started_at: time(status.started_at),
            finished_at: time(status.finished_at).or_else(|| time(status.created_at)).unwrap_or_default(),
            reason: status.reason.clone(),
            message: termination_message(&status, place).await,
        }),
        _ => State::Unknown,
    };
    let metadata = status.metadata.unwrap_or_default();
    let label = |name: &str| status.labels.get(name).or_else(|| status.annotations.get(name)).cloned();
    let image = status.image.unwrap_or_default();
    let linux = status.user.and_then(|u| u.linux);
    Container {
        name: label(CONTAINER_NAME).unwrap_or(metadata.name),
        attempt: metadata.attempt,
        hash: label(CONTAINER_HASH).unwrap_or_default(),
        resources_hash: label(CONTAINER_RESOURCES).unwrap_or_default(),
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        image_ref: status.image_ref,
        created_at: time(status.created_at).unwrap_or_default(),
        id: status.id,
        sandbox_id,
        state,
        user: linux.map(|u| (u.uid, u.gid, u.supplemental_groups)),
    }
}

/// What the container left in its termination message file; if it failed and left nothing, by policy the end of its log. Only files
/// that the kubelet and the runtime have made are opened, whatever the container has mounted over their places.
async fn termination_message(status: &cri::ContainerStatus, place: &Place) -> String {
    let annotation = |name: &str| status.annotations.get(name).map(String::as_str);
    if annotation(CONTAINER_MESSAGE_PATH).is_none() {
        return status.message.clone();
    }
    let metadata = status.metadata.clone().unwrap_or_default();
    let name = status.labels.get(CONTAINER_NAME).cloned().unwrap_or(metadata.name);
    let file = Path::new("containers").join(name).join(metadata.attempt.to_string());
    let mut text = head_of_file(place.pod_dir.clone(), file).await;
    if text.is_empty() && annotation(CONTAINER_MESSAGE_POLICY) == Some("FallbackToLogsOnError") && status.exit_code != 0
    {
        let log = Path::new(&status.log_path);
        if log.starts_with(&place.log_dir) {
            text = crate::server::logs::tail_text(log, 80, TERMINATION_LOG_BYTES_MAX).await;
        }
    }
    let whole = match (text.is_empty(), status.message.is_empty()) {
        (true, _) => status.message.clone(),
        (false, true) => text,
        (false, false) => format!("{}: {text}", status.message),
    };
    whole.chars().take(TERMINATION_MESSAGE_BYTES_MAX).collect()
}

async fn head_of_file(root: PathBuf, file: PathBuf) -> String {
    use std::io::Read;
    let read = move || {
        let file = Root::open_dir(&root).map_err(std::io::Error::from)?.open_plain_regular(&file)?;
        let mut bytes = Vec::new();
        file.take(TERMINATION_MESSAGE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(exit_code: i32, log_path: &Path) -> cri::ContainerStatus {
        cri::ContainerStatus {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 1 }),
            exit_code,
            log_path: log_path.to_string_lossy().into_owned(),
            annotations: [
                (CONTAINER_MESSAGE_PATH.to_owned(), "/dev/termination-log".to_owned()),
                (CONTAINER_MESSAGE_POLICY.to_owned(), "FallbackToLogsOnError".to_owned()),
            ]
            .into(),
            // What a subPath has put over the message's place.
            mounts: vec![cri::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: "/etc/hostname".into(),
                ..cri::Mount::default()
            }],
            ..cri::ContainerStatus::default()
        }
    }

    #[tokio::test]
    async fn a_termination_message_is_the_kubelets_own_file_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { pod_dir: dir.path().join("pod"), log_dir: dir.path().join("log") };
        let file = place.pod_dir.join("containers/c/1");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::create_dir_all(&place.log_dir).unwrap();
        let log = place.log_dir.join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:01Z stdout F from the log\n").unwrap();
        std::fs::write(&file, "x".repeat(10_000)).unwrap();
        assert_eq!(termination_message(&status(1, &log), &place).await.len(), TERMINATION_MESSAGE_BYTES_MAX);
        std::fs::remove_file(&file).unwrap();
        // A FIFO that nobody writes, a link out of the pod: nobody waits, nothing is shown.
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(termination_message(&status(0, &log), &place).await, "");
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        assert_eq!(termination_message(&status(0, &log), &place).await, "");
        assert_eq!(termination_message(&status(1, &log), &place).await, "from the log\n");
        assert_eq!(termination_message(&status(1, Path::new("/etc/hostname")), &place).await, "");
    }
}
