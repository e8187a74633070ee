//! Keeps the parts of the daemon running: one that ends or panics is started again, and the others go on.
//!
//! ```text
//!   running ── ended, failed or panicked ──> resting ── its time ──> running
//!      └── told to end ──> stopped              the longer, the more often; anew once it ran well
//! ```
//! Knows nothing of what a part does. How the parts do stands on the board, which `status` reads as a file; see board.rs.

use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use control_plane_api::panics;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use super::board::Board;

/// How long a part rests after its first end; each further one doubles it, up to the last.
const REST_FIRST: Duration = Duration::from_millis(200);
const REST_LAST: Duration = Duration::from_secs(30);
/// A part that ran for so long ran well: its next end is a first one again.
const RAN_WELL: Duration = Duration::from_secs(120);

/// Parts that are started and ended together.
pub(crate) struct Supervisor {
    board: Arc<Board>,
    stop: CancellationToken,
    keepers: JoinSet<()>,
}

impl Supervisor {
    /// The parts end with `stop`.
    pub(crate) fn new(board: Arc<Board>, stop: CancellationToken) -> Self {
        Self { board, stop, keepers: JoinSet::new() }
    }

    /// Starts a part, and again whenever it ends. Each start has a token of its own: it is cancelled when that start is over,
    /// so that what the part has set going elsewhere ends with it.
    pub(crate) fn start<F, E>(
        &mut self,
        name: &'static str,
        part: impl Fn(CancellationToken) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Error + Send + 'static,
    {
        self.board.running(name);
        self.keepers.spawn(keep(name, Arc::new(part), Arc::clone(&self.board), self.stop.clone()));
    }

    /// Returns when every part has ended.
    pub(crate) async fn stopped(mut self) {
        while self.keepers.join_next().await.is_some() {}
    }
}

async fn keep<F, E>(
    name: &'static str,
    part: Arc<impl Fn(CancellationToken) -> F + Send + Sync + 'static>,
    board: Arc<Board>,
    stop: CancellationToken,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let mut ends = 0;
    loop {
        let began = Instant::now();
        let ended = once(Arc::clone(&part), &stop).await;
        if stop.is_cancelled() {
            if let Err(reason) = ended {
                error!(part = name, reason, "did not end cleanly");
            }
            return board.stopped(name);
        }
        let reason = ended.err().unwrap_or_else(|| "it ended without being asked to".to_owned());
        ends = if began.elapsed() >= RAN_WELL { 1 } else { u32::saturating_add(ends, 1) };
        let rest = rest(ends);
        error!(part = name, reason, ends, ?rest, "a part of the daemon ended; it is started again");
        board.ended(name, reason);
        tokio::select! {
            () = stop.cancelled() => return board.stopped(name),
            () = tokio::time::sleep_until(Instant::now().checked_add(rest).unwrap_or(began)) => {}
        }
        info!(part = name, "started again");
        board.running(name);
    }
}

/// One start of a part, from its beginning to its end; the error says why it ended.
async fn once<F, E>(
    part: Arc<impl Fn(CancellationToken) -> F + Send + Sync + 'static>,
    stop: &CancellationToken,
) -> Result<(), String>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let own = stop.child_token();
    let _ends_with_it = own.clone().drop_guard();
    // A task of its own, so that parts run beside each other and a panic unwinds there.
    let task = AssertUnwindSafe(async move { part(own).await }).catch_unwind();
    match AbortOnDropHandle::new(tokio::spawn(task)).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(chain(&error)),
        Ok(Err(panic)) => Err(format!("it panicked: {}", panics::message(panic.as_ref()))),
        Err(join) => Err(join.to_string()),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

fn rest(ends: u32) -> Duration {
    let factor = 1u32.checked_shl(ends.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
    REST_FIRST.saturating_mul(factor).min(REST_LAST)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::node::board::State;

    #[derive(Debug, thiserror::Error)]
    #[error("bind the port")]
    struct Failed(#[source] std::io::Error);

    fn failed() -> Failed {
        Failed(std::io::Error::other("in use"))
    }

    struct Scene {
        board: Arc<Board>,
        stop: CancellationToken,
        supervisor: Supervisor,
    }

    fn scene() -> Scene {
        let (board, stop) = (Arc::new(Board::default()), CancellationToken::new());
        Scene { supervisor: Supervisor::new(Arc::clone(&board), stop.clone()), board, stop }
    }

    /// A part that tells of each start, and then does what `act` says of that one.
    fn part<F>(
        act: impl Fn(u32, CancellationToken) -> F + Send + Sync + 'static,
    ) -> (impl Fn(CancellationToken) -> F + Send + Sync + 'static, mpsc::UnboundedReceiver<u32>)
    where
        F: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let (told, starts) = mpsc::unbounded_channel();
        let count = AtomicU32::new(0);
        let start = move |token| {
            let number = count.fetch_add(1, Ordering::SeqCst);
            // Nobody listens once the test is over.
            let _unheard = told.send(number);
            act(number, token)
        };
        (start, starts)
    }

    async fn until_told(token: CancellationToken) -> Result<(), Failed> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_part_that_ends_is_started_again_and_the_others_go_on() {
        let Scene { board, stop, mut supervisor } = scene();
        let (steady, mut steady_starts) = part(|_, token| until_told(token));
        let (shaky, mut shaky_starts) = part(|number, token| async move {
            match number {
                0 => panic!("number {number}"),
                1 => Err(failed()),
                _ => until_told(token).await,
            }
        });
        supervisor.start("steady", steady);
        supervisor.start("shaky", shaky);
        for expect in 0..3 {
            assert_eq!(shaky_starts.recv().await, Some(expect));
        }
        let parts = board.parts();
        let shaky = parts.iter().find(|part| part.name == "shaky").unwrap();
        assert_eq!((shaky.restarts, shaky.last_error.as_deref()), (2, Some("bind the port: in use")));
        stop.cancel();
        supervisor.stopped().await;
        assert_eq!((steady_starts.recv().await, steady_starts.recv().await), (Some(0), None), "it was never touched");
        assert!(board.parts().iter().all(|part| part.state == State::Stopped));
    }

    #[tokio::test]
    async fn a_panic_is_told_and_its_start_is_over() {
        let Scene { board, stop, mut supervisor } = scene();
        let (tokens, mut first) = mpsc::unbounded_channel();
        let (shaky, mut starts) = part(move |number, token| {
            let tokens = tokens.clone();
            async move {
                tokens.send(token.clone()).unwrap();
                if number == 0 {
                    panic!("a poisoned object");
                }
                until_told(token).await
            }
        });
        supervisor.start("shaky", shaky);
        let token = first.recv().await.unwrap();
        token.cancelled().await;
        assert!(!stop.is_cancelled(), "only what that start had set going ends");
        assert_eq!(board.trouble(1).await, "the shaky ended: it panicked: a poisoned object");
        assert_eq!((starts.recv().await, starts.recv().await), (Some(0), Some(1)));
        stop.cancel();
        supervisor.stopped().await;
    }

    #[tokio::test]
    async fn told_to_end_nothing_is_started_again() {
        let Scene { board, stop, mut supervisor } = scene();
        let (failing, mut starts) = part(|_, token| async move {
            token.cancelled().await;
            Err(failed())
        });
        supervisor.start("failing", failing);
        assert_eq!(starts.recv().await, Some(0));
        stop.cancel();
        supervisor.stopped().await;
        assert_eq!(starts.recv().await, None);
        assert_eq!(board.parts()[0].restarts, 0);
    }

    #[test]
    fn rests_grow_to_half_a_minute() {
        assert_eq!(rest(1), REST_FIRST);
        assert_eq!(rest(3), Duration::from_millis(800));
        assert_eq!(rest(u32::MAX), REST_LAST);
    }
}
