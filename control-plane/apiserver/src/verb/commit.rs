//! The commit of a write. Once begun it runs to its end, with the bookkeeping that belongs to it, whatever its caller does.
//!
//! A request's future is dropped when its client goes. What was handed to the store happens all the same, so whatever must follow
//! (a claimed address is kept, a released one is free) lies in a task of its own. Invariant: of every change that is stored, the
//! allocators hear.

use std::sync::Arc;

use control_plane_api::{Object, Row, Status, budget};
use control_plane_store::{Change, Precondition, Revision, WriteError};

use crate::{allocate::Claim, behaviour, kernel::Kernel, status::Outcome, wire};

/// A change that is about to be stored.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) row: &'static Row,
    pub(crate) key: Arc<str>,
    pub(crate) precondition: Precondition,
    pub(crate) change: Change,
    /// What the new version took: kept when it is stored, free again when it is not.
    pub(crate) claim: Claim,
    /// The object that goes with this change, and with it what it held.
    pub(crate) released: Option<Object>,
}

impl Commit {
    /// Stores the change and keeps the books.
    pub(crate) async fn run(self, kernel: &Arc<Kernel>) -> Result<Revision, WriteError> {
        let kernel = Arc::clone(kernel);
        let task = tokio::spawn(async move {
            let outcome = kernel.store.write(self.key, self.precondition, self.change).await;
            if outcome.is_ok() {
                self.claim.keep();
                if let Some(released) = self.released {
                    kernel.allocators.release(self.row, &released);
                }
            }
            outcome
        });
        // The task ends early only when the runtime does.
        task.await.unwrap_or(Err(WriteError::Store(control_plane_store::Error::Closed)))
    }
}

/// The bytes of a new version, if it may be stored: `before` is the size of the version that it replaces, so that an object from
/// a time without limits can still be changed.
pub(crate) fn bytes(row: &Row, object: &Object, before: usize) -> Outcome<bytes::Bytes> {
    budget::check_map(object.as_map())
        .map_err(|error| Status::too_large(format!("the object is too large: {error}")))?;
    let bytes = wire::stored(&behaviour::to_storage(row, object.clone()));
    if bytes.len() > budget::OBJECT_BYTES_MAX.max(before) {
        let why = format!(
            "Request entity too large: the object would take {} bytes, the limit is {}",
            bytes.len(),
            budget::OBJECT_BYTES_MAX
        );
        return Err(Status::too_large(why).into());
    }
    Ok(bytes)
}
