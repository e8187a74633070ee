//! A container runtime in memory that speaks CRI over a unix socket: unary gRPC by hand, so that only the calls that matter are
//! here. Tests end containers, fail pulls and count what was asked.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use prost::Message;
use runtime_cri_api::v1 as cri;
use tokio::sync::broadcast;

#[derive(Default)]
struct World {
    next: u32,
    sandboxes: BTreeMap<String, cri::PodSandboxStatus>,
    containers: BTreeMap<String, (String, cri::ContainerStatus)>,
    images: Vec<String>,
    refuse_pull: bool,
    exec_exit: i32,
    calls: HashMap<String, usize>,
    /// A call that fails, whatever it is about.
    refused: Option<String>,
    cidr: String,
}

#[derive(Clone)]
pub(crate) struct Runtime {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn frame(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut out = vec![0];
    out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    Bytes::from(out)
}

fn trailers(code: u32, message: &str) -> Frame<Bytes> {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", code.into());
    map.insert("grpc-message", message.replace(' ', "%20").parse().unwrap());
    Frame::trailers(map)
}

type Reply = Result<Bytes, (u32, String)>;

fn ok(message: &impl Message) -> Reply {
    Ok(frame(message))
}

fn missing(what: &str) -> Reply {
    Err((5, format!("{what} not found")))
}

impl Runtime {
    pub(crate) fn serve(socket: &Path) -> Runtime {
        let runtime = Runtime { world: Arc::default(), events: broadcast::channel(256).0 };
        runtime.world.lock().unwrap().images.push("busybox:1".into());
        runtime.listen(socket);
        runtime
    }

