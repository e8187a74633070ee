//! This server's own share of the process's blocking threads.
//!
//! A disk or a shim that does not answer holds threads. Beyond the limit callers wait without one, so that images, the API server and
//! whatever else lives in the process keep theirs. Invariant: work in the pool never waits for other work in the pool.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::status::Error;

/// A node has some hundred pods, and a pod has one call under way.
const PLACES: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    places: Arc<Semaphore>,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self::of(PLACES)
    }

    fn of(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)) }
    }

    /// Runs on a blocking thread. Dropped before it has a place, it is not begun; once begun it is finished, whoever stops
    /// waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return Err(Error::Panicked) };
        let begun = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        begun.await.unwrap_or(Err(Error::Panicked))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Poll;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn what_is_beyond_the_limit_waits_and_what_panics_costs_nobody_a_place() {
        let pool = Pool::of(1);
        let panicked = pool.run::<()>(|| panic!("on purpose")).await;
        assert!(matches!(panicked, Err(Error::Panicked)));
        let (release, held) = mpsc::channel::<()>();
        let mut first = Box::pin(pool.run(move || Ok(held.recv().is_err())));
        let mut second = Box::pin(pool.run(|| Ok(true)));
        assert!(poll!(&mut first).is_pending());
        assert!(matches!(poll!(&mut second), Poll::Pending));
        assert_eq!(pool.places.available_permits(), 0);
        drop(release);
        assert!(first.await.unwrap() && second.await.unwrap());
    }
}
