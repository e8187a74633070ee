//! Requests that are being answered, counted and bounded by kind as upstream does: reads cannot keep writes out, nor the other way round.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::request::{RequestInfo, Verb};

/// Reads that are answered at once; upstream's default.
const READ_ONLY_MAX: usize = 400;
/// Writes that are answered at once; upstream's default.
const MUTATING_MAX: usize = 200;

/// What a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ends when the caller wants: watches, and what is handed on.
    LongRunning,
    ReadOnly,
    Mutating,
}

impl Kind {
    pub(crate) fn of(info: &RequestInfo) -> Self {
        let handed_on = info.resource.as_ref().is_some_and(|path| {
            matches!(path.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
        });
        match info.verb {
            _ if handed_on => Self::LongRunning,
            Verb::Watch => Self::LongRunning,
            Verb::Get | Verb::List | Verb::Head | Verb::Options => Self::ReadOnly,
            _ => Self::Mutating,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::LongRunning => "longRunning",
            Self::ReadOnly => "readOnly",
            Self::Mutating => "mutating",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::LongRunning => 0,
            Self::ReadOnly => 1,
            Self::Mutating => 2,
        }
    }

    fn max(self) -> usize {
        match self {
            Self::LongRunning => usize::MAX,
            Self::ReadOnly => READ_ONLY_MAX,
            Self::Mutating => MUTATING_MAX,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Inflight {
    now: [AtomicUsize; 3],
    dropped: [AtomicU64; 3],
}

/// A request that counts; no longer when dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    all: Arc<Inflight>,
    kind: Kind,
}

impl Inflight {
    /// `None` when too many are being answered.
    pub(crate) fn enter(self: &Arc<Self>, kind: Kind) -> Option<Counted> {
        let now = self.now[kind.index()].fetch_add(1, Ordering::AcqRel);
        let counted = Counted { all: Arc::clone(self), kind };
        if now >= kind.max() {
            self.dropped[kind.index()].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(counted)
    }

    /// How many there are, and how many were turned away.
    pub(crate) fn of(&self, kind: Kind) -> (usize, u64) {
        (self.now[kind.index()].load(Ordering::Relaxed), self.dropped[kind.index()].load(Ordering::Relaxed))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.now[self.kind.index()].fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_do_not_keep_writes_out() {
        let all = Arc::new(Inflight::default());
        let reads: Vec<Counted> = (0..READ_ONLY_MAX).map(|_| all.enter(Kind::ReadOnly).unwrap()).collect();
        assert!(all.enter(Kind::ReadOnly).is_none());
        assert!(all.enter(Kind::Mutating).is_some() && all.enter(Kind::LongRunning).is_some());
        assert_eq!(all.of(Kind::ReadOnly), (READ_ONLY_MAX, 1));
        drop(reads);
        assert_eq!(all.of(Kind::ReadOnly), (0, 1));
        assert!(all.enter(Kind::ReadOnly).is_some());
    }
}
