//! resourceVersion as callers send it: parsed, and waited for.

use control_plane_api::Status;
use control_plane_store::Revision;

use crate::{
    cache,
    status::{Outcome, too_large_version},
    verb::Call,
};

pub(crate) fn parse(text: &str) -> Outcome<u64> {
    Ok(text.parse().map_err(|_| {
        Status::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: it must be a number that the server gave"
        ))
    })?)
}

/// Waits until the cache holds a revision that the caller has seen; one that never was is refused.
pub(crate) async fn reach(call: &Call, wanted: u64) -> Outcome<()> {
    match call.kernel.cache.wait_for(Revision(wanted)).await {
        Ok(()) => Ok(()),
        Err(cache::Error::Behind { applied, .. }) => Err(too_large_version(wanted, applied.0).into()),
        Err(error) => Err(error.into()),
    }
}
