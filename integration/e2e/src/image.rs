//! Images for tests: programs of this machine's Debian packages with the shared libraries they need, and a configuration.
//! Only files, no package scripts. Equal builders make equal digests, so a registry that has an image gets nothing new.
//!
//!     let registry = Registry::start()?;
//!     let image = registry.push(&image::nginx()?, "nginx:1")?;      // "127.0.0.1:41373/nginx:1"

mod debian;
pub(crate) mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

pub use debian::{busybox, nginx, redis};

const LINKS_MAX: usize = 40;
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

#[derive(Clone, Debug)]
enum Node {
    Directory { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Link(PathBuf),
}

#[derive(Clone, Debug)]
struct Placed {
    node: Node,
    uid: u64,
    gid: u64,
}

/// An image under construction. Paths are absolute, as the container will see them.
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<BTreeMap<PathBuf, Placed>>,
    users: Vec<(String, u32, u32)>,
    config: BTreeMap<&'static str, Value>,
    env: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// An image as a registry holds it.
#[derive(Clone, Debug)]
pub struct Built {
    /// Configuration and layers by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    /// Digest of the configuration: what the CRI calls the image id.
    pub id: String,
}

impl Built {
    pub fn manifest_digest(&self) -> String {
        digest(&self.manifest)
    }

    pub fn size_bytes(&self) -> usize {
        self.blobs.values().map(Vec::len).sum::<usize>() + self.manifest.len()
    }

    /// Writes an OCI layout for `import`, naming the image `name`.
    pub fn write_layout(&self, dir: &Path, name: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let manifest = (self.manifest_digest(), self.manifest.clone());
        for (digest, bytes) in self.blobs.iter().chain([(&manifest.0, &manifest.1)]) {
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
        }
        let descriptor = json!({
            "mediaType": MANIFEST_TYPE, "digest": manifest.0, "size": self.manifest.len(),
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
        });
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string())?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

impl ImageBuilder {
    pub fn new() -> Self {
        Self { layers: vec![BTreeMap::new()], ..Self::default() }.directory("/tmp", 0o1777)
    }

    /// What follows goes into a layer of its own.
    pub fn next_layer(mut self) -> Self {
        self.layers.push(BTreeMap::new());
        self
    }

    pub fn directory(self, path: impl AsRef<Path>, mode: u32) -> Self {
        self.place(path.as_ref(), Node::Directory { mode }, 0)
    }

    /// A directory that belongs to a user and the group of the same number.
    pub fn directory_of(self, path: impl AsRef<Path>, mode: u32, owner: u32) -> Self {
        self.place(path.as_ref(), Node::Directory { mode }, owner)
    }

    pub fn file(self, path: impl AsRef<Path>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.place(path.as_ref(), Node::File { mode, bytes: bytes.into() }, 0)
    }

    pub fn symlink(self, path: impl AsRef<Path>, target: impl Into<PathBuf>) -> Self {
        self.place(path.as_ref(), Node::Link(target.into()), 0)
    }

    /// A file of this machine, at the same path, with every symbolic link on the way to it.
    pub fn copy(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let mut real = PathBuf::from("/");
        let mut rest: Vec<PathBuf> = components(path.as_ref());
        rest.reverse();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name.as_os_str() == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let meta = fs::symlink_metadata(&next).with_context(|| format!("look at {}", next.display()))?;
            if meta.is_symlink() {
                links += 1;
                if links > LINKS_MAX {
                    bail!("{} goes through too many links", path.as_ref().display());
                }
                let target = fs::read_link(&next)?;
                self = self.symlink(&next, &target);
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(components(&target).into_iter().rev());
            } else {
                real = next;
            }
        }
        let mode = fs::metadata(&real)?.permissions().mode() & 0o7777;
        let bytes = fs::read(&real).with_context(|| format!("read {}", real.display()))?;
        Ok(self.file(&real, mode, bytes))
    }

