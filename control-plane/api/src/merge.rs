//! Pure merges of a change into an object: JSON patch and merge patch, strategic merge patch, and server-side apply.
//!
//! Invariants: a conflict is a value; nothing takes longer than its input times its logarithm.

pub mod apply;
pub mod field_set;
pub mod json;
pub mod strategic;
