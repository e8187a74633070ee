//! Images made in the test: layers as tar, compressed one way or another, as an OCI layout on disk or as blobs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use runtime_images::{Config, Digest, Images};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A tar under construction. Owners are root's.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, 0o644, data)
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, b"")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// Bytes that no compression makes smaller, the same each time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// An image as blobs, the way a registry holds it.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_type: String,
    pub(crate) config: String,
    pub(crate) layers: Vec<String>,
}

impl Sample {
    pub(crate) fn new(layers: &[(Vec<u8>, Packing)]) -> Self {
        Self::with_platform(layers, "linux", "amd64", OCI_MANIFEST)
    }

    pub(crate) fn with_platform(
        layers: &[(Vec<u8>, Packing)],
        os: &str,
        architecture: &str,
        manifest_type: &str,
    ) -> Self {
        let mut sample = Self { manifest_type: manifest_type.to_owned(), ..Self::default() };
        let mut descriptors = Vec::new();
        let docker = manifest_type == DOCKER_MANIFEST;
        for (tar, packing) in layers {
            let packed = pack(tar, *packing);
            let suffix = match packing {
                Packing::Plain => "",
                Packing::Gzip => "+gzip",
                Packing::Zstd => "+zstd",
            };
            let media_type = if docker {
                "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned()
            } else {
                format!("application/vnd.oci.image.layer.v1.tar{suffix}")
            };
            let digest = sample.add(packed.clone());
            descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": packed.len()}));
            sample.layers.push(digest);
        }
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["PATH=/bin", "WHO=sample"], "User": "12:34", "Cmd": ["/bin/true"]},
        });
        let config = config.to_string().into_bytes();
        sample.config = sample.add(config.clone());
        let config_type = if docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": sample.config, "size": config.len()},
            "layers": descriptors,
        });
        sample.manifest = manifest.to_string().into_bytes();
        sample
    }

    /// Two layers, the second over the first, with room enough to break in.
    pub(crate) fn small() -> Self {
        let noise = noise(600_000);
        let base = Tar::new().dir("etc", 0o755).file("etc/name", b"base").file("big", &noise).bytes();
        let top = Tar::new().file("etc/name", b"top").file("etc/.wh.nothing", b"").bytes();
        Self::new(&[(base, Packing::Gzip), (top, Packing::Zstd)])
    }

    fn add(&mut self, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    pub(crate) fn manifest_digest(&self) -> String {
        Digest::of(&self.manifest).to_string()
    }

    pub(crate) fn descriptor(&self, os: &str, architecture: &str) -> Value {
        json!({
            "mediaType": self.manifest_type, "digest": self.manifest_digest(), "size": self.manifest.len(),
            "platform": {"os": os, "architecture": architecture},
        })
    }

    /// Writes an OCI layout that names the image.
    pub(crate) fn write_layout(&self, dir: &Path, name: &str) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        }
        let digest = self.manifest_digest();
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), &self.manifest).unwrap();
        let mut descriptor = self.descriptor("linux", "amd64");
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// A store of its own, gone with the test.
pub(crate) struct Store {
    pub(crate) images: Images,
    pub(crate) dir: TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("images"));
        config.platform.architecture = "amd64".into();
        config.platform.variant = String::new();
        change(&mut config);
        Self { images: Images::open(config).unwrap(), dir }
    }

    /// The store as the next process would find it.
    pub(crate) fn reopen(self) -> Self {
        let Self { images, dir } = self;
        drop(images);
        let mut config = Config::new(dir.path().join("images"));
        config.platform.architecture = "amd64".into();
        Self { images: Images::open(config).unwrap(), dir }
    }

    /// Waits for a part to be empty: the layers beside one that failed end on threads of their own.
    pub(crate) async fn is_emptied(&self, part: &str) -> bool {
        for _ in 0..500 {
            if self.names_in(part).is_empty() {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        false
    }

    pub(crate) fn names_in(&self, part: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("images").join(part)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// An error with its causes, as a person sees it.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
