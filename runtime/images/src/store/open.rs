//! Opening a store: takes the lock, sweeps what a crash left, reads the records.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::image::ImagesRecord;
use super::locks::Locks;
use super::snapshot::EMPTY_LAYER;
use super::{Config, Entry, Images, Inner, Layer, LayerRecord, Paths, SnapshotRecord, State, remove_tree};
use crate::digest::Digest;
use crate::error::Error;
use crate::registry::Transports;
use crate::{manifest, record};

impl Images {
    /// Opens or creates the store at `config.dir`. Fails with `Locked` while another process has it open.
    pub fn open(config: Config) -> Result<Self, Error> {
        // What is handed out to mount must mean the same from any working directory.
        let dir = std::path::absolute(&config.dir).map_err(|source| Error::io("find", &config.dir, source))?;
        let config = Config { dir, ..config };
        let slots = config.layers_in_flight_max.max(1);
        let paths = Paths { dir: config.dir.clone() };
        // 0711: a container in a user namespace must be able to pass through to its layers.
        for dir in [&config.dir, &paths.layer_dirs(), &paths.snapshot_dirs()] {
            make_dir(dir, 0o711)?;
        }
        for dir in [
            paths.blobs("sha256"),
            paths.blobs("sha512"),
            paths.partials(),
            paths.layer_records(),
            paths.snapshot_records(),
            paths.temporary(),
        ] {
            make_dir(&dir, 0o700)?;
        }
        make_dir(&paths.layer_dirs().join(EMPTY_LAYER), 0o755)?;
        let lock = lock(&config.dir)?;
        for leftover in names(&paths.temporary())? {
            remove_tree(&paths.temporary().join(leftover))?;
        }
        let (state, highest) = load(&paths)?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                paths,
                state: Mutex::new(state),
                transports: Transports::default(),
                locks: Locks::default(),
                layer_slots: Arc::new(Semaphore::new(slots)),
                import_slots: Arc::new(Semaphore::new(slots)),
                pulls: Mutex::default(),
                next_name: AtomicU64::new(highest + 1),
                next_lease: AtomicU64::new(0),
                _lock: lock,
            }),
        })
    }
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::io("create directory", dir, source);
    fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(failed)?;
    // The umask may have taken bits away.
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(failed)
}

fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| Error::io("open", &path, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::Locked { dir: dir.to_owned() },
        errno => Error::io("lock", &path, errno.into()),
    })
}

fn load(paths: &Paths) -> Result<(State, u64), Error> {
    let mut state = State::default();
    let mut highest = 0;
    let mut saw = |name: &str| highest = highest.max(u64::from_str_radix(name, 36).unwrap_or(0));

    let layer_dirs: HashSet<String> = names(&paths.layer_dirs())?.into_iter().filter(|n| n != EMPTY_LAYER).collect();
    layer_dirs.iter().for_each(|name| saw(name));
    let layers = records::<LayerRecord>(&paths.layer_records())?;
    for (path, layer) in layers.read {
        if layer_dirs.contains(&layer.name) {
            state.layers.insert(layer.chain_id.clone(), Layer { record: layer, saved: true });
        } else {
            // Whoever removed the directory wanted it gone; the next pull unpacks it again.
            tracing::warn!(layer = %layer.chain_id, "the directory of a layer is gone");
            remove_tree(&path)?;
        }
    }
    let snapshot_dirs = names(&paths.snapshot_dirs())?;
    snapshot_dirs.iter().for_each(|name| saw(name));
    let snapshots = records::<SnapshotRecord>(&paths.snapshot_records())?;
    for (_, snapshot) in snapshots.read {
        state.snapshots.insert(snapshot.key.clone(), snapshot);
    }
    // A directory without a record was being made or removed when the last process died.
    let recorded: HashSet<&String> = state.layers.values().map(|layer| &layer.record.name).collect();
    // With a record that could not be read, any of them may be what a container runs on.
    for name in layer_dirs.iter().filter(|name| !layers.has_damaged && !recorded.contains(name)) {
        remove_tree(&paths.layer_dirs().join(name))?;
    }
    let recorded: HashSet<&String> = state.snapshots.values().map(|snapshot| &snapshot.name).collect();
    for name in snapshot_dirs.iter().filter(|name| !snapshots.has_damaged && !recorded.contains(name)) {
        remove_tree(&paths.snapshot_dirs().join(name))?;
    }
    state.images = load_images(paths)?.into_iter().collect();
    Ok((state, highest))
}

fn load_images(paths: &Paths) -> Result<HashMap<Digest, Entry>, Error> {
    let record: Option<ImagesRecord> = record::load_or_set_aside(&paths.images())?;
    let mut images = HashMap::new();
    for record in record.map(|record| record.images).unwrap_or_default() {
        let path = paths.blob(&record.id);
        let config = fs::read(&path).map_err(|source| Error::io("read", &path, source)).and_then(|bytes| {
            let subject = format!("configuration {}", record.id);
            manifest::parse_configuration(&subject, &bytes)
        });
        match config {
            Ok(config) => {
                images.insert(record.id.clone(), Entry { record, config: Arc::new(config) });
            }
            // One damaged image must not take the others with it.
            Err(error) => tracing::warn!(image = %record.id, %error, "forgetting an image whose configuration is gone"),
        }
    }
    Ok(images)
}

/// What a directory of records holds.
struct Records<T> {
    read: Vec<(PathBuf, T)>,
    /// Whether one had to be set aside, now or at an earlier start.
    has_damaged: bool,
}

fn records<T: DeserializeOwned>(dir: &Path) -> Result<Records<T>, Error> {
    let mut read = Vec::new();
    for name in names(dir)? {
        let path = dir.join(&name);
        if !name.ends_with(".json") {
            // Half of a save that was interrupted.
            remove_tree(&path)?;
        } else if let Some(body) = record::load_or_set_aside(&path)? {
            read.push((path, body));
        }
    }
    Ok(Records { read, has_damaged: dir.with_extension("damaged").exists() })
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::io("list", dir, source);
    let entries = fs::read_dir(dir).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}
