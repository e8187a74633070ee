//! The layers of one image: fetched and unpacked side by side, put in place from the bottom up.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;

use super::CancelOnDrop;
use crate::content::{Intake, Pieces};
use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::progress::{Event, Progress};
use crate::registry::{Asked, Session, download};
use crate::store::{Aside, Blob, Guard, Images, Inner, Lease};

/// Pieces of up to some hundred KiB that wait between the network and the unpacking thread.
const PIECES_WAITING_MAX: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct LayerPlan {
    pub(crate) blob: Blob,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    pub(crate) parent: Option<Digest>,
}

/// Opens a layer's archive when its turn has come.
type OpenArchive = Box<dyn FnOnce() -> Result<Box<dyn Read + Send>, Error> + Send>;

/// Where a layer's archive comes from when it is not here yet.
pub(crate) enum Source {
    Registry(Arc<Session>),
    Archive(OpenArchive),
}

/// A layer that is ready to be put in place; `None` if it is there already.
struct Ready {
    aside: Option<Aside>,
    /// Held until it is in place, so that nobody unpacks it again meanwhile.
    _guard: Guard,
}

impl Images {
    /// Brings all layers into place. `source` is asked for each, in order.
    pub(crate) async fn bring_layers(
        &self,
        plans: &[LayerPlan],
        lease: &Lease,
        progress: &Progress,
        source: impl Fn(&LayerPlan) -> Source,
    ) -> Result<(), Error> {
        lease.add(plans.iter().flat_map(|plan| [plan.blob.digest.clone(), plan.chain_id.clone()]));
        let cancel = CancelOnDrop::default();
        let mut layers: FuturesOrdered<_> =
            plans.iter().map(|plan| self.ready(plan, source(plan), progress, cancel.flag())).collect();
        let mut plans = plans.iter();
        while let (Some(ready), Some(plan)) = (layers.next().await, plans.next()) {
            let ready = ready?;
            if ready.aside.is_none() {
                continue;
            }
            let owned = plan.clone();
            self.blocking(move |inner| {
                // With its guard: a pull that is given up must not let another in before this is done.
                let Ready { aside, _guard } = ready;
                aside.map_or(Ok(()), |aside| {
                    inner.install_layer(aside, &owned.chain_id, &owned.diff_id, owned.parent.as_ref())
                })
            })
            .await?;
            progress.tell(Event::LayerDone { layer: plan.blob.digest.clone() });
        }
        Ok(())
    }

    async fn ready(
        &self,
        plan: &LayerPlan,
        source: Source,
        progress: &Progress,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Ready, Error> {
        let guard = self.inner.locks.layer(&plan.chain_id).await;
        if self.inner.has_layer(&plan.chain_id) {
            self.inner.check_size(&plan.blob)?;
            progress.tell(Event::LayerPresent { layer: plan.blob.digest.clone() });
            return Ok(Ready { aside: None, _guard: guard });
        }
        let aside = match source {
            Source::Registry(session) => self.fetch_layer(plan, &session, progress, &cancelled).await?,
            Source::Archive(open) => self.read_layer(plan, open, cancelled).await?,
        };
        Ok(Ready { aside: Some(aside), _guard: guard })
    }

    /// A blob or partial file that turns out damaged is thrown away and fetched once more from its beginning; one that a
    /// mirror damaged, once more from the registry itself.
    async fn fetch_layer(
        &self,
        plan: &LayerPlan,
        session: &Session,
        progress: &Progress,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Aside, Error> {
        let (mut aside, reused) = self.try_fetch_layer(plan, session, Asked::Everyone, progress, cancelled).await;
        if reused && matches!(aside, Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. })) {
            tracing::warn!(layer = %plan.blob.digest, "what was on disk of a layer is damaged; fetching it again");
            aside = self.try_fetch_layer(plan, session, Asked::Everyone, progress, cancelled).await.0;
        }
        match aside {
            Err(corrupt) if corrupt.kind() == Kind::Corrupt && session.has_mirrors() => {
                tracing::warn!(layer = %plan.blob.digest, "a mirror sent a corrupt layer; asking the registry itself");
                let again = self.try_fetch_layer(plan, session, Asked::RegistryOnly, progress, cancelled).await.0;
                // What the mirror did is the news; that the registry cannot be reached is why there is a mirror.
                again.map_err(|_| corrupt)
            }
            other => other,
        }
    }

