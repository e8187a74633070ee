//! Volumes of a pod on the host: each becomes a path that a container can be given. `payload.rs` fetches, `atomic.rs` and
//! `host.rs` write, `sub_path.rs` finds a safe place inside. Invariant: preparing again changes only what differs, and teardown
//! never deletes across a mount.

mod atomic;
mod host;
mod payload;
mod sub_path;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};

use crate::container_config::HostMount;
use crate::env;
use crate::pod::LocalPod;
use crate::references::References;
use crate::tokens::Tokens;

pub use host::{teardown, unmount};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    SetUp { volume: String, source: Cause },
    #[error("{name} of mount {path} is not in spec.volumes")]
    Unknown { name: String, path: String },
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\"")]
    SubPath { volume: String, container: String, source: sub_path::Error },
    #[error("subPathExpr")]
    SubPathExpr(#[source] env::Error),
    #[error("subPathExpr {expression} of container {container} names a variable that is not set")]
    Expression { expression: String, container: String },
    #[error("the task that writes volumes has died")]
    Task(#[source] tokio::task::JoinError),
}

/// What went wrong with one volume.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("configmap \"{name}\" not found")]
    NoConfigMap { name: String },
    #[error("secret \"{name}\" not found")]
    NoSecret { name: String },
    #[error("references non-existent {kind} key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error(transparent)]
    Reference(#[from] crate::references::Error),
    #[error("{}: {}", .0, std::error::Error::source(.0).map(ToString::to_string).unwrap_or_default())]
    Token(#[from] crate::tokens::Error),
    #[error(transparent)]
    Field(#[from] env::Error),
    #[error("persistentvolumeclaim \"{claim}\": {reason}")]
    Claim { claim: String, reason: String },
    #[error("the path {path} leads out of the volume")]
    Escapes { path: String },
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType { path: String, expected: &'static str },
    #[error("hostPath {path}: unknown type {kind}")]
    HostPathKind { path: String, kind: String },
    #[error("{kind} volumes are not supported by this node")]
    Unsupported { kind: &'static str },
    #[error("{step} {}: {source}", .path.display())]
    Io { step: &'static str, path: PathBuf, source: std::io::Error },
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Cause {
    let path = path.to_owned();
    move |source| Cause::Io { step, path, source }
}

/// One file of a volume made by the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    path: String,
    bytes: Vec<u8>,
    mode: u32,
}

/// What a volume is to be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    EmptyDir { memory: bool, size_bytes: Option<u64> },
    HostPath { path: PathBuf, kind: String },
    Files { kind: &'static str, files: Vec<File>, memory: bool },
    Claimed { path: PathBuf, read_only: bool },
}

/// A place inside a volume where another is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nested {
    /// Below the volume's root; names only.
    path: PathBuf,
    is_file: bool,
}

/// Mounts of any container that lie inside a mount of `volume`. Their places have to be made here: its readers cannot write.
fn nested(pod: &LocalPod, volume: &str, contents: &[(String, Content)]) -> Vec<Nested> {
    let is_file = |mount: &VolumeMount| {
        let files = contents.iter().find_map(|(name, content)| match content {
            Content::Files { files, .. } if *name == mount.name => Some(files),
            _ => None,
        });
        let key = mount.sub_path.as_deref().filter(|p| !p.is_empty());
        key.is_some_and(|key| files.into_iter().flatten().any(|f| f.path == key))
    };
    let mut found: Vec<Nested> = Vec::new();
    for member in &pod.members {
        let mounts = member.container.volume_mounts.as_deref().unwrap_or_default();
        let whole = |m: &&VolumeMount| {
            m.sub_path.as_deref().is_none_or(str::is_empty) && m.sub_path_expr.as_deref().is_none_or(str::is_empty)
        };
        for outer in mounts.iter().filter(|m| m.name == volume).filter(whole) {
            for inner in mounts {
                let Ok(path) = Path::new(&inner.mount_path).strip_prefix(&outer.mount_path) else { continue };
                let names_only = path.components().all(|part| match part {
                    // Names with two dots are the volume's own.
                    Component::Normal(name) => !name.as_encoded_bytes().starts_with(b".."),
                    _ => false,
                });
                if path.as_os_str().is_empty() || !names_only || found.iter().any(|n| n.path == path) {
                    continue;
                }
                found.push(Nested { path: path.components().collect(), is_file: is_file(inner) });
            }
        }
    }
    found
}

/// Where the API and other tasks are reached from here.
#[derive(Clone, Debug)]
pub struct Access {
    pub references: References,
    pub tokens: Tokens,
    pub claims: payload::Claims,
}

pub use payload::Claims;

/// Volumes that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    pub paths: BTreeMap<String, HostMount>,
    /// When a token in them has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Makes every volume of the pod, or brings those from the API up to date.
///
/// # Errors
/// The first volume that cannot be made, by name; shown as `FailedMount`.
pub async fn prepare(
    pod: &LocalPod,
    pod_dir: &Path,
    access: &Access,
    sources: &env::Sources,
    now: Timestamp,
) -> Result<Prepared, Error> {
    let mut contents: Vec<(String, Content)> = Vec::new();
    let mut refresh_at: Option<Timestamp> = None;
    for volume in pod.spec.volumes.iter().flatten() {
        let gathered = payload::gather(pod, volume, access, sources, now).await;
        let (content, renew) = gathered.map_err(|source| Error::SetUp { volume: volume.name.clone(), source })?;
        refresh_at = match (refresh_at, renew) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        contents.push((volume.name.clone(), content));
    }
    let owner = Owner::of(pod);
    let root = pod_dir.to_owned();
    let nested: Vec<Vec<Nested>> = contents.iter().map(|(name, _)| nested(pod, name, &contents)).collect();
    let write = move || {
        let mut paths = BTreeMap::new();
        for ((name, content), nested) in contents.into_iter().zip(nested) {
            let made = host::make(&root, &name, content, owner, &nested);
            paths.insert(name.clone(), made.map_err(|source| Error::SetUp { volume: name, source })?);
        }
        Ok(paths)
    };
    let paths = tokio::task::spawn_blocking(write).await.map_err(Error::Task)??;
    Ok(Prepared { paths, refresh_at })
}

/// Who owns what the kubelet writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owner {
    /// The user of all containers, if they have the same.
    user: Option<u32>,
    group: Option<u32>,
}

impl Owner {
    fn of(pod: &LocalPod) -> Owner {
        let outer = pod.spec.security_context.as_ref();
        let number = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
        let of = |c: &Container| {
            number(c.security_context.as_ref().and_then(|s| s.run_as_user).or(outer.and_then(|s| s.run_as_user)))
        };
        let mut users = pod.members.iter().map(|m| of(&m.container));
        let first = users.next().flatten();
        Owner { user: first.filter(|_| users.all(|u| u == first)), group: number(outer.and_then(|s| s.fs_group)) }
    }
}

/// Whether some volume of the pod shows labels or annotations, and they have changed.
#[must_use]
pub fn shows_other_fields(old: &LocalPod, new: &LocalPod) -> bool {
    let fields = |pod: &LocalPod| (pod.meta().labels.clone(), pod.meta().annotations.clone());
    let shows = |volume: &Volume| {
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        volume.downward_api.is_some() || sources.into_iter().any(|s| s.downward_api.is_some())
    };
    new.spec.volumes.iter().flatten().any(shows) && fields(old) != fields(new)
}

/// The host side of each of a container's `volumeMounts`, in order.
///
/// # Errors
/// If a mount names no volume or its subPath leads astray; shown as `CreateContainerConfigError`.
pub async fn mounts(
    container: &Container,
    prepared: &Prepared,
    pod_dir: &Path,
    variables: &[(String, String)],
) -> Result<Vec<HostMount>, Error> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = prepared.paths.get(&mount.name) else {
            return Err(Error::Unknown { name: mount.name.clone(), path: mount.mount_path.clone() });
        };
        let mut sub_path = mount.sub_path.clone().unwrap_or_default();
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            let lookup = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            sub_path = env::expand(expression, &mut env::Room::default(), lookup).map_err(Error::SubPathExpr)?;
            if sub_path.contains("$(") {
                let (expression, container) = (expression.to_owned(), container.name.clone());
                return Err(Error::Expression { expression, container });
            }
        }
        if sub_path.is_empty() {
            out.push(volume.clone());
            continue;
        }
        let target = pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
        let root = volume.host_path.clone();
        let safe = tokio::task::spawn_blocking(move || sub_path::bind(&root, &sub_path, &target))
            .await
            .map_err(Error::Task)?;
        let failed = |source| Error::SubPath { volume: mount.name.clone(), container: container.name.clone(), source };
        out.push(HostMount { host_path: safe.map_err(failed)?, read_only: volume.read_only });
    }
    Ok(out)
}

/// Kind of a volume whose source this node does not know.
fn unsupported(volume: &Volume) -> &'static str {
    match volume {
        Volume { csi: Some(_), .. } => "csi",
        Volume { nfs: Some(_), .. } => "nfs",
        Volume { iscsi: Some(_), .. } => "iscsi",
        Volume { image: Some(_), .. } => "image",
        Volume { ephemeral: Some(_), .. } => "ephemeral",
        _ => "such",
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json! at the call reads better")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::Source;

    fn pod(mut spec: serde_json::Value, labels: serde_json::Value) -> LocalPod {
        if spec.get("containers").is_none() {
            spec["containers"] = json!([]);
        }
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": labels}, "spec": spec});
        LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
    }

    #[test]
    fn mounts_inside_a_volume_of_files_are_found() {
        let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        let pod = pod(
            json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [
                mount("s", "/secrets"), mount("t", "/secrets/more"), mount("t", "/secrets/a//b/"), mount("t", "/secretsX"),
                mount("t", "/other"), mount("t", "/secrets/..x"), {"name": "k", "mountPath": "/secrets/f", "subPath": "key"},
            ]}]}),
            json!({}),
        );
        let files = vec![File { path: "key".into(), bytes: Vec::new(), mode: 0o644 }];
        let contents = [("k".to_owned(), Content::Files { kind: "x", files, memory: false })];
        let found = nested(&pod, "s", &contents);
        let text: Vec<String> = found.iter().map(|n| format!("{} {}", n.path.display(), n.is_file)).collect();
        assert_eq!(text, ["more false", "a/b false", "f true"]);
    }

    #[test]
    fn labels_matter_to_volumes_that_show_them() {
        let volumes = json!({"volumes": [{"name": "v", "downwardAPI": {"items": []}}]});
        let projected = json!({"volumes": [{"name": "v", "projected": {"sources": [{"downwardAPI": {}}]}}]});
        let check = |spec: &serde_json::Value, label: &str, expect: bool| {
            let (old, new) = (pod(spec.clone(), json!({"a": "1"})), pod(spec.clone(), json!({"a": label})));
            assert_eq!(shows_other_fields(&old, &new), expect, "{spec} {label}");
        };
        check(&volumes, "2", true);
        check(&volumes, "1", false);
        check(&projected, "2", true);
        check(&json!({"volumes": [{"name": "v", "emptyDir": {}}]}), "2", false);
    }
}
