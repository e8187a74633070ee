//! Finds out what a volume is to hold: ConfigMap, Secret, downward API, tokens, claims. Reads the API, writes nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PersistentVolume, PersistentVolumeClaim, ProjectedVolumeSource, Volume,
    VolumeProjection,
};
use kube::{Api, Client};

use super::{Access, Cause, Content, File, Owner, unsupported};
use crate::env::{self, Sources};
use crate::pod::LocalPod;
use crate::resources;

const DEFAULT_MODE: i32 = 0o644;

/// Looks up persistent volumes.
#[derive(Clone)]
pub struct Claims {
    pub client: Client,
}

impl Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").finish_non_exhaustive()
    }
}

type Gathered = (Content, Option<Timestamp>);

pub(super) async fn gather(
    pod: &LocalPod,
    volume: &Volume,
    access: &Access,
    sources: &Sources,
    now: Timestamp,
) -> Result<Gathered, Cause> {
    if let Some(source) = &volume.empty_dir {
        let memory = source.medium.as_deref() == Some("Memory");
        let limit = source.size_limit.as_ref().and_then(resources::units).and_then(|b| u64::try_from(b).ok());
        // On disk the limit is looked after in storage.rs.
        let size_bytes = memory.then(|| memory_volume_bytes(pod, limit, sources.allocatable_memory_bytes));
        return Ok((Content::EmptyDir { memory, size_bytes }, None));
    }
    if let Some(source) = &volume.host_path {
        let kind = source.type_.clone().unwrap_or_default();
        return Ok((Content::HostPath { path: PathBuf::from(&source.path), kind }, None));
    }
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        let wanted = Wanted { items: source.items.as_deref(), mode: mode(source.default_mode), optional };
        let files = config_map(pod, &source.name, &wanted, access).await?;
        return Ok((Content::Files { kind: "kubernetes.io~configmap", files, memory: false }, None));
    }
    if let Some(source) = &volume.secret {
        let optional = source.optional.unwrap_or(false);
        let wanted = Wanted { items: source.items.as_deref(), mode: mode(source.default_mode), optional };
        let files = secret(pod, source.secret_name.as_deref().unwrap_or_default(), &wanted, access).await?;
        return Ok((Content::Files { kind: "kubernetes.io~secret", files, memory: true }, None));
    }
    if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        let files = downward(pod, items, mode(source.default_mode), sources)?;
        return Ok((Content::Files { kind: "kubernetes.io~downward-api", files, memory: true }, None));
    }
    if let Some(source) = &volume.projected {
        return projected(pod, source, access, sources, now).await;
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let content = claim(pod, &source.claim_name, source.read_only.unwrap_or(false), access).await?;
        return Ok((content, None));
    }
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        // Upstream: a volume without a source is an emptyDir.
        return Ok((Content::EmptyDir { memory: false, size_bytes: None }, None));
    }
    Err(Cause::Unsupported { kind: unsupported(volume) })
}

/// Upstream: the smallest of the volume's own limit, that of the pod's memory, and what the node has to give.
fn memory_volume_bytes(pod: &LocalPod, limit: Option<u64>, allocatable: u64) -> u64 {
    let pods = u64::try_from(resources::pod(pod).memory_limit_in_bytes).ok();
    [limit, pods].into_iter().flatten().filter(|bytes| *bytes > 0).fold(allocatable, u64::min)
}

fn mode(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o7777
}

struct Wanted<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: u32,
    optional: bool,
}

async fn config_map(pod: &LocalPod, name: &str, wanted: &Wanted<'_>, access: &Access) -> Result<Vec<File>, Cause> {
    let found = access.references.config_map(&pod.key.namespace, name, &pod.uid).await?;
    let Some(object) = found else {
        return if wanted.optional { Ok(Vec::new()) } else { Err(Cause::NoConfigMap { name: name.into() }) };
    };
    let text = object.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    select(text.chain(binary).collect(), wanted, "config")
}

async fn secret(pod: &LocalPod, name: &str, wanted: &Wanted<'_>, access: &Access) -> Result<Vec<File>, Cause> {
    let found = access.references.secret(&pod.key.namespace, name, &pod.uid).await?;
    let Some(object) = found else {
        return if wanted.optional { Ok(Vec::new()) } else { Err(Cause::NoSecret { name: name.into() }) };
    };
    let data = object.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    select(data.collect(), wanted, "secret")
}

/// All keys, or those named, under the paths asked for.
fn select(mut data: BTreeMap<String, Vec<u8>>, wanted: &Wanted<'_>, kind: &'static str) -> Result<Vec<File>, Cause> {
    let Some(items) = wanted.items.filter(|i| !i.is_empty()) else {
        return Ok(data.into_iter().map(|(path, bytes)| File { path, bytes, mode: wanted.mode }).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match data.get_mut(&item.key) {
            Some(bytes) => {
                let mode = item.mode.map_or(wanted.mode, |m| mode(Some(m)));
                files.push(File { path: inside(&item.path)?, bytes: bytes.clone(), mode });
            }
            None if wanted.optional => {}
            None => return Err(Cause::NoKey { kind, key: item.key.clone() }),
        }
    }
    Ok(files)
}

/// A path that stays below where it starts.
fn inside(path: &str) -> Result<String, Cause> {
    let escapes = path.starts_with('/') || path.split('/').any(|part| part == "..") || path.starts_with("..");
    if escapes || path.is_empty() { Err(Cause::Escapes { path: path.into() }) } else { Ok(path.into()) }
}

fn downward(
    pod: &LocalPod,
    items: &[DownwardAPIVolumeFile],
    default: u32,
    sources: &Sources,
) -> Result<Vec<File>, Cause> {
    let mut files = Vec::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            env::field_value(pod, &field.field_path, sources)?
        } else if let Some(resource) = &item.resource_field_ref {
            env::resource_value(pod, None, resource, sources)?
        } else {
            String::new()
        };
        let mode = item.mode.map_or(default, |m| mode(Some(m)));
        files.push(File { path: inside(&item.path)?, bytes: text.into_bytes(), mode });
    }
    Ok(files)
}

