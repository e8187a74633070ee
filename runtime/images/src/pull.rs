//! Pulling: a reference -> verified, unpacked and recorded.
//!
//!     manifest (index -> the platform's) -> configuration -> layers side by side: fetch | hash | decompress | hash | unpack
//!                                                         -> bottom to top: settle, move into place -> records
//!
//! Invariant: an image is recorded only after everything it needs is in place and on disk. What a killed pull leaves is
//! either continued by the next (partial files, finished blobs) or swept.

mod layers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use oci_spec::image::{ImageConfiguration, ImageManifest};

use crate::auth::Auth;
use crate::digest::{self, Digest};
use crate::error::{Error, Kind};
use crate::manifest::{self, CONFIGURATION_BYTES_MAX, Document, INDEX_DEPTH_MAX, OCI_MANIFEST};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::{Access, Asked, Session, download};
use crate::store::{Blob, Image, ImageRecord, Images, Lease};

pub(crate) use layers::{LayerPlan, Source};

type Outcome = Result<Image, Error>;

/// Pulls under way, by what was asked for. The last caller that goes away takes the pull with it.
#[derive(Default)]
pub(crate) struct Pulls {
    running: HashMap<(Reference, Option<Auth>), Running>,
}

struct Running {
    outcome: WeakShared<BoxFuture<'static, Outcome>>,
    audience: Audience,
}

/// Everyone who follows one pull.
#[derive(Clone, Default)]
struct Audience(Arc<Mutex<Vec<Progress>>>);

impl Audience {
    fn join(&self, progress: Progress) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(progress);
    }

    fn progress(&self) -> Progress {
        let audience = self.clone();
        Progress::to(move |event| {
            for listener in audience.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                listener.tell(event.clone());
            }
        })
    }
}

/// Tells blocking threads that nobody waits for them any more.
#[derive(Default)]
pub(crate) struct CancelOnDrop(Arc<AtomicBool>);

impl CancelOnDrop {
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A manifest for this machine, and everything about it that is small.
pub(crate) struct Resolved {
    pub(crate) manifest: Box<ImageManifest>,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest_media_type: &'static str,
    pub(crate) index: Option<Digest>,
    pub(crate) config: Arc<ImageConfiguration>,
    pub(crate) config_digest: Digest,
    /// Of manifest and configuration.
    pub(crate) small_bytes: u64,
}

impl Images {
    /// Fetches an image and unpacks it. Callers that ask for the same image with the same credentials share one pull;
    /// it ends when the last of them gives up.
    pub async fn pull(&self, reference: &Reference, auth: Option<Auth>, progress: Progress) -> Result<Image, Error> {
        self.join_pull(reference, auth, progress).await
    }

