//! Walls against panics: what panics is caught, counted, told in one line and tried again after a growing pause. Not the judgement
//! of errors, which are values. Invariant: a panic ends no more than what it happened in.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::counters::{Counters, Place};

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(300);
/// After this long without a fall the next pause is the first again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// As much of a panic's words as is told.
const WORDS_MAX: usize = 500;

/// The words of a panic, cut.
#[must_use]
pub fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without words".into()).chars().take(WORDS_MAX).collect()
}

/// Runs `work`; its panic becomes an error with the panic's words.
///
/// # Errors
/// The words of the panic.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    // Whoever calls this throws away what the work had in hand when it fell.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| words(&*panic))
}

/// The growing pause after falls: 1 s, doubled up to five minutes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause {
    last: Option<(Duration, Instant)>,
}

impl Pause {
    /// How long to wait after one more fall, at `now`.
    pub fn fall(&mut self, now: Instant) -> Duration {
        let pause = match self.last {
            Some((pause, since)) if now.saturating_duration_since(since) < FORGOTTEN_AFTER => {
                pause.saturating_mul(2).min(LAST)
            }
            _ => FIRST,
        };
        self.last = Some((pause, now));
        pause
    }
}

/// A task that is started again, after a pause, when it panics or ends before `shutdown`.
pub fn keep<F, W>(
    name: &'static str,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
    mut make: F,
) -> AbortOnDropHandle<()>
where
    F: FnMut() -> W + Send + 'static,
    W: Future<Output = ()> + Send,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut pause = Pause::default();
        loop {
            let ended = caught(make()).await;
            if shutdown.is_cancelled() {
                return;
            }
            let wait = pause.fall(Instant::now());
            match ended {
                Ok(()) => tracing::warn!(task = name, ?wait, "a task of the kubelet has ended; starting it again"),
                Err(why) => {
                    counters.panicked(Place::Task);
                    tracing::error!(task = name, why, ?wait, "a task of the kubelet panicked; starting it again");
                }
            }
            if tokio::time::timeout(wait, shutdown.cancelled()).await.is_ok() {
                return;
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_are_forgotten() {
        let mut now = Instant::now();
        let mut pause = Pause::default();
        let mut pauses = Vec::new();
        for _ in 0..11 {
            let wait = pause.fall(now);
            pauses.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause.fall(now + FORGOTTEN_AFTER).as_secs(), 1);
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_is_started_again() {
        let counters = Arc::new(Counters::default());
        let (starts, mut started) = tokio::sync::mpsc::unbounded_channel();
        let (shutdown, mut number) = (CancellationToken::new(), 0);
        let task = keep("test", counters.clone(), shutdown.clone(), move || {
            number += 1;
            starts.send(number).unwrap();
            let number = number;
            async move { assert!(number > 1, "on purpose") }
        });
        for expect in 1..=3 {
            assert_eq!(started.recv().await, Some(expect));
        }
        assert_eq!(counters.panics(Place::Task), 1);
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn words_of_a_panic_are_kept_and_cut() {
        let long: Result<(), String> = caught(async { panic!("{}", "x".repeat(10_000)) }).await;
        assert_eq!(long.unwrap_err().len(), WORDS_MAX);
        assert_eq!(caught(async { 7 }).await, Ok(7));
    }
}
