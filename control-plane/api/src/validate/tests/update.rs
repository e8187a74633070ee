//! Rules of update.