async fn projected(
    pod: &LocalPod,
    source: &ProjectedVolumeSource,
    access: &Access,
    sources: &Sources,
    now: Timestamp,
) -> Result<Gathered, Cause> {
    let default = mode(source.default_mode);
    let mut files: Vec<File> = Vec::new();
    let mut renew: Option<Timestamp> = None;
    for projection in source.sources.iter().flatten() {
        let part = match projection {
            VolumeProjection { config_map: Some(from), .. } => {
                let optional = from.optional.unwrap_or(false);
                config_map(pod, &from.name, &Wanted { items: from.items.as_deref(), mode: default, optional }, access)
                    .await?
            }
            VolumeProjection { secret: Some(from), .. } => {
                let optional = from.optional.unwrap_or(false);
                secret(pod, &from.name, &Wanted { items: from.items.as_deref(), mode: default, optional }, access)
                    .await?
            }
            VolumeProjection { downward_api: Some(from), .. } => {
                downward(pod, from.items.as_deref().unwrap_or_default(), default, sources)?
            }
            VolumeProjection { service_account_token: Some(from), .. } => {
                let token = access.tokens.get(pod, from, now).await?;
                renew = Some(renew.map_or(token.renew_at, |r| r.min(token.renew_at)));
                let owner = Owner::of(pod);
                let private = owner.user.is_some() || owner.group.is_some();
                let mode = if private { 0o600 } else { default };
                vec![File { path: inside(&from.path)?, bytes: token.value.into_bytes(), mode }]
            }
            VolumeProjection { cluster_trust_bundle: Some(_), .. } => {
                return Err(Cause::Unsupported { kind: "projected clusterTrustBundle" });
            }
            _ => return Err(Cause::Unsupported { kind: "projected podCertificate" }),
        };
        // A later source wins where two write the same path.
        files.retain(|f| part.iter().all(|p| p.path != f.path));
        files.extend(part);
    }
    Ok((Content::Files { kind: "kubernetes.io~projected", files, memory: true }, renew))
}

async fn claim(pod: &LocalPod, name: &str, read_only: bool, access: &Access) -> Result<Content, Cause> {
    let failed = |reason: String| Cause::Claim { claim: name.into(), reason };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(access.claims.client.clone(), &pod.key.namespace);
    let claim = claims.get(name).await.map_err(|e| failed(e.to_string()))?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.and_then(|s| s.volume_name).filter(|v| bound && !v.is_empty());
    let volume = volume.ok_or_else(|| failed("is not bound to a volume yet".into()))?;
    let volumes: Api<PersistentVolume> = Api::all(access.claims.client.clone());
    let spec = volumes.get(&volume).await.map_err(|e| failed(e.to_string()))?.spec.unwrap_or_default();
    if let Some(path) = spec.host_path {
        let kind = path.type_.unwrap_or_else(|| "DirectoryOrCreate".into());
        if read_only {
            return Ok(Content::Claimed { path: path.path.into(), read_only });
        }
        return Ok(Content::HostPath { path: path.path.into(), kind });
    }
    match spec.local {
        Some(local) => Ok(Content::Claimed { path: local.path.into(), read_only }),
        None => Err(failed(format!("volume {volume} is neither hostPath nor local, which is all this node can mount"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, good) in [
            ("a", true),
            ("a/b", true),
            ("a..b", true),
            ("../a", false),
            ("a/../b", false),
            ("/a", false),
            ("", false),
            ("..data", false),
        ] {
            assert_eq!(inside(path).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn keys_are_selected_or_missed() {
        let data = || [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())].into();
        let item = |key: &str| KeyToPath { key: key.into(), path: "x/y".into(), mode: Some(0o400) };
        let all = select(data(), &Wanted { items: None, mode: 0o644, optional: false }, "config").unwrap();
        assert_eq!(all.len(), 2);
        let items = [item("b")];
        let one = select(data(), &Wanted { items: Some(&items), mode: 0o644, optional: false }, "config").unwrap();
        assert_eq!(one, [File { path: "x/y".into(), bytes: b"2".to_vec(), mode: 0o400 }]);
        let items = [item("z")];
        let missing = select(data(), &Wanted { items: Some(&items), mode: 0o644, optional: false }, "config");
        assert_eq!(missing.unwrap_err().to_string(), "references non-existent config key: z");
        let optional = select(data(), &Wanted { items: Some(&items), mode: 0o644, optional: true }, "config").unwrap();
        assert!(optional.is_empty());
    }
}