    fn join_pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        progress: Progress,
    ) -> Shared<BoxFuture<'static, Outcome>> {
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.running.retain(|_, running| running.outcome.upgrade().is_some());
        let key = (reference.clone(), auth);
        if let Some(running) = pulls.running.get(&key)
            && let Some(pull) = running.outcome.upgrade()
            && pull.peek().is_none()
        {
            running.audience.join(progress);
            return pull;
        }
        let audience = Audience::default();
        audience.join(progress);
        let (images, reference, auth, told) = (self.clone(), key.0.clone(), key.1.clone(), audience.progress());
        let pull = async move {
            let result = images.pull_now(&reference, auth, &told).await;
            result.map_err(|source| Error::Pull { reference: reference.familiar(), source: Box::new(source) })
        };
        let pull = pull.boxed().shared();
        if let Some(outcome) = pull.downgrade() {
            pulls.running.insert(key, Running { outcome, audience });
        }
        pull
    }

    async fn pull_now(&self, reference: &Reference, auth: Option<Auth>, progress: &Progress) -> Outcome {
        let inner = &self.inner;
        let session = Session::open(&inner.transports, &inner.config, reference, auth, Access::Pull)?;
        let lease = self.lease();
        let resolved = self.fetch_resolved(&session, reference, &lease).await?;
        let subject = format!("configuration of {reference}");
        let plans = layer_plans(&subject, reference, &resolved)?;
        progress.tell(Event::Resolved {
            manifest: resolved.manifest_digest.clone(),
            layers: plans.len(),
            bytes: plans.iter().filter_map(|plan| plan.blob.size).sum(),
        });
        let session = Arc::new(session);
        self.bring_layers(&plans, &lease, progress, |_| Source::Registry(Arc::clone(&session))).await?;
        let top = resolved.index.clone().unwrap_or_else(|| resolved.manifest_digest.clone());
        let digests = vec![format!("{}@{top}", reference.name())];
        self.record_image(resolved, &plans, reference.tagged_name().into_iter().collect(), digests).await
    }

    /// Everything is in place: makes it durable and gives it its names.
    pub(crate) async fn record_image(
        &self,
        resolved: Resolved,
        plans: &[LayerPlan],
        tags: Vec<String>,
        digests: Vec<String>,
    ) -> Outcome {
        let layers_bytes: u64 = plans.iter().filter_map(|plan| plan.blob.size).sum();
        let record = ImageRecord {
            id: resolved.config_digest,
            manifest: resolved.manifest_digest,
            manifest_media_type: resolved.manifest_media_type.to_owned(),
            index: resolved.index,
            tags,
            digests,
            layers: plans.iter().map(|plan| plan.blob.digest.clone()).collect(),
            chain: plans.iter().map(|plan| plan.chain_id.clone()).collect(),
            size_bytes: resolved.small_bytes + layers_bytes,
            pinned: false,
        };
        let config = resolved.config;
        self.blocking(move |inner| {
            inner.save_layers(&record.chain)?;
            inner.add_image(record, config)
        })
        .await
    }

    async fn fetch_resolved(&self, session: &Session, reference: &Reference, lease: &Lease) -> Result<Resolved, Error> {
        let image = reference.to_string();
        let mut fetched = session.manifest(&reference.target(), reference.digest()).await?;
        let mut index = None;
        let mut document = manifest::parse(&image, &fetched.media_type, &fetched.bytes)?;
        let mut depth = 0;
        while let Document::Index(list) = &document {
            if depth >= INDEX_DEPTH_MAX {
                let reason = format!("its indexes are nested more than {INDEX_DEPTH_MAX} deep");
                return Err(Error::Malformed { subject: image, reason });
            }
            depth += 1;
            let wanted = &self.inner.config.platform;
            let chosen = wanted.choose(list.manifests()).map_err(|offered| Error::NoPlatform {
                image: image.clone(),
                wanted: wanted.to_string(),
                offered,
            })?;
            let target = descriptor_digest(&image, chosen.digest())?;
            let media_type = chosen.media_type().to_string();
            self.keep_small(lease, &fetched.digest, fetched.bytes.clone()).await?;
            // The outermost is what the name stands for.
            index.get_or_insert(fetched.digest);
            fetched = session.manifest(&target.to_string(), Some(&target)).await?;
            document = manifest::parse(&image, &media_type, &fetched.bytes)?;
        }
        let Document::Manifest(manifest, manifest_media_type) = document else {
            return Err(Error::Malformed { subject: image, reason: "it names no manifest".to_owned() });
        };
        self.keep_small(lease, &fetched.digest, fetched.bytes.clone()).await?;
        let config_digest = descriptor_digest(&image, manifest.config().digest())?;
        let config_size = manifest.config().size();
        let blob = Blob {
            digest: config_digest.clone(),
            size: Some(config_size),
            subject: format!("configuration {config_digest} of {reference}"),
        };
        if config_size > CONFIGURATION_BYTES_MAX {
            let reason = format!("it has {config_size} bytes, more than {CONFIGURATION_BYTES_MAX} are not taken");
            return Err(Error::Malformed { subject: blob.subject, reason });
        }
        lease.add([config_digest.clone()]);
        let config_bytes = match self.fetch_small(session, Asked::Everyone, &blob).await {
            Err(corrupt) if corrupt.kind() == Kind::Corrupt && session.has_mirrors() => {
                self.fetch_small(session, Asked::RegistryOnly, &blob).await.map_err(|_| corrupt)?
            }
            other => other?,
        };
        let config = self.usable_configuration(&image, &config_bytes)?;
        self.keep_small(lease, &config_digest, config_bytes.into()).await?;
        Ok(Resolved {
            manifest,
            manifest_digest: fetched.digest,
            manifest_media_type,
            index,
            config,
            config_digest,
            small_bytes: fetched.bytes.len() as u64 + config_size,
        })
    }

    /// A configuration of an image that runs here.
    pub(crate) fn usable_configuration(&self, image: &str, bytes: &[u8]) -> Result<Arc<ImageConfiguration>, Error> {
        let config = manifest::parse_configuration(&format!("configuration of {image}"), bytes)?;
        let wanted = &self.inner.config.platform;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        if !wanted.suits(&os, &architecture) {
            let offered = vec![format!("{os}/{architecture}")];
            return Err(Error::NoPlatform { image: image.to_owned(), wanted: wanted.to_string(), offered });
        }
        Ok(Arc::new(config))
    }

    pub(crate) async fn keep_small(&self, lease: &Lease, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        lease.add([digest.clone()]);
        let digest = digest.clone();
        self.blocking(move |inner| inner.put_blob(&digest, &bytes)).await
    }

    /// A blob small enough to be held in memory, verified.
    async fn fetch_small(&self, session: &Session, asked: Asked, blob: &Blob) -> Result<Vec<u8>, Error> {
        let size = blob.size.unwrap_or(CONFIGURATION_BYTES_MAX);
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
        let fetching = async move { download(session, asked, &blob.digest, size, 0, &sender).await };
        let collecting = async {
            let mut bytes = Vec::new();
            while let Some(piece) = receiver.recv().await {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > size {
                    break;
                }
            }
            // Dropping it tells the download that enough came.
            drop(receiver);
            bytes
        };
        let (fetched, bytes) = tokio::join!(fetching, collecting);
        fetched?;
        let mut hasher = digest::Hasher::new(blob.digest.algorithm());
        hasher.update(&bytes);
        let (subject, actual) = (blob.subject.clone(), bytes.len() as u64);
        if actual != size {
            return Err(Error::SizeMismatch { subject, expected: size, actual });
        }
        let actual = hasher.finish();
        if actual == blob.digest { Ok(bytes) } else { Err(Error::DigestMismatch { subject, actual }) }
    }

    /// Sends an image that is here to a registry under `reference`.
    pub async fn push(&self, name: &str, reference: &Reference, auth: Option<Auth>) -> Result<(), Error> {
        let result = self.push_now(name, reference, auth).await;
        result.map_err(|source| Error::Push { reference: reference.familiar(), source: Box::new(source) })
    }

    async fn push_now(&self, name: &str, reference: &Reference, auth: Option<Auth>) -> Result<(), Error> {
        let inner = &self.inner;
        let lease = self.lease();
        let record = inner.exportable(name, &lease)?;
        let session = Session::open(&inner.transports, &inner.config, reference, auth, Access::Push)?;
        for digest in record.layers.iter().chain([&record.id]) {
            session.push_blob(digest, &inner.paths.blob(digest)).await?;
        }
        let manifest = record.manifest.clone();
        let bytes = self.blocking(move |inner| inner.read_blob(&manifest)).await?;
        let target = reference.tag().map_or_else(|| record.manifest.to_string(), str::to_owned);
        session.push_manifest(&target, &record.manifest_media_type, bytes.into()).await
    }
}

