//! What waits for one watcher: first what was there when it began, then the changes since. Bounded in number and in bytes; who falls
//! behind loses all of it at once, also while he does not look, and begins again from where he was.
//!
//!     open --push--> open | overrun (emptied);  receiver dropped --> closed
//!
//! Invariant: an overrun queue holds no object; the bytes of all queues together stay near `Load::BYTES_MAX`.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::Notice;

/// Changes waiting for one watcher.
const CHANGES_MAX: usize = 1024;
/// Bytes of changes waiting for one watcher; a single larger one may wait alone.
const BYTES_MAX: usize = 4 << 20;
/// What a watcher may have waiting when all queues together are full.
const FAIR_BYTES: usize = 64 << 10;

/// What all queues hold together.
#[derive(Debug, Default)]
pub(crate) struct Load {
    watchers: AtomicUsize,
    bytes: AtomicUsize,
}

impl Load {
    /// Watches at one time.
    pub(crate) const WATCHERS_MAX: usize = 5000;
    /// Bytes that wait in all queues: beyond that, whoever has more than a fair part of it waiting is let go.
    pub(crate) const BYTES_MAX: usize = 64 << 20;

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct State {
    backlog: VecDeque<Notice>,
    changes: VecDeque<Notice>,
    /// Of the changes alone: the backlog is what the snapshot holds anyway.
    bytes: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    load: Arc<Load>,
}

#[derive(Debug)]
pub(crate) struct Sender(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Receiver(Arc<Shared>);

/// A queue; `None` when there are too many.
pub(super) fn queue(load: &Arc<Load>) -> Option<(Sender, Receiver)> {
    let state = State { backlog: VecDeque::new(), changes: VecDeque::new(), bytes: 0, is_over: false };
    let shared = Shared { state: Mutex::new(state), wake: Notify::new(), load: Arc::clone(load) };
    let shared = Arc::new(shared);
    let before = load.watchers.fetch_add(1, Ordering::AcqRel);
    let receiver = Receiver(Arc::clone(&shared));
    (before < Load::WATCHERS_MAX).then_some((Sender(shared), receiver))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: &mut State) {
        self.load.bytes.fetch_sub(state.bytes, Ordering::AcqRel);
        *state = State { backlog: VecDeque::new(), changes: VecDeque::new(), bytes: 0, is_over: true };
    }
}

impl Sender {
    /// What is there when the watch begins.
    pub(super) fn fill(&self, backlog: VecDeque<Notice>) {
        self.0.state().backlog = backlog;
    }

    /// Whether the watcher is still followed. Beyond a limit it is let go, and what waited for it is gone.
    pub(super) fn push(&self, notice: Notice) -> bool {
        let mut state = self.0.state();
        if state.is_over {
            return false;
        }
        let weight = notice.weight();
        let bytes = state.bytes.saturating_add(weight);
        let crowded = self.0.load.bytes() > Load::BYTES_MAX && bytes > FAIR_BYTES;
        let full = state.changes.len() >= CHANGES_MAX || bytes > BYTES_MAX || crowded;
        if full && !state.changes.is_empty() {
            self.0.end(&mut state);
        } else {
            state.bytes = bytes;
            self.0.load.bytes.fetch_add(weight, Ordering::AcqRel);
            state.changes.push_back(notice);
        }
        let goes_on = !state.is_over;
        drop(state);
        self.0.wake.notify_one();
        goes_on
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.state().is_over
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.state().changes.is_empty()
    }
}

impl Receiver {
    /// The next of what was there at the beginning, without waiting.
    pub(crate) fn next_of_backlog(&self) -> Option<Notice> {
        self.0.state().backlog.pop_front()
    }

    /// The next change; `None` when the watcher fell behind. Cancel safe.
    pub(crate) async fn recv(&self) -> Option<Notice> {
        loop {
            // One permit is kept for whoever comes late: nothing is missed between looking and waiting.
            {
                let mut state = self.0.state();
                if let Some(notice) = state.changes.pop_front() {
                    let weight = notice.weight();
                    state.bytes = state.bytes.saturating_sub(weight);
                    self.0.load.bytes.fetch_sub(weight, Ordering::AcqRel);
                    if state.changes.is_empty() && state.changes.capacity() > 64 {
                        state.changes = VecDeque::new();
                    }
                    return Some(notice);
                }
                if state.is_over {
                    return None;
                }
            }
            self.0.wake.notified().await;
        }
    }

    /// Whether everything so far was received; not so for one that fell behind.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.0.state();
        state.backlog.is_empty() && state.changes.is_empty() && !state.is_over
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.state();
        self.0.end(&mut state);
        self.0.load.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}
