//! Snapshot, filter, score, decide, bind.
