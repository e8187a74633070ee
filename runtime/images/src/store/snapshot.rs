//! Writable snapshots: one upper directory per container over the layers of its image.
//! Invariant: a snapshot's record exists exactly as long as its directories may be mounted.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use super::{Images, Inner, Overlay, State, remove_tree};
use crate::digest::Digest;
use crate::error::Error;
use crate::record;

/// Lower directory of an image without layers, since overlayfs wants at least one.
pub(super) const EMPTY_LAYER: &str = "empty";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    pub(super) key: String,
    pub(super) image: Digest,
    /// Chain id of the topmost layer; `None` for an image without layers.
    pub(super) top: Option<Digest>,
    /// Name of its directory below `s/` and of its record.
    pub(super) name: String,
}

/// What a tree takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The filesystem below the store, and how much of it is images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    pub dir: PathBuf,
    /// Unpacked layers and layer archives.
    pub used: Usage,
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Images {
    /// Makes the writable snapshot `key` over an image (by name or id), or finds it again.
    pub async fn prepare(&self, image: &str, key: &str) -> Result<Overlay, Error> {
        let (image, key) = (image.to_owned(), key.to_owned());
        self.blocking(move |inner| inner.prepare(&image, &key)).await
    }

    /// The overlay of a snapshot that was prepared before.
    pub fn snapshot(&self, key: &str) -> Result<Overlay, Error> {
        let state = self.inner.state();
        let record = state.snapshots.get(key).ok_or_else(|| Error::NoSnapshot { key: key.to_owned() })?;
        self.inner.overlay(&state, record)
    }

    /// The keys of all snapshots, for whoever looks for those that lost their container.
    pub fn snapshots(&self) -> Vec<String> {
        self.inner.state().snapshots.keys().cloned().collect()
    }

    /// Removes a snapshot and what was written to it. It must not be mounted. A snapshot that is gone is no error.
    pub async fn release(&self, key: &str) -> Result<(), Error> {
        let key = key.to_owned();
        self.blocking(move |inner| inner.release(&key)).await
    }

    /// What the container has written.
    pub async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let name = inner.state().snapshots.get(&key).map(|record| record.name.clone());
            let name = name.ok_or(Error::NoSnapshot { key })?;
            measure(&inner.snapshot_dir(&name).join("fs"))
        })
        .await
    }

    /// Sums up records: touches no file.
    pub fn fs_usage(&self) -> Result<FsUsage, Error> {
        let dir = &self.inner.config.dir;
        let stat = statvfs(dir).map_err(|errno| Error::io("measure", dir, errno.into()))?;
        let state = self.inner.state();
        let mut used = Usage::default();
        for layer in state.layers.values() {
            used.bytes += layer.record.bytes;
            used.inodes += layer.record.inodes;
        }
        for entry in state.images.values() {
            used.bytes += if self.inner.config.discard_layer_archives { 0 } else { entry.record.size_bytes };
        }
        Ok(FsUsage {
            dir: dir.clone(),
            used,
            capacity_bytes: stat.blocks() * stat.fragment_size(),
            available_bytes: stat.blocks_available() * stat.fragment_size(),
            inodes: stat.files(),
            inodes_free: stat.files_free(),
        })
    }
}

impl Inner {
    pub(super) fn snapshot_dir(&self, name: &str) -> PathBuf {
        self.paths.snapshot_dirs().join(name)
    }

    fn snapshot_record_path(&self, name: &str) -> PathBuf {
        self.paths.snapshot_records().join(format!("{name}.json"))
    }

    fn prepare(&self, image: &str, key: &str) -> Result<Overlay, Error> {
        // Held throughout: two calls with one key must not both create.
        let mut state = self.state();
        let entry = state.find(image).ok_or_else(|| Error::NoImage { name: image.to_owned() })?;
        let (id, top) = (entry.record.id.clone(), entry.record.chain.last().cloned());
        if let Some(record) = state.snapshots.get(key) {
            if record.image != id {
                return Err(Error::SnapshotTaken { key: key.to_owned(), held: record.image.clone(), asked: id });
            }
            return self.overlay(&state, record);
        }
        let record = SnapshotRecord { key: key.to_owned(), image: id, top, name: self.fresh_name() };
        let overlay = self.overlay(&state, &record)?;
        let dir = self.snapshot_dir(&record.name);
        // The merged root directory has the owner and mode of the upper one.
        let root = overlay.lower.first().map(fs::metadata).transpose();
        let root = root.map_err(|source| Error::io("look at the root of", &dir, source))?;
        let made = make_snapshot_dirs(&dir, root.as_ref())
            .and_then(|()| Ok(record::save(&self.snapshot_record_path(&record.name), &record)?));
        if let Err(error) = made {
            // The first failure is the one to tell; what stays behind is swept at the next start.
            let _ = remove_tree(&dir);
            return Err(error);
        }
        state.snapshots.insert(key.to_owned(), record);
        Ok(overlay)
    }

    fn release(&self, key: &str) -> Result<(), Error> {
        let away = self.fresh_temporary();
        {
            let mut state = self.state();
            let Some(record) = state.snapshots.get(key) else { return Ok(()) };
            remove_tree(&self.snapshot_record_path(&record.name))?;
            let dir = self.snapshot_dir(&record.name);
            state.snapshots.remove(key);
            match fs::rename(&dir, &away) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                other => other.map_err(|source| Error::io("move away", &dir, source))?,
            }
        }
        remove_tree(&away)
    }

    fn overlay(&self, state: &State, record: &SnapshotRecord) -> Result<Overlay, Error> {
        let layers = self.paths.layer_dirs();
        let mut lower = Vec::new();
        let mut next = record.top.as_ref();
        while let Some(chain_id) = next {
            let missing = || Error::LayerMissing { image: record.image.clone(), dir: self.config.dir.clone() };
            let layer = &state.layers.get(chain_id).ok_or_else(missing)?.record;
            lower.push(layers.join(&layer.name));
            next = layer.parent.as_ref();
        }
        if lower.is_empty() {
            lower.push(layers.join(EMPTY_LAYER));
        }
        let dir = self.snapshot_dir(&record.name);
        Ok(Overlay { lower, upper: dir.join("fs"), work: dir.join("work") })
    }
}

fn make_snapshot_dirs(dir: &Path, root: Option<&fs::Metadata>) -> Result<(), Error> {
    let failed = |source| Error::io("create snapshot", dir, source);
    let upper = dir.join("fs");
    fs::create_dir(dir).map_err(failed)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(failed)?;
    fs::create_dir(dir.join("work")).map_err(failed)?;
    fs::create_dir(&upper).map_err(failed)?;
    let (mode, uid, gid) = root.map_or((0o755, 0, 0), |meta| (meta.mode() & 0o7777, meta.uid(), meta.gid()));
    chown(&upper, Some(uid), Some(gid)).map_err(failed)?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Disk blocks and inodes of a tree; hard links count once. A file that vanishes meanwhile counts nothing.
pub(super) fn measure(root: &Path) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::io("measure", &dir, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| Error::io("measure", &dir, source))?;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
                continue;
            }
            usage.bytes += meta.blocks() * 512;
            usage.inodes += 1;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(usage)
}
