//! Panics stay where they happen: in one request, one watch, one connection, one task. Each is counted, and told to the log once.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

/// What a panic says is cut to this.
const TEXT_CHARS_MAX: usize = 256;
/// The first pause before a task that panicked begins again; each further one is twice as long.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_LAST: Duration = Duration::from_secs(30);

/// How often what panicked.
#[derive(Debug, Default)]
pub(crate) struct Walls {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

/// Something panicked, and it was told to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server met a mistake of its own; its log says where")]
pub(crate) struct Panicked;

impl Walls {
    /// Runs a future; a panic in it ends it alone.
    pub(crate) async fn around<T>(
        &self,
        part: &'static str,
        subject: &str,
        future: impl Future<Output = T>,
    ) -> Result<T, Panicked> {
        AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| self.hit(part, subject, &*payload))
    }

    /// Counts a panic and tells the log.
    pub(crate) fn hit(&self, part: &'static str, subject: &str, payload: &(dyn Any + Send)) -> Panicked {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
        let subject: String = subject.chars().take(TEXT_CHARS_MAX).collect();
        tracing::error!(part, subject, panic = text, "a panic was caught; please report it");
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(part).or_default();
        *count = count.saturating_add(1);
        Panicked
    }

    /// How many panics were caught, by part.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a task to its end; after a panic it begins again, after a pause.
    pub(crate) async fn keep<F>(&self, name: &str, shutdown: &CancellationToken, mut task: impl FnMut() -> F)
    where
        F: Future<Output = ()>,
    {
        let mut pause = RESTART_FIRST;
        while self.around("task", name, task()).await.is_err() {
            let wait = tokio::time::sleep(pause);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = wait => {}
            }
            pause = pause.saturating_mul(2).min(RESTART_LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_what_panicked_and_is_counted() {
        let walls = Walls::default();
        assert_eq!(walls.around("request", "GET /", async { 7 }).await, Ok(7));
        let list: Vec<u8> = Vec::new();
        let outcome = walls.around("request", "GET /x", async { list[std::hint::black_box(3)] }).await;
        assert_eq!(outcome, Err(Panicked));
        assert_eq!(walls.counts(), [("request", 1)].into());
    }

    #[tokio::test]
    async fn a_task_that_panicked_begins_again() {
        let walls = Walls::default();
        let mut tries = 0;
        let shutdown = CancellationToken::new();
        walls
            .keep("test", &shutdown, || {
                tries += 1;
                let panics = tries < 3;
                async move { assert!(!panics, "not yet") }
            })
            .await;
        assert_eq!((tries, walls.counts()["task"]), (3, 2));
    }
}