    /// Answers on the socket for as long as the test's runtime lives.
    fn listen(&self, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let runtime = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let runtime = runtime.clone();
                let service = hyper::service::service_fn(move |request| {
                    let runtime = runtime.clone();
                    async move { Ok::<_, Infallible>(runtime.answer(request).await) }
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(async move { connection.serve_connection(TokioIo::new(stream), service).await });
            }
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let frames: UnsyncBoxBody<Bytes, Infallible> = if call == "GetContainerEvents" {
            let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
            StreamBody::new(events.filter_map(|e| async { e.ok().map(|e| Ok(Frame::data(frame(&e)))) })).boxed_unsync()
        } else {
            *self.world.lock().unwrap().calls.entry(call.clone()).or_default() += 1;
            let is_refused = self.world.lock().unwrap().refused.as_ref() == Some(&call);
            let answer = if is_refused { Err((2, "refused".into())) } else { self.unary(&call, body.slice(5..)) };
            let frames = match answer {
                Ok(bytes) => vec![Ok(Frame::data(bytes)), Ok(trailers(0, ""))],
                Err((code, message)) => vec![Ok(trailers(code, &message))],
            };
            StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
        };
        Response::builder().header("content-type", "application/grpc").body(frames).unwrap()
    }

    fn unary(&self, call: &str, body: Bytes) -> Reply {
        match call {
            "Version" => ok(&cri::VersionResponse {
                version: "v1".into(),
                runtime_name: "fake".into(),
                runtime_version: "1".into(),
                runtime_api_version: "v1".into(),
            }),
            "Status" => {
                let network = !self.world.lock().unwrap().cidr.is_empty();
                let condition =
                    |kind: &str, status| cri::RuntimeCondition { r#type: kind.into(), status, ..Default::default() };
                let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", network)];
                ok(&cri::StatusResponse { status: Some(cri::RuntimeStatus { conditions }), ..Default::default() })
            }
            "UpdateRuntimeConfig" => {
                let request = cri::UpdateRuntimeConfigRequest::decode(body).unwrap();
                self.world.lock().unwrap().cidr = request.runtime_config.unwrap().network_config.unwrap().pod_cidr;
                ok(&cri::UpdateRuntimeConfigResponse {})
            }
            "ListImages" => ok(&cri::ListImagesResponse::default()),
            "ImageStatus" | "PullImage" => self.image(call, body),
            "ExecSync" => {
                let exit_code = self.world.lock().unwrap().exec_exit;
                ok(&cri::ExecSyncResponse { exit_code, ..Default::default() })
            }
            _ if call.contains("Sandbox") => self.sandbox(call, body),
            _ => self.container(call, body),
        }
    }

    fn image(&self, call: &str, body: Bytes) -> Reply {
        let mut world = self.world.lock().unwrap();
        if call == "PullImage" {
            let name = cri::PullImageRequest::decode(body).unwrap().image.unwrap().image;
            if world.refuse_pull {
                return Err((2, "registry refuses".into()));
            }
            world.images.push(name.clone());
            return ok(&cri::PullImageResponse { image_ref: format!("sha256:{name}") });
        }
        let name = cri::ImageStatusRequest::decode(body).unwrap().image.unwrap().image;
        let image =
            world.images.contains(&name).then(|| cri::Image { id: format!("sha256:{name}"), ..Default::default() });
        ok(&cri::ImageStatusResponse { image, ..Default::default() })
    }

    fn sandbox(&self, call: &str, body: Bytes) -> Reply {
        let mut world = self.world.lock().unwrap();
        world.next += 1;
        match call {
            "RunPodSandbox" => {
                let config = cri::RunPodSandboxRequest::decode(body).unwrap().config.unwrap();
                let id = format!("s{}", world.next);
                let status = cri::PodSandboxStatus {
                    id: id.clone(),
                    metadata: config.metadata,
                    created_at: now(),
                    network: Some(cri::PodSandboxNetworkStatus {
                        ip: format!("10.42.0.{}", world.next),
                        ..Default::default()
                    }),
                    labels: config.labels,
                    annotations: config.annotations,
                    ..Default::default()
                };
                world.sandboxes.insert(id.clone(), status);
                ok(&cri::RunPodSandboxResponse { pod_sandbox_id: id })
            }
            "StopPodSandbox" => {
                let id = cri::StopPodSandboxRequest::decode(body).unwrap().pod_sandbox_id;
                if let Some(sandbox) = world.sandboxes.get_mut(&id) {
                    sandbox.state = cri::PodSandboxState::SandboxNotready as i32;
                }
                ok(&cri::StopPodSandboxResponse {})
            }
            "RemovePodSandbox" => {
                let id = cri::RemovePodSandboxRequest::decode(body).unwrap().pod_sandbox_id;
                world.sandboxes.remove(&id);
                world.containers.retain(|_, (sandbox, _)| *sandbox != id);
                ok(&cri::RemovePodSandboxResponse {})
            }
            "PodSandboxStatus" => {
                let id = cri::PodSandboxStatusRequest::decode(body).unwrap().pod_sandbox_id;
                match world.sandboxes.get(&id) {
                    Some(s) => ok(&cri::PodSandboxStatusResponse { status: Some(s.clone()), ..Default::default() }),
                    None => missing(&id),
                }
            }
            "ListPodSandbox" => {
                let wanted =
                    cri::ListPodSandboxRequest::decode(body).unwrap().filter.unwrap_or_default().label_selector;
                let items = world.sandboxes.values().filter(|s| wanted.iter().all(|(k, v)| s.labels.get(k) == Some(v)));
                let items = items.map(|s| cri::PodSandbox {
                    id: s.id.clone(),
                    metadata: s.metadata.clone(),
                    state: s.state,
                    created_at: s.created_at,
                    labels: s.labels.clone(),
                    annotations: s.annotations.clone(),
                    ..Default::default()
                });
                ok(&cri::ListPodSandboxResponse { items: items.collect() })
            }
            other => Err((12, other.to_owned())),
        }
    }

    fn container(&self, call: &str, body: Bytes) -> Reply {
        let mut world = self.world.lock().unwrap();
        world.next += 1;
        match call {
            "CreateContainer" => {
                let request = cri::CreateContainerRequest::decode(body).unwrap();
                let config = request.config.unwrap();
                let id = format!("c{}", world.next);
                let status = cri::ContainerStatus {
                    id: id.clone(),
                    metadata: config.metadata,
                    created_at: now(),
                    image: config.image.clone(),
                    image_ref: config.image.unwrap_or_default().image,
                    labels: config.labels,
                    annotations: config.annotations,
                    mounts: config.mounts,
                    // The environment, where a test can see it.
                    message: String::new(),
                    log_path: config
                        .envs
                        .iter()
                        .map(|e| format!("{}={};", e.key, String::from_utf8_lossy(&e.value)))
                        .collect(),
                    ..Default::default()
                };
                world.containers.insert(id.clone(), (request.pod_sandbox_id, status));
                ok(&cri::CreateContainerResponse { container_id: id })
            }
            "StartContainer" => {
                let id = cri::StartContainerRequest::decode(body).unwrap().container_id;
                let Some((_, status)) = world.containers.get_mut(&id) else { return missing(&id) };
                status.state = cri::ContainerState::ContainerRunning as i32;
                status.started_at = now();
                ok(&cri::StartContainerResponse {})
            }
            "StopContainer" => {
                let id = cri::StopContainerRequest::decode(body).unwrap().container_id;
                drop(world);
                self.end(&id, 137);
                ok(&cri::StopContainerResponse {})
            }
            "RemoveContainer" => {
                let id = cri::RemoveContainerRequest::decode(body).unwrap().container_id;
                world.containers.remove(&id);
                ok(&cri::RemoveContainerResponse {})
            }
            "ContainerStatus" => {
                let id = cri::ContainerStatusRequest::decode(body).unwrap().container_id;
                match world.containers.get(&id) {
                    Some((_, s)) => ok(&cri::ContainerStatusResponse { status: Some(s.clone()), ..Default::default() }),
                    None => missing(&id),
                }
            }
            "ListContainers" => {
                let wanted =
                    cri::ListContainersRequest::decode(body).unwrap().filter.unwrap_or_default().label_selector;
                let all =
                    world.containers.values().filter(|(_, c)| wanted.iter().all(|(k, v)| c.labels.get(k) == Some(v)));
                let containers = all.map(|(sandbox, c)| cri::Container {
                    id: c.id.clone(),
                    pod_sandbox_id: sandbox.clone(),
                    metadata: c.metadata.clone(),
                    state: c.state,
                    created_at: c.created_at,
                    labels: c.labels.clone(),
                    annotations: c.annotations.clone(),
                    ..Default::default()
                });
                ok(&cri::ListContainersResponse { containers: containers.collect() })
            }
            other => Err((12, other.to_owned())),
        }
    }

    /// The container's process ends, and the runtime says so.
    pub(crate) fn end(&self, id: &str, code: i32) {
        let event = {
            let mut world = self.world.lock().unwrap();
            let Some((sandbox, status)) = world.containers.get_mut(id) else { return };
            if status.state == cri::ContainerState::ContainerRunning as i32 {
                status.state = cri::ContainerState::ContainerExited as i32;
                status.finished_at = now();
                status.exit_code = code;
            }
            let sandbox = sandbox.clone();
            cri::ContainerEventResponse {
                container_id: id.into(),
                container_event_type: cri::ContainerEventType::ContainerStoppedEvent as i32,
                pod_sandbox_status: world.sandboxes.get(&sandbox).cloned(),
                ..Default::default()
            }
        };
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Ids of running containers of a name.
    pub(crate) fn running(&self, name: &str) -> Vec<String> {
        let world = self.world.lock().unwrap();
        let all = world.containers.values().map(|(_, c)| c);
        let named = all.filter(|c| c.metadata.as_ref().unwrap().name == name && c.state == 1);
        named.map(|c| c.id.clone()).collect()
    }

    pub(crate) fn environment(&self, id: &str) -> String {
        self.world.lock().unwrap().containers[id].1.log_path.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let world = self.world.lock().unwrap();
        world.sandboxes.is_empty() && world.containers.is_empty()
    }

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.world.lock().unwrap().calls.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn refuse_pulls(&self, refuse: bool) {
        self.world.lock().unwrap().refuse_pull = refuse;
    }

    pub(crate) fn refuse(&self, call: Option<&str>) {
        self.world.lock().unwrap().refused = call.map(str::to_owned);
    }

    pub(crate) fn answer_exec(&self, exit_code: i32) {
        self.world.lock().unwrap().exec_exit = exit_code;
    }
}

fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap()
}
