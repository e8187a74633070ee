//! CreateContainer: intent on disk, then the snapshot, the OCI configuration and the shim's create; then the reply.
//!
//! A failure at any step undoes all steps, and so does a caller that has gone meanwhile; a crash leaves the announced record, which
//! `adopt` undoes. What the kernel refuses to make is told by its start (`refused`), as containerd does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use runtime_cri_api::v1::{
    ContainerConfig, ContainerEventType, ContainerState, CreateContainerRequest, CreateContainerResponse,
    NamespaceMode, PodSandboxState,
};
use runtime_images::Image;
use runtime_linux::mount::Overlay;
use runtime_shim::{ClientError, Create, FailureCode};

use super::volumes::{self, Volume};
use crate::caller::Caller;
use crate::facts;
use crate::node::{Container, Node, Sandbox, fresh_id, now_ns};
use crate::private;
use crate::record::{ContainerRecord, SandboxRecord, VERSION};
use crate::shim::ASK_WITHIN;
use crate::spec::{self, Inputs};
use crate::status::{Error, chain};

pub(crate) async fn run(node: Arc<Node>, request: CreateContainerRequest) -> Result<CreateContainerResponse, Error> {
    let (waiting, caller) = Caller::watch();
    // A task of its own, which goes on when the caller does not, and then undoes what it has made.
    let made = tokio::spawn(perform(node, request, caller)).await.unwrap_or(Err(Error::Panicked));
    waiting.answered();
    made
}

async fn perform(
    node: Arc<Node>,
    request: CreateContainerRequest,
    caller: Caller,
) -> Result<CreateContainerResponse, Error> {
    let wanted = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let metadata = wanted.metadata.clone().ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name", "is empty"));
    }
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let (container, image) = loop {
        let (announcing, pod, config, caller) =
            (Arc::clone(&node), Arc::clone(&sandbox), wanted.clone(), caller.clone());
        match node.pool.run(move || announce(&announcing, &pod, config, caller)).await {
            Err(Error::NameTaken { kind, name, holder }) => match node.container(&holder) {
                // Whoever asked for it first may have gone: then it is being undone, and its name will be free.
                Ok(holder) if holder.making.is_under_way() => holder.making.until_ended().await,
                Ok(held) if is_the_same(&held, &sandbox, &wanted) && held.making.take_abandoned() => {
                    return Ok(CreateContainerResponse { container_id: holder });
                }
                // What could not be undone before is undone now, or says why not.
                Ok(left) if left.read(|record| record.created_at_ns.is_none()) => {
                    let erasing = Arc::clone(&node);
                    node.pool.run(move || erase_left(&erasing, &left)).await?;
                }
                _ => return Err(Error::NameTaken { kind, name, holder }),
            },
            other => break other?,
        }
    };
    let making = Arc::clone(&node);
    node.pool.run(move || finish(&making, &container, &image)).await
}

fn erase_left(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let _work = container.work();
    if node.container(&container.id).is_err() { Ok(()) } else { super::remove::erase(node, container) }
}

/// Whether a container waits for its start, and is what is asked for.
fn is_the_same(container: &Container, sandbox: &Sandbox, wanted: &ContainerConfig) -> bool {
    container.sandbox.id == sandbox.id
        && container.read(|record| {
            facts::container_state(record) == ContainerState::ContainerCreated && record.config == *wanted
        })
}

fn announce(
    node: &Node,
    sandbox: &Arc<Sandbox>,
    config: ContainerConfig,
    caller: Caller,
) -> Result<(Arc<Container>, Image), Error> {
    let (pod, shim) = sandbox.facts();
    if facts::sandbox_state(&pod, shim) != PodSandboxState::SandboxReady {
        let (kind, id) = ("pod sandbox", sandbox.id.clone());
        return Err(Error::WrongState { kind, id, state: "not ready", operation: "create a container in" });
    }
    let image = find_image(node, &config)?;
    let record = record(node, &pod, config, &image)?;
    Ok((node.announce_container(sandbox, record, caller)?, image))
}

