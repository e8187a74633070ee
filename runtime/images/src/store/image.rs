//! The images here: what they are called, and what they consist of.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::{Entry, Image, Images, Inner, Lease, State};
use crate::digest::Digest;
use crate::error::Error;
use crate::record;
use crate::reference::Reference;

/// Shorter prefixes of an id are too easily a name.
const ID_PREFIX_MIN: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Digest of the configuration.
    pub(crate) id: Digest,
    /// The manifest for this machine's platform.
    pub(crate) manifest: Digest,
    pub(crate) manifest_media_type: String,
    /// The index it was chosen from, if any.
    pub(crate) index: Option<Digest>,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    /// Layer archives, bottom first.
    pub(crate) layers: Vec<Digest>,
    /// Chain ids of the unpacked layers, bottom first.
    pub(crate) chain: Vec<Digest>,
    pub(crate) size_bytes: u64,
    pub(crate) pinned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) parent: Option<Digest>,
    /// Name of its directory below `l/`.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ImagesRecord {
    pub(super) images: Vec<ImageRecord>,
}

impl Images {
    pub fn list(&self) -> Vec<Image> {
        self.inner.state().images.values().map(Entry::image).collect()
    }

    /// Finds an image by name (`nginx`, `nginx:1.27`, `nginx@sha256:...`), by id (`sha256:...`) or by an unambiguous start
    /// of its id.
    pub fn resolve(&self, name: &str) -> Option<Image> {
        self.inner.state().find(name).map(Entry::image)
    }

    /// Marks an image as not to be collected, or takes the mark away.
    pub async fn set_pinned(&self, name: &str, pinned: bool) -> Result<(), Error> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            inner.change_images(|state| {
                let id = state.id_of(&name)?;
                if let Some(entry) = state.images.get_mut(&id) {
                    entry.record.pinned = pinned;
                }
                Ok(())
            })
        })
        .await
    }

    /// Gives an image one more name, taking it from the image that had it.
    pub async fn tag(&self, name: &str, tag: &Reference) -> Result<(), Error> {
        let (name, tag) = (name.to_owned(), tag.tagged_name());
        self.blocking(move |inner| {
            inner.change_images(|state| {
                let id = state.id_of(&name)?;
                state.add_names(&id, tag, None);
                Ok(())
            })
        })
        .await
    }

    /// Removes an image under all its names, and everything that only it needed. Layers below a snapshot stay until the
    /// snapshot is released.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            inner.change_images(|state| {
                let id = state.id_of(&name)?;
                state.images.remove(&id);
                Ok(())
            })?;
            inner.collect().map(|_| ())
        })
        .await
    }

    /// Takes one name from an image; the image goes with its last name.
    pub async fn untag(&self, name: &str) -> Result<(), Error> {
        let tag = Reference::parse(name)?.tagged_name();
        let name = name.to_owned();
        self.blocking(move |inner| {
            inner.change_images(|state| {
                let id = state.id_of(&name)?;
                if let Some(entry) = state.images.get_mut(&id) {
                    entry.record.tags.retain(|have| Some(have) != tag.as_ref());
                    if entry.record.tags.is_empty() {
                        state.images.remove(&id);
                    }
                }
                Ok(())
            })?;
            inner.collect().map(|_| ())
        })
        .await
    }
}

impl Entry {
    pub(super) fn image(&self) -> Image {
        let record = &self.record;
        Image {
            id: record.id.clone(),
            tags: record.tags.clone(),
            digests: record.digests.clone(),
            size_bytes: record.size_bytes,
            config: Arc::clone(&self.config),
            pinned: record.pinned,
        }
    }
}

impl State {
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        if let Ok(digest) = Digest::parse(name) {
            let by_manifest =
                |entry: &&Entry| entry.record.manifest == digest || entry.record.index.as_ref() == Some(&digest);
            return self.images.get(&digest).or_else(|| self.images.values().find(by_manifest));
        }
        if let Ok(reference) = Reference::parse(name) {
            let found = match (reference.tagged_name(), reference.digest()) {
                (Some(tag), _) => self.images.values().find(|entry| entry.record.tags.contains(&tag)),
                (None, Some(digest)) => {
                    let full = format!("{}@{digest}", reference.name());
                    self.images.values().find(|entry| entry.record.digests.contains(&full))
                }
                (None, None) => None,
            };
            if found.is_some() {
                return found;
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() < ID_PREFIX_MIN || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut starting = self.images.values().filter(|entry| entry.record.id.hex().starts_with(prefix));
        match (starting.next(), starting.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    pub(super) fn id_of(&self, name: &str) -> Result<Digest, Error> {
        let found = self.find(name).map(|entry| entry.record.id.clone());
        found.ok_or_else(|| Error::NoImage { name: name.to_owned() })
    }

    fn add_names(&mut self, id: &Digest, tag: Option<String>, digest: Option<String>) {
        if let Some(tag) = tag {
            for entry in self.images.values_mut() {
                entry.record.tags.retain(|have| *have != tag);
            }
            if let Some(entry) = self.images.get_mut(id) {
                entry.record.tags.push(tag);
            }
        }
        if let (Some(digest), Some(entry)) = (digest, self.images.get_mut(id))
            && !entry.record.digests.contains(&digest)
        {
            entry.record.digests.push(digest);
        }
    }

    pub(super) fn images_record(&self) -> ImagesRecord {
        ImagesRecord { images: self.images.values().map(|entry| entry.record.clone()).collect() }
    }
}

impl Inner {
    /// Changes the images and writes them down; on a failed write the change is undone in memory too.
    fn change_images<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state();
        let before: Vec<_> =
            state.images.values().map(|e| Entry { record: e.record.clone(), config: Arc::clone(&e.config) }).collect();
        let result = change(&mut state).and_then(|value| {
            record::save(&self.paths.images(), &state.images_record())?;
            Ok(value)
        });
        if result.is_err() {
            state.images = before.into_iter().map(|entry| (entry.record.id.clone(), entry)).collect();
        }
        result
    }

    /// An image whose blobs are all here. The lease keeps them.
    pub(crate) fn exportable(&self, name: &str, lease: &Lease) -> Result<ImageRecord, Error> {
        let record = {
            let state = self.state();
            state
                .find(name)
                .map(|entry| entry.record.clone())
                .ok_or_else(|| Error::NoImage { name: name.to_owned() })?
        };
        lease.add(record.layers.iter().chain([&record.id, &record.manifest]).cloned());
        for digest in &record.layers {
            if !self.paths.blob(digest).exists() {
                return Err(Error::ArchiveGone { image: name.to_owned(), layer: digest.clone() });
            }
        }
        Ok(record)
    }

    /// Adds an image, or what is new about one that is here, under the names it was asked for.
    pub(crate) fn add_image(&self, record: ImageRecord, config: Arc<ImageConfiguration>) -> Result<Image, Error> {
        self.change_images(|state| {
            let id = record.id.clone();
            let (tags, digests) = (record.tags.clone(), record.digests.clone());
            let mut merged = ImageRecord { tags: Vec::new(), digests: Vec::new(), ..record };
            if let Some(have) = state.images.get(&id) {
                merged.tags.clone_from(&have.record.tags);
                merged.digests.clone_from(&have.record.digests);
                merged.pinned |= have.record.pinned;
            }
            state.images.insert(id.clone(), Entry { record: merged, config });
            for tag in tags {
                state.add_names(&id, Some(tag), None);
            }
            for digest in digests {
                state.add_names(&id, None, Some(digest));
            }
            Ok(state.images[&id].image())
        })
    }
}
