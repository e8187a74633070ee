//! What is on this machine: images by name, layers by chain id, snapshots by key. One process owns a store at a time.
//! Facts live in records; `State` is their copy in memory. Not here: fetching (pull.rs) and unpacking (layer.rs).

mod garbage;
mod image;
mod layers;
mod locks;
mod open;
mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::fcntl::Flock;
use oci_spec::image::ImageConfiguration;
use runtime_linux::tree;
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;
use crate::pull::Pulls;
use crate::registry::Transports;

pub use runtime_linux::mount::Overlay;

pub use garbage::Collected;
pub(crate) use garbage::Lease;
pub(crate) use image::{ImageRecord, LayerRecord};
pub(crate) use layers::{Aside, Blob};
pub(crate) use locks::Guard;
use locks::Locks;
use snapshot::SnapshotRecord;
pub use snapshot::{FsUsage, Usage};

/// How many layers are fetched and unpacked at once unless configured otherwise.
const LAYERS_IN_FLIGHT: usize = 4;

#[derive(Clone, Debug)]
pub struct Config {
    /// Everything is kept below it; created if missing.
    pub dir: PathBuf,
    /// One directory per registry with a `hosts.toml`, read again for each pull. Absent is the same as empty.
    pub registries_dir: Option<PathBuf>,
    /// `host[:port]` of registries whose certificate is not checked and which may speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Which manifest of an index is taken.
    pub platform: Platform,
    /// Layers fetched and unpacked at once, over all pulls.
    pub layers_in_flight_max: usize,
    /// Drop a layer's archive once it is unpacked: halves the disk, but such an image cannot be exported or pushed.
    pub discard_layer_archives: bool,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            registries_dir: None,
            insecure_registries: Vec::new(),
            platform: Platform::host(),
            layers_in_flight_max: LAYERS_IN_FLIGHT,
            discard_layer_archives: false,
        }
    }
}

/// An image as it is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the image configuration.
    pub id: Digest,
    /// `docker.io/library/nginx:latest`; empty when another image took the name.
    pub tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:...`
    pub digests: Vec<String>,
    /// Manifest, configuration and layers as the registry sends them.
    pub size_bytes: u64,
    pub config: Arc<ImageConfiguration>,
    /// Not to be collected by whoever frees disk space.
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI image layout as a directory.
    Directory,
    /// One tar file that is both an OCI layout and a docker-archive.
    Archive,
}

/// The store of images. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("dir", &self.inner.config.dir).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    state: Mutex<State>,
    pub(crate) transports: Transports,
    /// One at a time unpacks a layer (by chain id) or fetches a blob (by digest).
    pub(crate) locks: Locks,
    pub(crate) layer_slots: Arc<Semaphore>,
    /// Of layers read from archives, whom no registry can keep waiting.
    pub(crate) import_slots: Arc<Semaphore>,
    pub(crate) pulls: Mutex<Pulls>,
    next_name: AtomicU64,
    next_lease: AtomicU64,
    /// Held until the last clone is gone; the kernel lets go of it when the process dies.
    _lock: Flock<File>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Entry>,
    /// By chain id.
    pub(crate) layers: HashMap<Digest, Layer>,
    /// By key.
    snapshots: BTreeMap<String, SnapshotRecord>,
    /// What pulls and imports under way rely on, by lease.
    leases: HashMap<u64, HashSet<Digest>>,
}

pub(crate) struct Entry {
    pub(crate) record: ImageRecord,
    pub(crate) config: Arc<ImageConfiguration>,
}

pub(crate) struct Layer {
    pub(crate) record: LayerRecord,
    /// Whether the record is on disk; it goes there only after the layer's files have.
    pub(crate) saved: bool,
}

pub(crate) struct Paths {
    dir: PathBuf,
}

impl Paths {
    pub(crate) fn images(&self) -> PathBuf {
        self.dir.join("images.json")
    }
    pub(crate) fn blobs(&self, algorithm: &str) -> PathBuf {
        self.dir.join("blobs").join(algorithm)
    }
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm().name()).join(digest.hex())
    }
    pub(crate) fn partials(&self) -> PathBuf {
        self.dir.join("partial")
    }
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
    pub(crate) fn layer_dirs(&self) -> PathBuf {
        self.dir.join("l")
    }
    pub(crate) fn layer_records(&self) -> PathBuf {
        self.dir.join("layers")
    }
    pub(crate) fn snapshot_dirs(&self) -> PathBuf {
        self.dir.join("s")
    }
    pub(crate) fn snapshot_records(&self) -> PathBuf {
        self.dir.join("snapshots")
    }
    pub(crate) fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }
}

impl Inner {
    /// The state is consistent between any two statements that hold it, so a panic elsewhere does not poison it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A short name that no layer, snapshot or temporary directory has had.
    pub(crate) fn fresh_name(&self) -> String {
        base36(self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn fresh_temporary(&self) -> PathBuf {
        self.paths.temporary().join(self.fresh_name())
    }
}

impl Images {
    /// Runs disk work off the async threads. Work that has begun is finished even if the caller goes away.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(Error::Panicked(error.to_string())),
        }
    }
}

const BASE36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(BASE36[usize::try_from(number % 36).expect("less than 36")]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.reverse();
    String::from_utf8(digits).expect("ASCII digits")
}

/// Removes a tree that may be gone already.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    tree::remove(path).map_err(|error| Error::io("remove", path, error.into_io()))
}