pub(crate) fn descriptor_digest(subject: &str, digest: &oci_spec::image::Digest) -> Result<Digest, Error> {
    let malformed = |error: digest::ParseError| Error::Malformed { subject: subject.into(), reason: error.to_string() };
    Digest::parse(digest.as_ref()).map_err(malformed)
}

/// Overlayfs stacks no more than some five hundred (kernel, fs/overlayfs: OVL_MAX_STACK).
const LAYERS_MAX: usize = 512;
/// What a descriptor may say of a layer: a tebibyte, so that sums of sizes never come near their type's end.
const LAYER_BYTES_MAX: u64 = 1 << 40;

/// Pairs the manifest's layers with the configuration's diff ids.
pub(crate) fn layer_plans(
    subject: &str,
    image: &dyn std::fmt::Display,
    resolved: &Resolved,
) -> Result<Vec<LayerPlan>, Error> {
    let diff_ids = manifest::diff_ids(subject, &resolved.config)?;
    let descriptors = resolved.manifest.layers();
    if diff_ids.len() != descriptors.len() {
        let reason = format!("it lists {} layers, the manifest {}", diff_ids.len(), descriptors.len());
        return Err(Error::Malformed { subject: subject.to_owned(), reason });
    }
    if descriptors.len() > LAYERS_MAX {
        let reason = format!("it has {} layers, more than {LAYERS_MAX} are not taken", descriptors.len());
        return Err(Error::Malformed { subject: subject.to_owned(), reason });
    }
    let chain = digest::chain_ids(&diff_ids);
    let mut plans = Vec::new();
    for (position, descriptor) in descriptors.iter().enumerate() {
        let digest = descriptor_digest(subject, descriptor.digest())?;
        let subject = format!("layer {digest} of {image}");
        if descriptor.size() > LAYER_BYTES_MAX {
            let reason = format!("it has {} bytes, more than {LAYER_BYTES_MAX} are not taken", descriptor.size());
            return Err(Error::Malformed { subject, reason });
        }
        plans.push(LayerPlan {
            blob: Blob { digest, size: Some(descriptor.size()), subject },
            diff_id: diff_ids[position].clone(),
            chain_id: chain[position].clone(),
            parent: position.checked_sub(1).map(|below| chain[below].clone()),
        });
    }
    Ok(plans)
}

/// The manifest type we write ourselves.
pub(crate) const OWN_MANIFEST: &str = OCI_MANIFEST;
