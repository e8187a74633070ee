//! Out: the blobs of images as an OCI layout, in a directory or in one tar that docker and podman load as well.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Error;
use crate::digest::Digest;
use crate::manifest::OCI_INDEX;
use crate::reference::Reference;
use crate::store::{ExportFormat, ImageRecord, Images, Inner};

pub(super) const LAYOUT_FILE: &str = "oci-layout";
pub(super) const INDEX_FILE: &str = "index.json";
pub(super) const DOCKER_FILE: &str = "manifest.json";
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd and others read a full name from; `ref.name` alone is often only a tag.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where an export goes: a directory or a tar.
trait Sink {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    fn file(&mut self, name: &str, from: &Path) -> io::Result<()>;
}

struct DirectorySink<'a>(&'a Path);

impl Sink for DirectorySink<'_> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, bytes)
    }

    fn file(&mut self, name: &str, from: &Path) -> io::Result<()> {
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, path).map(|_| ())
    }
}

struct TarSink<W: Write>(tar::Builder<W>);

impl<W: Write> Sink for TarSink<W> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.append_data(&mut header(bytes.len() as u64), name, bytes)
    }

    fn file(&mut self, name: &str, from: &Path) -> io::Result<()> {
        let file = File::open(from)?;
        let size = file.metadata()?.len();
        self.0.append_data(&mut header(size), name, file)
    }
}

/// No times and owners: equal images make equal archives.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

impl Images {
    /// Writes images (by name or id) into one archive file or directory at `path`.
    pub async fn export(&self, names: &[&str], path: &Path, format: ExportFormat) -> Result<(), crate::Error> {
        let lease = self.lease();
        let mut records = Vec::new();
        for name in names {
            records.push((self.inner.exportable(name, &lease)?, tags_asked_for(name)));
        }
        let path = path.to_owned();
        self.blocking(move |inner| {
            let _kept = lease;
            write(inner, &records, &path, format)
        })
        .await
    }
}

/// The name given is the name exported; an image given by id takes all its names along.
fn tags_asked_for(name: &str) -> Option<String> {
    Reference::parse(name).ok().and_then(|reference| reference.tagged_name())
}

fn write(
    inner: &Inner,
    images: &[(ImageRecord, Option<String>)],
    path: &Path,
    format: ExportFormat,
) -> Result<(), crate::Error> {
    let shown = path.display().to_string();
    let failed = |source: io::Error| Error::Write { path: shown.clone(), source: Arc::new(source) };
    match format {
        ExportFormat::Directory => {
            fs::create_dir_all(path).map_err(failed)?;
            if fs::read_dir(path).map_err(failed)?.next().is_some() {
                return Err(Error::Occupied { path: shown }.into());
            }
            fill(inner, images, &mut DirectorySink(path)).map_err(failed)?;
        }
        ExportFormat::Archive => {
            // Beside, so that a failed export leaves no half archive under the name that was asked for.
            let mut beside = path.as_os_str().to_owned();
            beside.push(".part");
            let written = write_tar(inner, images, Path::new(&beside)).and_then(|()| fs::rename(&beside, path));
            written.map_err(|source| {
                let _ = fs::remove_file(&beside);
                failed(source)
            })?;
        }
    }
    Ok(())
}

fn write_tar(inner: &Inner, images: &[(ImageRecord, Option<String>)], path: &Path) -> io::Result<()> {
    let mut sink = TarSink(tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?)));
    fill(inner, images, &mut sink)?;
    let file = sink.0.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

fn fill(inner: &Inner, images: &[(ImageRecord, Option<String>)], sink: &mut dyn Sink) -> io::Result<()> {
    let mut descriptors = Vec::new();
    let mut docker = Vec::new();
    let mut done = std::collections::HashSet::new();
    for (record, asked) in images {
        let tags: Vec<&String> = match asked {
            Some(tag) if record.tags.contains(tag) => vec![tag],
            _ => record.tags.iter().collect(),
        };
        for digest in record.layers.iter().chain([&record.id, &record.manifest]) {
            if done.insert(digest.clone()) {
                sink.file(&member(digest), &inner.paths.blob(digest))?;
            }
        }
        let size = fs::metadata(inner.paths.blob(&record.manifest))?.len();
        let descriptor = |annotations: Value| json!({"mediaType": record.manifest_media_type, "digest": record.manifest, "size": size, "annotations": annotations});
        for tag in &tags {
            let short = tag.rsplit_once(':').map_or(tag.as_str(), |(_, short)| short);
            descriptors.push(descriptor(json!({FULL_NAME: tag, REF_NAME: short})));
        }
        if tags.is_empty() {
            descriptors.push(descriptor(json!({})));
        }
        docker.push(json!({
            "Config": member(&record.id),
            "RepoTags": tags,
            "Layers": record.layers.iter().map(member).collect::<Vec<_>>(),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors});
    sink.bytes(DOCKER_FILE, Value::Array(docker).to_string().as_bytes())?;
    sink.bytes(INDEX_FILE, index.to_string().as_bytes())?;
    // Last: a directory without it is no layout, so a torn export is not taken for one.
    sink.bytes(LAYOUT_FILE, LAYOUT.as_bytes())
}

pub(super) fn member(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
