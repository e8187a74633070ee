//! The CRI configuration of one container. Pure: what must be fetched or mounted comes in through `Inputs`.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use runtime_cri_api::v1 as cri;

use crate::cri::{
    CONTAINER_HASH, CONTAINER_MESSAGE_PATH, CONTAINER_MESSAGE_POLICY, CONTAINER_NAME, CONTAINER_RESOURCES,
    CONTAINER_RESTARTS, POD_NAME, POD_NAMESPACE, POD_UID,
};
use crate::pod::{Kind, LocalPod, Member};
use crate::{env, resources, security};

pub const MESSAGE_PATH: &str = "/dev/termination-log";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Environment(#[from] env::Error),
    #[error(transparent)]
    Security(#[from] security::Error),
    #[error("volume {volume} of mount {path} is not there; is it in spec.volumes?")]
    NoVolume { volume: String, path: String },
    #[error("the container {target} that an ephemeral one is to look at does not run")]
    NoTarget { target: String },
}

/// A mount whose host side has been made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    pub host_path: PathBuf,
    /// The volume itself may not be written.
    pub read_only: bool,
}

#[derive(Debug)]
pub struct Inputs<'a> {
    pub attempt: u32,
    pub environment: &'a env::Sources,
    pub image: &'a cri::Image,
    pub image_ref: String,
    /// Host side of each entry of `volumeMounts`, in order.
    pub mounts: &'a [HostMount],
    pub hosts_file: Option<PathBuf>,
    pub message_file: PathBuf,
    /// Id of the container an ephemeral one shares processes with.
    pub target: Option<String>,
    pub data_dir: PathBuf,
    pub memory_capacity: u64,
    /// See [`crate::sandbox_config::Host`].
    pub selinux: bool,
}

/// Where the log of an attempt is, below the pod's log directory.
#[must_use]
pub fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

/// # Errors
/// What keeps the container from being configured; shown as `CreateContainerConfigError`.
pub fn build(pod: &LocalPod, member: &Member, inputs: &Inputs<'_>) -> Result<cri::ContainerConfig, Error> {
    let container = &member.container;
    let environment = env::build(pod, container, inputs.environment)?;
    let known: HashMap<&str, &str> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut room = env::Room::default();
    let mut expand = |list: Option<&Vec<String>>| -> Result<Vec<String>, env::Error> {
        list.into_iter().flatten().map(|word| env::expand(word, &mut room, |name| known.get(name).copied())).collect()
    };
    let (command, args) = (expand(container.command.as_ref())?, expand(container.args.as_ref())?);
    let target = inputs.target.as_deref();
    let security = security::container(pod, container, inputs.image, target, &inputs.data_dir, inputs.selinux)?;
    let tty = container.tty.unwrap_or(false);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: inputs.attempt }),
        image: Some(cri::ImageSpec {
            image: inputs.image_ref.clone(),
            user_specified_image: member.image().to_owned(),
            ..cri::ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment
            .iter()
            .map(|(k, v)| cri::KeyValue { key: k.clone(), value: v.clone().into_bytes() })
            .collect(),
        mounts: mounts(container, inputs),
        labels: labels(pod, container),
        annotations: annotations(pod, member, inputs.attempt),
        log_path: log_path(&container.name, inputs.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: (member.kind != Kind::Ephemeral)
                .then(|| resources::container(pod, container, inputs.memory_capacity)),
            security_context: Some(security),
        }),
        stop_signal: stop_signal(container) as i32,
        ..cri::ContainerConfig::default()
    })
}

/// The image's own where the pod names none. The pod says `SIGRTMIN+1` where the CRI says `SIGRTMINPLUS1`.
fn stop_signal(container: &Container) -> cri::Signal {
    let wanted = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let name = wanted.unwrap_or_default().replace('+', "PLUS").replace('-', "MINUS");
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

fn labels(pod: &LocalPod, container: &Container) -> HashMap<String, String> {
    [
        (POD_NAME, pod.key.name.clone()),
        (POD_NAMESPACE, pod.key.namespace.clone()),
        (POD_UID, pod.uid.clone()),
        (CONTAINER_NAME, container.name.clone()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn annotations(pod: &LocalPod, member: &Member, attempt: u32) -> HashMap<String, String> {
    let container = &member.container;
    [
        (CONTAINER_HASH, member.hash.clone()),
        (CONTAINER_RESOURCES, member.resources_hash.clone()),
        (CONTAINER_RESTARTS, attempt.to_string()),
        (CONTAINER_MESSAGE_PATH, message_path(container).to_owned()),
        (CONTAINER_MESSAGE_POLICY, container.termination_message_policy.clone().unwrap_or_else(|| "File".into())),
        (crate::cri::POD_GRACE, pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(MESSAGE_PATH)
}

fn propagation(mount: &VolumeMount) -> i32 {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer as i32,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional as i32,
        _ => cri::MountPropagation::PropagationPrivate as i32,
    }
}

fn mounts(container: &Container, inputs: &Inputs<'_>) -> Vec<cri::Mount> {
    let mut out = Vec::new();
    for (mount, host) in container.volume_mounts.iter().flatten().zip(inputs.mounts) {
        let read_only = mount.read_only.unwrap_or(false) || host.read_only;
        out.push(cri::Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host.host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation(mount),
            recursive_read_only: read_only && mount.recursive_read_only.as_deref() == Some("Enabled"),
            ..cri::Mount::default()
        });
    }
    let taken = |out: &[cri::Mount], path: &str| out.iter().any(|m| m.container_path.trim_end_matches('/') == path);
    if let Some(file) = inputs.hosts_file.as_ref().filter(|_| !taken(&out, "/etc/hosts")) {
        out.push(cri::Mount {
            container_path: "/etc/hosts".into(),
            host_path: file.to_string_lossy().into_owned(),
            ..cri::Mount::default()
        });
    }
    out.push(cri::Mount {
        container_path: message_path(container).to_owned(),
        host_path: inputs.message_file.to_string_lossy().into_owned(),
        ..cri::Mount::default()
    });
    out
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
