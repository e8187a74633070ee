//! In: an OCI layout (directory or tar) or a docker-archive -> images here. A tar may be compressed as a whole.
//! Members are found by one pass over the headers and then read in place; nothing is unpacked to be read.

mod members;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Error;
use super::export::{DOCKER_FILE, FULL_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME, member};
use crate::digest::{self, Digest};
use crate::manifest::{self, CONFIGURATION_BYTES_MAX, Document, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX, OCI_CONFIG};
use crate::progress::Progress;
use crate::pull::{LayerPlan, OWN_MANIFEST, Resolved, Source, descriptor_digest, layer_plans};
use crate::reference::Reference;
use crate::store::{Blob, Image, Images, Lease};

use members::Members;

/// One image found in an archive.
struct Found {
    resolved: Resolved,
    plans: Vec<LayerPlan>,
    /// Member of each layer, in the order of `plans`.
    layer_members: Vec<String>,
    tags: Vec<String>,
}

impl Images {
    /// Imports every image for this platform of an OCI layout (directory or tar) or docker-archive. `name` names the image
    /// when the archive holds exactly one.
    pub async fn import(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Image>, crate::Error> {
        let owned = path.to_owned();
        let members = self.blocking(move |inner| Ok(Members::open(&owned, &inner.fresh_temporary())?)).await?;
        let members = Arc::new(members);
        let lease = self.lease();
        let mut found = self.find_images(&members, &lease).await?;
        if found.is_empty() {
            let reason = format!("it holds no image for {}", self.inner.config.platform);
            return Err(Error::NotAnArchive { path: path.display().to_string(), reason }.into());
        }
        if let (Some(tag), [only]) = (name.and_then(Reference::tagged_name), found.as_mut_slice()) {
            only.tags = vec![tag];
        }
        let mut images = Vec::new();
        for Found { resolved, plans, layer_members, tags } in found {
            let by_digest: HashMap<Digest, String> =
                plans.iter().map(|plan| plan.blob.digest.clone()).zip(layer_members).collect();
            self.bring_layers(&plans, &lease, &Progress::silent(), |plan| {
                let members = Arc::clone(&members);
                let member = by_digest.get(&plan.blob.digest).cloned().unwrap_or_default();
                Source::Archive(Box::new(move || Ok(members.reader(&member)?)))
            })
            .await?;
            images.push(self.record_image(resolved, &plans, tags, Vec::new()).await?);
        }
        Ok(images)
    }

    async fn find_images(&self, members: &Arc<Members>, lease: &Lease) -> Result<Vec<Found>, crate::Error> {
        let found = {
            let (images, members) = (self.clone(), Arc::clone(members));
            self.blocking(move |_| {
                if members.has(LAYOUT_FILE) || (members.has(INDEX_FILE) && !members.has(DOCKER_FILE)) {
                    images.find_in_layout(&members)
                } else if members.has(DOCKER_FILE) {
                    images.find_in_docker(&members)
                } else {
                    let reason = format!("it has neither {LAYOUT_FILE} nor {DOCKER_FILE}");
                    Err(Error::NotAnArchive { path: members.shown(), reason }.into())
                }
            })
            .await?
        };
        let mut kept = Vec::new();
        for (found, small) in found {
            for (digest, bytes) in small {
                self.keep_small(lease, &digest, bytes.into()).await?;
            }
            kept.push(found);
        }
        Ok(kept)
    }

    fn find_in_layout(&self, members: &Members) -> Result<Vec<(Found, SmallBlobs)>, crate::Error> {
        let index = members.read(INDEX_FILE, MANIFEST_BYTES_MAX)?;
        let Document::Index(index) = manifest::parse(INDEX_FILE, manifest::OCI_INDEX, &index)? else {
            let (path, member) = (members.shown(), INDEX_FILE.to_owned());
            return Err(Error::Malformed { path, member, reason: "it is no index".to_owned() }.into());
        };
        let mut found: Vec<(Found, SmallBlobs)> = Vec::new();
        for descriptor in index.manifests() {
            let digest = descriptor_digest(INDEX_FILE, descriptor.digest())?;
            let tag = descriptor.annotations().as_ref().and_then(tag_of);
            // The same image under two names is listed twice.
            if let Some((same, _)) = found.iter_mut().find(|(f, _)| f.resolved.top() == &digest) {
                same.tags.extend(tag);
                continue;
            }
            if let Some((mut image, small)) = self.layout_image(members, &digest, None, 0)? {
                image.tags.extend(tag);
                found.push((image, small));
            }
        }
        Ok(found)
    }

    /// `None` when nothing in it is for this machine.
    fn layout_image(
        &self,
        members: &Members,
        digest: &Digest,
        index: Option<&Digest>,
        depth: u32,
    ) -> Result<Option<(Found, SmallBlobs)>, crate::Error> {
        let image = members.shown();
        let bytes = read_verified(members, digest, MANIFEST_BYTES_MAX)?;
        match manifest::parse(&format!("manifest {digest} in {image}"), "", &bytes)? {
            Document::Index(_) if depth >= INDEX_DEPTH_MAX => {
                let reason = "its indexes are nested too deeply".to_owned();
                Err(Error::Malformed { path: image, member: INDEX_FILE.to_owned(), reason }.into())
            }
            Document::Index(list) => {
                let Ok(chosen) = self.inner.config.platform.choose(list.manifests()) else { return Ok(None) };
                let chosen = descriptor_digest(&image, chosen.digest())?;
                let found = self.layout_image(members, &chosen, Some(index.unwrap_or(digest)), depth + 1)?;
                Ok(found.map(|(found, mut small)| {
                    small.push((digest.clone(), bytes));
                    (found, small)
                }))
            }
            Document::Manifest(manifest, media_type) => {
                let config_digest = descriptor_digest(&image, manifest.config().digest())?;
                let config_bytes = read_verified(members, &config_digest, CONFIGURATION_BYTES_MAX)?;
                let config = self.usable_configuration(&image, &config_bytes)?;
                let resolved = Resolved {
                    manifest,
                    manifest_digest: digest.clone(),
                    manifest_media_type: media_type,
                    index: index.cloned(),
                    config,
                    config_digest: config_digest.clone(),
                    small_bytes: (bytes.len() + config_bytes.len()) as u64,
                };
                let plans = layer_plans(&format!("configuration {config_digest}"), &image, &resolved)?;
                let layer_members = plans.iter().map(|plan| member(&plan.blob.digest)).collect();
                let small = vec![(digest.clone(), bytes), (config_digest, config_bytes)];
                Ok(Some((Found { resolved, plans, layer_members, tags: Vec::new() }, small)))
            }
        }
    }

    /// A docker-archive has no manifest with digests: the diff ids of the configuration are what layers are verified against.
    fn find_in_docker(&self, members: &Members) -> Result<Vec<(Found, SmallBlobs)>, crate::Error> {
        let path = members.shown();
        let malformed = |reason: String| Error::Malformed { path: path.clone(), member: DOCKER_FILE.into(), reason };
        let listed = members.read(DOCKER_FILE, MANIFEST_BYTES_MAX)?;
        let listed: Vec<Value> = serde_json::from_slice(&listed).map_err(|error| malformed(error.to_string()))?;
        let mut found = Vec::new();
        for entry in listed {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let config_member = text(&entry["Config"]).ok_or_else(|| malformed("an image has no Config".to_owned()))?;
            let layer_members: Vec<String> =
                entry["Layers"].as_array().map(|list| list.iter().filter_map(text).collect()).unwrap_or_default();
            let config_bytes = members.read(&config_member, CONFIGURATION_BYTES_MAX)?;
            let config_digest = Digest::of(&config_bytes);
            let config = self.usable_configuration(&path, &config_bytes)?;
            let diff_ids = manifest::diff_ids(&config_member, &config)?;
            if diff_ids.len() != layer_members.len() {
                let reason = format!("it lists {} layers, {config_member} {}", layer_members.len(), diff_ids.len());
                return Err(malformed(reason).into());
            }
            let chain = digest::chain_ids(&diff_ids);
            let mut plans = Vec::new();
            for (position, layer_member) in layer_members.iter().enumerate() {
                let (blob_digest, size) = members.digest(layer_member)?;
                plans.push(LayerPlan {
                    blob: Blob {
                        subject: format!("layer {layer_member} in {path}"),
                        digest: blob_digest,
                        size: Some(size),
                    },
                    diff_id: diff_ids[position].clone(),
                    chain_id: chain[position].clone(),
                    parent: position.checked_sub(1).map(|below| chain[below].clone()),
                });
            }
            let written = synthesize(members, &layer_members, &plans, &config_digest, config_bytes.len())?;
            let manifest_digest = Digest::of(&written);
            let Document::Manifest(manifest, media_type) = manifest::parse(&path, OWN_MANIFEST, &written)? else {
                return Err(malformed("no manifest could be made for it".to_owned()).into());
            };
            let tags = entry["RepoTags"].as_array().map(|list| list.iter().filter_map(text).collect());
            let tags: Vec<String> = tags.unwrap_or_default();
            let resolved = Resolved {
                manifest,
                manifest_digest: manifest_digest.clone(),
                manifest_media_type: media_type,
                index: None,
                config,
                config_digest: config_digest.clone(),
                small_bytes: (written.len() + config_bytes.len()) as u64,
            };
            let tags = tags.iter().filter_map(|tag| Reference::parse(tag).ok()?.tagged_name()).collect();
            let small = vec![(manifest_digest, written), (config_digest, config_bytes)];
            found.push((Found { resolved, plans, layer_members, tags }, small));
        }
        Ok(found)
    }
}

type SmallBlobs = Vec<(Digest, Vec<u8>)>;

impl Resolved {
    fn top(&self) -> &Digest {
        self.index.as_ref().unwrap_or(&self.manifest_digest)
    }
}

/// The manifest that the registry would have had.
fn synthesize(
    members: &Members,
    layer_members: &[String],
    plans: &[LayerPlan],
    config: &Digest,
    config_size: usize,
) -> Result<Vec<u8>, crate::Error> {
    let mut layers = Vec::new();
    for (layer_member, plan) in layer_members.iter().zip(plans) {
        let media_type = match members.start(layer_member)?.as_slice() {
            [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar",
        };
        layers.push(json!({"mediaType": media_type, "digest": plan.blob.digest, "size": plan.blob.size}));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OWN_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config, "size": config_size},
        "layers": layers,
    });
    Ok(manifest.to_string().into_bytes())
}

fn read_verified(members: &Members, digest: &Digest, limit: u64) -> Result<Vec<u8>, crate::Error> {
    let bytes = members.read(&member(digest), limit)?;
    let mut hasher = digest::Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(bytes);
    }
    Err(crate::Error::DigestMismatch { subject: format!("blob {digest} in {}", members.shown()), actual })
}

/// A full name if there is one. A bare word is as likely a tag as a name, so it names nothing.
fn tag_of(annotations: &HashMap<String, String>) -> Option<String> {
    let full =
        annotations.get(FULL_NAME).or_else(|| annotations.get(REF_NAME).filter(|name| name.contains(['/', ':'])));
    Reference::parse(full?).ok()?.tagged_name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |pairs: &[(&str, &str)], expect: Option<&str>| {
            let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(tag_of(&annotations).as_deref(), expect, "{pairs:?}");
        };
        check(&[(REF_NAME, "latest")], None);
        check(&[(REF_NAME, "q.io/app:v1")], Some("q.io/app:v1"));
        check(&[(REF_NAME, "v1"), (FULL_NAME, "q.io/app:v1")], Some("q.io/app:v1"));
        check(&[], None);
    }
}