fn finish(node: &Arc<Node>, container: &Arc<Container>, image: &Image) -> Result<CreateContainerResponse, Error> {
    let making = container.making.guard();
    let work = container.work();
    let (pod, _) = container.sandbox.facts();
    let made = make(node, container, &pod, image).and_then(|()| {
        if container.making.is_abandoned() { Err(Error::Abandoned { what: "the container" }) } else { Ok(()) }
    });
    if made.is_err()
        && let Err(error) = super::remove::erase(node, container)
    {
        tracing::error!(container = %container.id, error = %chain(&error), "half-made container left");
    }
    drop(making);
    made?;
    drop(work);
    node.tell(&container.sandbox, &container.id, ContainerEventType::ContainerCreatedEvent);
    Ok(CreateContainerResponse { container_id: container.id.clone() })
}

fn find_image(node: &Node, config: &ContainerConfig) -> Result<Image, Error> {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid("config.image", "is missing"));
    }
    node.images.resolve(name).ok_or_else(|| Error::NotFound { kind: "image", id: name.to_owned() })
}

fn record(node: &Node, pod: &SandboxRecord, config: ContainerConfig, image: &Image) -> Result<ContainerRecord, Error> {
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
        refused: None,
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
    let volumes = volumes::make(node, &container.id, image, &record.config.mounts, &overlay)?;
    let (spec, user) = configure(node, container, pod, image, &overlay, &volumes)?;
    let bundle = super::bundle(container);
    for dir in [bundle.parent().unwrap_or(&bundle), &bundle] {
        private::directory(dir).map_err(Error::io("make", dir))?;
    }
    let path = bundle.join("config.json");
    let text = serde_json::to_vec(&spec).map_err(std::io::Error::from).map_err(Error::io("encode", &path))?;
    // Environments are in it.
    private::write(&path, 0o600, &text).map_err(Error::io("write", &path))?;
    if let Some(parent) = record.log_path.as_deref().and_then(Path::parent) {
        fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    let asked = container.sandbox.shim()?.create(Create {
        id: container.id.clone(),
        bundle,
        terminal: record.config.tty,
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        log_path: record.log_path,
        rootfs: Some(overlay),
    });
    let refused = match asked {
        Ok(created) => {
            for warning in created.warnings {
                tracing::warn!(container = %container.id, warning, "not as asked");
            }
            None
        }
        // The kernel refuses what was asked for: a program that is not there, a directory that cannot be entered. containerd makes
        // a container only when it is started, and so this becomes the failure of its start, with an exit that can be seen.
        Err(ClientError::Failure(failure)) if failure.code == FailureCode::Failed => Some(failure.message),
        Err(error) => return Err(error.into()),
    };
    let created_at_ns = now_ns();
    node.commit_container(container, |facts| {
        facts.created_at_ns = Some(created_at_ns);
        facts.refused.clone_from(&refused);
        facts.user = Some(user.told());
    })
}

fn configure(
    node: &Node,
    container: &Container,
    pod: &SandboxRecord,
    image: &Image,
    overlay: &Overlay,
    volumes: &[Volume],
) -> Result<(Spec, spec::user::User), Error> {
    let record = container.facts();
    let security = spec::security(&record.config);
    let image_user = image.config.config().as_ref().and_then(|config| config.user().clone());
    let accounts = spec::user::Accounts::load(overlay)?;
    let user = spec::user::resolve(&security, image_user.as_deref(), &accounts)?;
    let namespaces = container.sandbox.shim_within(ASK_WITHIN)?.info()?.namespaces;
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
        volumes,
        host: &node.host,
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
    let info = sandbox.shim_within(ASK_WITHIN)?.info()?;
    Ok(info.containers.iter().find(|known| known.id == target.id).map(|known| known.pid))
}
