//! Manifests, indexes and configurations: bytes -> what they describe. Pure. OCI and docker schema 2 are one thing here.

use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::Error;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The types we ask a registry for.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// A manifest larger than this is refused unread, as registries themselves do.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
pub(crate) const CONFIGURATION_BYTES_MAX: u64 = 8 << 20;
/// Indexes may nest (OCI image specification, image-index.md); deeper than this is nobody's image.
pub(crate) const INDEX_DEPTH_MAX: u32 = 4;

#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Box<ImageManifest>, &'static str),
    Index(Box<ImageIndex>),
}

/// `declared` is the media type that the registry or the descriptor gave, for documents that carry none themselves.
pub(crate) fn parse(subject: &str, declared: &str, bytes: &[u8]) -> Result<Document, Error> {
    let malformed = |reason: String| Error::Malformed { subject: subject.to_owned(), reason };
    let value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(Error::NotAnImage {
            subject: subject.to_owned(),
            media_type: "docker schema 1 (obsolete; push the image again with a current tool)".to_owned(),
        });
    }
    let declared = declared.split(';').next().unwrap_or_default().trim();
    let own = value.get("mediaType").and_then(Value::as_str).map(str::to_owned);
    // OCI image specification 1.1, manifest.md: a document with both is ambiguous, and was an attack once.
    if value.get("manifests").is_some() && (value.get("layers").is_some() || value.get("config").is_some()) {
        return Err(malformed("it is both a manifest and an index".to_owned()));
    }
    let media_type = own.as_deref().unwrap_or(match declared {
        known @ (OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_INDEX) => known,
        _ if value.get("manifests").is_some() => OCI_INDEX,
        _ => OCI_MANIFEST,
    });
    match media_type {
        OCI_INDEX | DOCKER_INDEX => serde_json::from_value(value)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(|error| malformed(error.to_string())),
        OCI_MANIFEST | DOCKER_MANIFEST => {
            let kept = if media_type == OCI_MANIFEST { OCI_MANIFEST } else { DOCKER_MANIFEST };
            let manifest: ImageManifest =
                serde_json::from_value(value).map_err(|error| malformed(error.to_string()))?;
            match manifest.config().media_type().to_string().as_str() {
                OCI_CONFIG | DOCKER_CONFIG | "application/octet-stream" => {
                    Ok(Document::Manifest(Box::new(manifest), kept))
                }
                other => Err(Error::NotAnImage { subject: subject.to_owned(), media_type: other.to_owned() }),
            }
        }
        other => Err(Error::NotAnImage { subject: subject.to_owned(), media_type: other.to_owned() }),
    }
}

/// Old tools leave out fields that the specification requires; they mean this machine.
pub(crate) fn parse_configuration(subject: &str, bytes: &[u8]) -> Result<ImageConfiguration, Error> {
    let malformed = |reason: String| Error::Malformed { subject: subject.to_owned(), reason };
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let host = crate::platform::Platform::host();
    let Some(object) = value.as_object_mut() else { return Err(malformed("it is not a JSON object".to_owned())) };
    object.retain(|_, field| !field.is_null());
    object.entry("architecture").or_insert(Value::String(host.architecture));
    object.entry("os").or_insert(Value::String(host.os));
    let rootfs = object.entry("rootfs").or_insert_with(|| serde_json::json!({"type": "layers", "diff_ids": []}));
    if rootfs.get("diff_ids").is_some_and(Value::is_null) {
        rootfs["diff_ids"] = Value::Array(Vec::new());
    }
    serde_json::from_value(value).map_err(|error| malformed(error.to_string()))
}

pub(crate) fn diff_ids(subject: &str, config: &ImageConfiguration) -> Result<Vec<Digest>, Error> {
    let ids = config.rootfs().diff_ids().iter().map(|id| Digest::parse(id));
    ids.collect::<Result<_, _>>().map_err(|e| Error::Malformed { subject: subject.to_owned(), reason: e.to_string() })
}