    /// A program of this machine with the dynamic loader and all shared libraries it needs.
    pub fn program(mut self, path: impl AsRef<Path>) -> Result<Self> {
        for needed in program::needed(path.as_ref())? {
            self = self.copy(needed)?;
        }
        self.copy(path)
    }

    /// A line of `/etc/passwd` and one of `/etc/group`.
    pub fn user(mut self, name: &str, uid: u32, gid: u32) -> Self {
        self.users.push((name.to_owned(), uid, gid));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    pub fn command(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    pub fn working_directory(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    /// `uid`, `name`, `uid:gid`: whom the container runs as.
    pub fn run_as(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    pub fn stop_signal(self, signal: &str) -> Self {
        self.set("StopSignal", json!(signal))
    }

    pub fn exposed_port(self, port: &str) -> Self {
        self.set("ExposedPorts", json!({port: {}}))
    }

    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    fn set(mut self, key: &'static str, value: Value) -> Self {
        self.config.insert(key, value);
        self
    }

    fn place(mut self, path: &Path, node: Node, owner: u32) -> Self {
        let path: PathBuf = components(path).iter().collect();
        let placed = Placed { node, uid: owner.into(), gid: owner.into() };
        if self.layers.is_empty() {
            self.layers.push(BTreeMap::new());
        }
        if let Some(layer) = self.layers.last_mut() {
            layer.insert(path, placed);
        }
        self
    }

    pub fn build(&self) -> Result<Built> {
        let mut this = self.clone();
        let (mut passwd, mut group) = (String::from("root:x:0:0:root:/root:/bin/sh\n"), String::from("root:x:0:\n"));
        for (name, uid, gid) in &self.users {
            passwd.push_str(&format!("{name}:x:{uid}:{gid}:{name}:/:/bin/sh\n"));
            group.push_str(&format!("{name}:x:{gid}:\n"));
        }
        this = this.file("/etc/passwd", 0o644, passwd).file("/etc/group", 0o644, group);
        if !self.env.iter().any(|pair| pair.starts_with("PATH=")) {
            this = this.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        }
        let mut blobs = BTreeMap::new();
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for layer in this.layers.iter().filter(|layer| !layer.is_empty()) {
            let tar = layer_tar(layer)?;
            diff_ids.push(digest(&tar));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&tar)?;
            let packed = gzip.finish()?;
            let name = digest(&packed);
            layers.push(json!({"mediaType": LAYER_TYPE, "digest": name, "size": packed.len()}));
            blobs.insert(name, packed);
        }
        let mut config = serde_json::Map::new();
        config.extend(this.config.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        config.insert("Env".to_owned(), json!(this.env));
        if !this.labels.is_empty() {
            config.insert("Labels".to_owned(), json!(this.labels));
        }
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let id = digest(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers,
            "config": {"mediaType": CONFIG_TYPE, "digest": id, "size": config.len()},
        });
        blobs.insert(id.clone(), config);
        Ok(Built { blobs, manifest: manifest.to_string().into_bytes(), id })
    }
}

/// The names of a path, `..` kept, root and `.` dropped.
fn components(path: &Path) -> Vec<PathBuf> {
    let kept = |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(kept).map(|component| PathBuf::from(component.as_os_str())).collect()
}

/// No times, so that equal content is an equal layer.
fn layer_tar(layer: &BTreeMap<PathBuf, Placed>) -> io::Result<Vec<u8>> {
    let mut all = layer.clone();
    for path in layer.keys() {
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let directory = Placed { node: Node::Directory { mode: 0o755 }, uid: 0, gid: 0 };
            all.entry(parent.to_owned()).or_insert(directory);
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, placed) in &all {
        let mut header = Header::new_gnu();
        header.set_uid(placed.uid);
        header.set_gid(placed.gid);
        header.set_mtime(0);
        header.set_size(0);
        match &placed.node {
            Node::Directory { mode } => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, io::empty())?;
            }
            Node::File { mode, bytes } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, &bytes[..])?;
            }
            Node::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    tar.into_inner()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