    /// Also says whether something from an earlier pull was used.
    async fn try_fetch_layer(
        &self,
        plan: &LayerPlan,
        session: &Session,
        asked: Asked,
        progress: &Progress,
        cancelled: &Arc<AtomicBool>,
    ) -> (Result<Aside, Error>, bool) {
        let blob_guard = self.inner.locks.blob(&plan.blob.digest).await;
        let slots = Arc::clone(&self.inner.layer_slots);
        let Ok(slot) = slots.acquire_owned().await else { return (Err(Error::Cancelled), false) };
        let (owned, flag) = (plan.clone(), Arc::clone(cancelled));
        if self.inner.has_blob(&plan.blob) {
            let work = self.blocking(move |inner| {
                let _held = (blob_guard, slot);
                unpack_stored(inner, &owned, flag)
            });
            return (work.await, true);
        }
        let (file, have) = match self.inner.open_partial(&plan.blob) {
            Ok(opened) => opened,
            Err(error) => return (Err(error), false),
        };
        let size = plan.blob.size.unwrap_or(u64::MAX);
        let layer = plan.blob.digest.clone();
        progress.tell(Event::LayerStarted { layer, bytes: size, resumed_bytes: have });
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let told = progress.clone();
        let unpacking = self.blocking(move |inner| {
            // Held by the thread that writes, which may outlive the pull that started it.
            let _held = (blob_guard, slot);
            let partial = (file, inner.paths.partial(&owned.blob.digest), have);
            let intake = Intake::resumed(&owned.blob, partial, Box::new(Pieces::new(receiver)), flag)?;
            unpack_and_keep(inner, &owned, intake.telling(&told))
        });
        let fetching = async move { download(session, asked, &plan.blob.digest, size, have, &sender).await };
        let (fetched, unpacked) = tokio::join!(fetching, unpacking);
        // When the network broke off, what the unpacking thread says is only a consequence.
        (fetched.map_err(Error::from).and(unpacked), have > 0)
    }

    async fn read_layer(
        &self,
        plan: &LayerPlan,
        open: OpenArchive,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Aside, Error> {
        let blob_guard = self.inner.locks.blob(&plan.blob.digest).await;
        let slots = Arc::clone(&self.inner.import_slots);
        let slot = slots.acquire_owned().await.map_err(|_| Error::Cancelled)?;
        let owned = plan.clone();
        self.blocking(move |inner| {
            let _held = (blob_guard, slot);
            if inner.has_blob(&owned.blob) {
                let stored = unpack_stored(inner, &owned, Arc::clone(&cancelled));
                if !matches!(stored, Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. })) {
                    return stored;
                }
            }
            inner.drop_partial(&owned.blob.digest)?;
            let (file, have) = inner.open_partial(&owned.blob)?;
            let partial = (file, inner.paths.partial(&owned.blob.digest), have);
            let intake = Intake::resumed(&owned.blob, partial, open()?, cancelled)?;
            unpack_and_keep(inner, &owned, intake)
        })
        .await
    }
}

/// From the verified blob; one that no longer matches its digest is removed.
fn unpack_stored(inner: &Inner, plan: &LayerPlan, cancelled: Arc<AtomicBool>) -> Result<Aside, Error> {
    let path = inner.paths.blob(&plan.blob.digest);
    let file = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
    let mut intake = Intake::stored(&plan.blob, file, cancelled);
    let result = inner.unpack_aside(&plan.blob, &plan.diff_id, &mut intake);
    if matches!(result, Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. })) {
        std::fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
    }
    result
}

fn unpack_and_keep(inner: &Inner, plan: &LayerPlan, mut intake: Intake) -> Result<Aside, Error> {
    let digest = &plan.blob.digest;
    match inner.unpack_aside(&plan.blob, &plan.diff_id, &mut intake) {
        Ok(aside) if inner.config.discard_layer_archives => inner.drop_partial(digest).map(|()| aside),
        Ok(aside) => inner.keep_partial(digest).map(|()| aside),
        Err(error) => {
            // Kept only when it is the beginning of something good; a full disk needs the room more.
            let short = matches!(error, Error::SizeMismatch { expected, actual, .. } if actual < expected);
            if !short && !matches!(error, Error::Cancelled) {
                inner.drop_partial(digest)?;
            }
            Err(error)
        }
    }
}
