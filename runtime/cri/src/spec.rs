//! The OCI configuration of a container, from its CRI configuration, its image and its pod: pure, given [`Inputs`].
//!
//! Reads nothing itself: the image's users (`user`), the host's abilities (`host`) and its devices (`devices`) are looked up
//! first and handed in. Invariant: what was asked for and cannot be given is an error that names the field, never dropped.

mod capabilities;
pub(crate) mod devices;
pub(crate) mod host;
mod mounts;
mod process;
mod resources;
mod seccomp;
pub(crate) mod signal;
pub(crate) mod user;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Mount, Process, Root, Spec,
};
use runtime_cri_api::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};

use crate::container::volumes::Volume;
use host::Host;
pub(crate) use process::exec_process;
pub(crate) use resources::plan as plan_resources;
use user::User;

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: String },
    #[error("neither the container nor its image names a command to run")]
    NoCommand,
    #[error("read the seccomp profile {}", path.display())]
    ReadProfile { path: PathBuf, source: std::io::Error },
    #[error("seccomp profile {} is not one in the OCI format", path.display())]
    ParseProfile { path: PathBuf, source: serde_json::Error },
    #[error("host path {} of the mount at {target}", path.display())]
    HostPath { path: PathBuf, target: String, source: std::io::Error },
    #[error("device {}", path.display())]
    Device { path: PathBuf, source: std::io::Error },
    #[error("look into the image for {file}")]
    Image { file: &'static str, source: nix::errno::Errno },
    #[error("no user {name:?} in the image's /etc/passwd: give a number, or a user the image has")]
    NoUser { name: String },
    #[error("no group {name:?} in the image's /etc/group: give a number, or a group the image has")]
    NoGroup { name: String },
    #[error("read {}", path.display())]
    Host { path: PathBuf, source: std::io::Error },
}

impl SpecError {
    pub(crate) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }

    /// Whether another request would do, as opposed to another host.
    pub(crate) fn is_request(&self) -> bool {
        !matches!(self, Self::Image { .. } | Self::Host { .. })
    }
}

/// Everything a plan depends on.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) sandbox_id: &'a str,
    pub(crate) sandbox: &'a PodSandboxConfig,
    /// Holds `shm`, `resolv.conf`, `hostname` and `hosts`.
    pub(crate) sandbox_dir: &'a Path,
    pub(crate) container: &'a ContainerConfig,
    pub(crate) image: &'a ImageConfiguration,
    pub(crate) user: &'a User,
    pub(crate) cgroup: &'a str,
    /// Pinned by the shim, by OCI name.
    pub(crate) namespaces: &'a [(String, PathBuf)],
    /// For namespace mode TARGET: the target container's first process.
    pub(crate) target_pid: Option<i32>,
    /// Sources resolved, in the order of the configuration.
    pub(crate) mounts: &'a [mounts::HostMount],
    /// Named by the configuration, or all of the host's for a privileged container.
    pub(crate) devices: &'a [devices::HostDevice],
    pub(crate) seccomp_profile: Option<oci_spec::runtime::LinuxSeccomp>,
    /// Declared by the image, and made.
    pub(crate) volumes: &'a [Volume],
    pub(crate) host: &'a Host,
}

pub(crate) use mounts::{clean, resolve as resolve_mounts};
pub(crate) use seccomp::load as load_seccomp;

/// What the container's own and its pod's configuration leave unsaid.
pub(crate) fn security(container: &ContainerConfig) -> LinuxContainerSecurityContext {
    container.linux.clone().and_then(|linux| linux.security_context).unwrap_or_default()
}

pub(crate) fn sandbox_namespaces(sandbox: &PodSandboxConfig) -> NamespaceOption {
    let context = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

pub(crate) fn container_resources(container: &ContainerConfig) -> LinuxContainerResources {
    container.linux.clone().and_then(|linux| linux.resources).unwrap_or_default()
}

pub(crate) fn plan(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let security = security(inputs.container);
    refuse_what_is_missing(inputs, &security)?;
    let mut spec = Spec::default();
    let mut root = Root::default();
    // The shim mounts the overlay there, inside the container's own mount namespace.
    root.set_path("rootfs".into()).set_readonly(Some(security.readonly_rootfs));
    let mounts = mounts::plan(inputs, &security)?;
    let rootfs_propagation = rootfs_propagation(&mounts);
    spec.set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process::plan(inputs, &security)?))
        .set_hostname(None)
        .set_annotations(Some(annotations(inputs)))
        .set_linux(Some(linux(inputs, &security, rootfs_propagation)?));
    Ok(spec)
}

