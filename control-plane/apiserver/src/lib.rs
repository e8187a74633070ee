//! HTTP in, store out: what stock kubectl talks to.
