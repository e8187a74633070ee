//! Whether whoever asked still waits for the answer.
//!
//! A request that makes something is undone when its caller has gone before it was made, as containerd does: the caller knows no
//! id, and will ask again by name. Where the two cross, what was made for a caller that has gone is given to the next one who asks
//! for the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The work's side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    gone: Arc<AtomicBool>,
}

/// The request's side: dropped with the future that answers it, or told that there is an answer.
#[derive(Debug)]
pub(crate) struct Waiting {
    caller: Caller,
    answered: bool,
}

impl Caller {
    pub(crate) fn watch() -> (Waiting, Self) {
        let caller = Self::default();
        (Waiting { caller: caller.clone(), answered: false }, caller)
    }

    /// Makes it somebody else's.
    pub(crate) fn returns(&self) {
        self.gone.store(false, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl Waiting {
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            self.caller.gone.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_got_an_answer_has_not_gone() {
        let (waiting, caller) = Caller::watch();
        waiting.answered();
        assert!(!caller.is_gone());
        let (waiting, caller) = Caller::watch();
        drop(waiting);
        assert!(caller.is_gone());
        caller.returns();
        assert!(!caller.is_gone());
    }
}