fn linux(
    inputs: &Inputs<'_>,
    security: &LinuxContainerSecurityContext,
    rootfs_propagation: Option<String>,
) -> Result<Linux, SpecError> {
    let mut resources = resources::plan(&container_resources(inputs.container), inputs.host)?;
    resources.set_devices(Some(devices::rules(inputs.devices, security.privileged)));
    let devices: Vec<LinuxDevice> = inputs.devices.iter().map(devices::HostDevice::node).collect();
    let paths = |paths: &[String]| if security.privileged { Vec::new() } else { paths.to_vec() };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(inputs, security)?))
        .set_cgroups_path(Some(inputs.cgroup.into()))
        .set_resources(Some(resources))
        .set_devices(Some(devices))
        .set_seccomp(inputs.seccomp_profile.clone())
        .set_rootfs_propagation(rootfs_propagation)
        .set_masked_paths(Some(paths(&security.masked_paths)))
        .set_readonly_paths(Some(paths(&security.readonly_paths)))
        .set_uid_mappings(None::<Vec<LinuxIdMapping>>)
        .set_gid_mappings(None::<Vec<LinuxIdMapping>>);
    Ok(linux)
}

/// Which of the pod's, the host's or its own namespaces the container gets.
fn namespaces(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<Vec<LinuxNamespace>, SpecError> {
    let options = security.namespace_options.clone().unwrap_or_else(|| sandbox_namespaces(inputs.sandbox));
    let namespace = |kind: LinuxNamespaceType, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let pinned = |name: &str, field: &'static str| {
        let found = inputs.namespaces.iter().find(|(pinned, _)| pinned == name);
        found.map(|(_, path)| path.clone()).ok_or_else(|| {
            SpecError::field(
                field,
                format!("the pod was made in the host's {name} namespace, its containers must be too"),
            )
        })
    };
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None)];
    match options.network() {
        NamespaceMode::Node => {}
        _ => {
            let path = pinned("network", "namespace_options.network")?;
            all.push(namespace(LinuxNamespaceType::Network, Some(path)));
        }
    }
    // The UTS namespace goes with the network: a host-network pod has the host's name.
    if options.network() != NamespaceMode::Node {
        all.push(namespace(LinuxNamespaceType::Uts, Some(pinned("uts", "namespace_options.network")?)));
    }
    match options.ipc() {
        NamespaceMode::Node => {}
        _ => all.push(namespace(LinuxNamespaceType::Ipc, Some(pinned("ipc", "namespace_options.ipc")?))),
    }
    match options.pid() {
        NamespaceMode::Node => {}
        NamespaceMode::Container => all.push(namespace(LinuxNamespaceType::Pid, None)),
        NamespaceMode::Pod => {
            all.push(namespace(LinuxNamespaceType::Pid, Some(pinned("pid", "namespace_options.pid")?)));
        }
        NamespaceMode::Target => {
            let pid = inputs
                .target_pid
                .ok_or_else(|| SpecError::field("namespace_options.target_id", "the target container does not run"))?;
            let path = PathBuf::from(format!("/proc/{pid}/ns/pid"));
            all.push(namespace(LinuxNamespaceType::Pid, Some(path)));
        }
    }
    if inputs.host.cgroup_v2 && !security.privileged {
        all.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(all)
}

/// A mount that is to see, or to send, later mounts needs the same of the root it hangs below.
fn rootfs_propagation(mounts: &[Mount]) -> Option<String> {
    let has = |name: &str| mounts.iter().any(|mount| mount.options().iter().flatten().any(|option| option == name));
    if has("rshared") {
        Some("rshared".into())
    } else if has("rslave") {
        Some("rslave".into())
    } else {
        None
    }
}

fn annotations(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let metadata = inputs.sandbox.metadata.clone().unwrap_or_default();
    let name = inputs.container.metadata.clone().unwrap_or_default().name;
    let mut annotations = inputs.container.annotations.clone();
    // The names that tools reading OCI state look for, whatever the runtime.
    for (key, value) in [
        ("container-type", "container".to_owned()),
        ("sandbox-id", inputs.sandbox_id.to_owned()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
        ("container-name", name),
        ("image-name", inputs.container.image.clone().unwrap_or_default().image),
    ] {
        annotations.insert(format!("io.kubernetes.cri.{key}"), value);
    }
    annotations
}

fn refuse_what_is_missing(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<(), SpecError> {
    let refuse = |field, problem: &str| Err(SpecError::field(field, problem));
    if inputs.container.windows.is_some() {
        return refuse("windows", "this runtime runs Linux containers only");
    }
    if !inputs.container.cdi_devices.is_empty() {
        return refuse("CDI_devices", "the container device interface is not supported; name the device's path");
    }
    let options = security.namespace_options.clone().unwrap_or_default();
    if options.userns_options.is_some_and(|user| user.mode() == NamespaceMode::Pod) {
        return refuse("namespace_options.userns_options", "user namespaces are not supported by this runtime handler");
    }
    Ok(())
}

/// Whether a process's `process` field may be reused for an exec: everything but its arguments.
pub(crate) fn process_of(spec: &Spec) -> Process {
    spec.process().clone().unwrap_or_default()
}
