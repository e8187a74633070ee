//! Removes what nothing refers to: layers of no image and no snapshot, blobs of no image, old partial downloads.
//! Invariant: what a lease names is not touched; a lease is taken before anyone looks whether a thing is there.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::{Images, Inner, State, remove_tree};
use crate::digest::Digest;
use crate::error::Error;

/// A partial download that nobody continued for so long is given up.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub layers: usize,
    pub blobs: usize,
    pub bytes: u64,
}

/// Keeps named content from being collected until it is dropped.
pub(crate) struct Lease {
    inner: Arc<Inner>,
    id: u64,
}

impl Lease {
    pub(crate) fn add(&self, digests: impl IntoIterator<Item = Digest>) {
        self.inner.state().leases.entry(self.id).or_default().extend(digests);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.state().leases.remove(&self.id);
    }
}

impl Images {
    /// Frees what nothing refers to. Safe at any time, also during pulls.
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        self.blocking(Inner::collect).await
    }

    pub(crate) fn lease(&self) -> Lease {
        let id = self.inner.next_lease.fetch_add(1, Ordering::Relaxed);
        Lease { inner: Arc::clone(&self.inner), id }
    }
}

impl State {
    fn used_layers(&self) -> HashSet<Digest> {
        let mut used: HashSet<Digest> = self.leases.values().flatten().cloned().collect();
        used.extend(self.images.values().flat_map(|entry| entry.record.chain.iter().cloned()));
        for snapshot in self.snapshots.values() {
            let mut next = snapshot.top.clone();
            while let Some(chain_id) = next {
                next = self.layers.get(&chain_id).and_then(|layer| layer.record.parent.clone());
                used.insert(chain_id);
            }
        }
        used
    }

    fn used_blobs(&self) -> HashSet<Digest> {
        let mut used: HashSet<Digest> = self.leases.values().flatten().cloned().collect();
        for entry in self.images.values() {
            let record = &entry.record;
            used.extend([record.id.clone(), record.manifest.clone()]);
            used.extend(record.index.clone());
            used.extend(record.layers.iter().cloned());
        }
        used
    }
}

impl Inner {
    pub(crate) fn layer_record_path(&self, chain_id: &Digest) -> std::path::PathBuf {
        self.paths.layer_records().join(format!("{}-{}.json", chain_id.algorithm().name(), chain_id.hex()))
    }

    pub(super) fn collect(&self) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let mut doomed = Vec::new();
        {
            // Renaming is quick; deleting is done after the lock is released.
            let mut state = self.state();
            let used = state.used_layers();
            let unused: Vec<Digest> = state.layers.keys().filter(|id| !used.contains(id)).cloned().collect();
            for chain_id in unused {
                let Some(layer) = state.layers.get(&chain_id).map(|layer| layer.record.clone()) else { continue };
                // The record goes first: a directory without a record is swept at the next start.
                let record = self.layer_record_path(&chain_id);
                remove_tree(&record)?;
                let away = self.fresh_temporary();
                let dir = self.paths.layer_dirs().join(&layer.name);
                state.layers.remove(&chain_id);
                rename_if_there(&dir, &away)?;
                doomed.push(away);
                collected.layers += 1;
                collected.bytes += layer.bytes;
            }
            let used = state.used_blobs();
            for algorithm in ["sha256", "sha512"] {
                for (name, path, size) in list(&self.paths.blobs(algorithm))? {
                    let known =
                        Digest::parse(&format!("{algorithm}:{name}")).is_ok_and(|digest| used.contains(&digest));
                    if !known {
                        let away = self.fresh_temporary();
                        rename_if_there(&path, &away)?;
                        doomed.push(away);
                        collected.blobs += 1;
                        collected.bytes += size;
                    }
                }
            }
            let now = SystemTime::now();
            for (name, path, size) in list(&self.paths.partials())? {
                let leased = Digest::parse(&name.replacen('-', ":", 1)).is_ok_and(|digest| used.contains(&digest));
                let modified = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or(now);
                if !leased && now.duration_since(modified).is_ok_and(|age| age > PARTIAL_AGE_MAX) {
                    doomed.push(path);
                    collected.bytes += size;
                }
            }
        }
        for path in doomed {
            remove_tree(&path)?;
        }
        Ok(collected)
    }
}

fn rename_if_there(from: &std::path::Path, to: &std::path::Path) -> Result<(), Error> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::io("move away", from, source)),
    }
}

fn list(dir: &std::path::Path) -> Result<Vec<(String, std::path::PathBuf, u64)>, Error> {
    let failed = |source| Error::io("list", dir, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let size = entry.metadata().map_or(0, |meta| meta.len());
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), size));
    }
    Ok(found)
}
