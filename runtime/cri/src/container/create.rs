//! CreateContainer: intent on disk, then the snapshot, the OCI configuration and the shim's create; then the reply.
//!
//! A failure at any step undoes all steps; a crash leaves the announced record, which `adopt` undoes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use runtime_cri_api::v1::{
    ContainerConfig, ContainerEventType, CreateContainerRequest, CreateContainerResponse, NamespaceMode,
    PodSandboxState,
};
use runtime_images::Image;
use runtime_linux::mount::Overlay;
use runtime_shim::Create;

use crate::facts;
use crate::node::{Container, Node, Sandbox, fresh_id, now_ns};
use crate::record::{ContainerRecord, SandboxRecord, VERSION};
use crate::spec::{self, Inputs, host::Host};
use crate::status::{Error, chain};

pub(crate) fn run(node: &Arc<Node>, request: CreateContainerRequest) -> Result<CreateContainerResponse, Error> {
    let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let metadata = config.metadata.clone().ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name", "is empty"));
    }
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let (pod, shim) = sandbox.facts();
    if facts::sandbox_state(&pod, shim) != PodSandboxState::SandboxReady {
        let (kind, id) = ("pod sandbox", sandbox.id.clone());
        return Err(Error::WrongState { kind, id, state: "not ready", operation: "create a container in" });
    }
    let image = find_image(node, &config)?;
    let record = announce(node, &pod, config, &image)?;
    let container = node.announce_container(&sandbox, record)?;
    let work = container.work();
    if let Err(error) = make(node, &container, &pod, &image) {
        if let Err(error) = super::remove::erase(node, &container) {
            tracing::error!(container = %container.id, error = %chain(&error), "half-made container left");
        }
        return Err(error);
    }
    drop(work);
    node.tell(&sandbox, &container.id, ContainerEventType::ContainerCreatedEvent);
    Ok(CreateContainerResponse { container_id: container.id.clone() })
}

fn find_image(node: &Node, config: &ContainerConfig) -> Result<Image, Error> {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid("config.image", "is missing"));
    }
    node.images.resolve(name).ok_or_else(|| Error::NotFound { kind: "image", id: name.to_owned() })
}

fn announce(
    node: &Node,
    pod: &SandboxRecord,
    config: ContainerConfig,
    image: &Image,
) -> Result<ContainerRecord, Error> {
    let id = fresh_id();
    let metadata = config.metadata.clone().unwrap_or_default();
    let owner = pod.config.metadata.clone().unwrap_or_default();
    let image_config = image.config.config().clone().unwrap_or_default();
    let stop_signal = spec::signal::stop_signal(config.stop_signal(), image_config.stop_signal().as_deref())
        .map_err(|name| Error::invalid("stop_signal", format!("{name:?} is no signal")))?;
    let parent = pod
        .config
        .linux
        .as_ref()
        .map(|linux| linux.cgroup_parent.clone())
        .filter(|parent| !parent.is_empty())
        .or_else(|| super::own_cgroup(&node.config, pod))
        .unwrap_or_default();
    Ok(ContainerRecord {
        version: VERSION,
        name: format!("{}_{}_{}_{}_{}", metadata.name, owner.name, owner.namespace, owner.uid, metadata.attempt),
        sandbox_id: pod.id.clone(),
        image_id: image.id.to_string(),
        image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        log_path: log_path(pod, &config)?,
        stop_signal,
        user: None,
        resources: Some(spec::container_resources(&config)),
        cgroup: format!("/{}/{id}", parent.trim_matches('/')),
        config,
        id,
        created_at_ns: None,
        started_at_ns: None,
        exit: None,
    })
}

/// The container's log below its pod's directory; no path, no log.
fn log_path(pod: &SandboxRecord, config: &ContainerConfig) -> Result<Option<PathBuf>, Error> {
    if pod.config.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&config.log_path);
    let inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !inside {
        return Err(Error::invalid("config.log_path", format!("{:?} leaves the pod's directory", config.log_path)));
    }
    Ok(Some(Path::new(&pod.config.log_directory).join(path)))
}

fn make(node: &Arc<Node>, container: &Container, pod: &SandboxRecord, image: &Image) -> Result<(), Error> {
    let record = container.facts();
    let overlay = node.tokio.block_on(node.images.prepare(&record.image_id, &container.id))?;
    let (spec, user) = configure(node, container, pod, image, &overlay)?;
    let bundle = super::bundle(container);
    fs::create_dir_all(&bundle).map_err(Error::io("make", &bundle))?;
    let path = bundle.join("config.json");
    let text = serde_json::to_vec(&spec).map_err(std::io::Error::from).map_err(Error::io("encode", &path))?;
    fs::write(&path, text).map_err(Error::io("write", &path))?;
    if let Some(parent) = record.log_path.as_deref().and_then(Path::parent) {
        fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    let created = container.sandbox.shim()?.create(Create {
        id: container.id.clone(),
        bundle,
        terminal: record.config.tty,
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        log_path: record.log_path,
        rootfs: Some(overlay),
    })?;
    for warning in created.warnings {
        tracing::warn!(container = %container.id, warning, "not as asked");
    }
    node.change_container(container, |facts| {
        facts.created_at_ns = Some(now_ns());
        facts.user = Some(user.told());
    })
}

fn configure(
    node: &Node,
    container: &Container,
    pod: &SandboxRecord,
    image: &Image,
    overlay: &Overlay,
) -> Result<(Spec, spec::user::User), Error> {
    let record = container.facts();
    let security = spec::security(&record.config);
    let image_user = image.config.config().as_ref().and_then(|config| config.user().clone());
    let accounts = spec::user::Accounts::load(overlay)?;
    let user = spec::user::resolve(&security, image_user.as_deref(), &accounts)?;
    let namespaces = container.sandbox.shim()?.info()?.namespaces;
    let host = Host::detect();
    let spec = spec::plan(&Inputs {
        sandbox_id: &pod.id,
        sandbox: &pod.config,
        sandbox_dir: &container.sandbox.dir,
        container: &record.config,
        image: &image.config,
        user: &user,
        cgroup: &record.cgroup,
        namespaces: &namespaces,
        target_pid: target_pid(node, &container.sandbox, &security.namespace_options.clone().unwrap_or_default())?,
        mounts: &spec::resolve_mounts(&record.config.mounts)?,
        devices: &spec::devices::find(&record.config.devices, security.privileged)?,
        seccomp_profile: spec::load_seccomp(&security)?,
        host: &host,
    })?;
    Ok((spec, user))
}

/// The first process of the container whose PID namespace is to be joined; it must run in the same pod.
fn target_pid(
    node: &Node,
    sandbox: &Arc<Sandbox>,
    options: &runtime_cri_api::v1::NamespaceOption,
) -> Result<Option<i32>, Error> {
    if options.pid() != NamespaceMode::Target {
        return Ok(None);
    }
    let target = node.container(&options.target_id)?;
    if target.sandbox.id != sandbox.id {
        return Err(Error::invalid("namespace_options.target_id", "names a container of another pod"));
    }
    super::must_run(&target, "join the PID namespace of")?;
    let info = sandbox.shim()?.info()?;
    Ok(info.containers.iter().find(|known| known.id == target.id).map(|known| known.pid))
}
