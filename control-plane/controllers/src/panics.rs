//! Walls for what waits; see `control_plane_api::panics` for what does not.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use control_plane_api::panics::message;
use futures::FutureExt;

pub(crate) use control_plane_api::panics::{caught as caught_now, count};

/// What `work` came to, or its panic's message. Whatever it held is dropped; what it shares is whole at every step.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| message(panic.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_value() {
        assert_eq!(caught(async { 1 }).await, Ok(1));
        assert_eq!(caught(async { panic!("no {}", 1) }).await, Err::<(), _>("no 1".to_owned()));
    }
}
