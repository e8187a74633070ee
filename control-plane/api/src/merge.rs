//! Pure merges of a change into an object: strategic merge patch and server-side apply.
//!
//! JSON patch and JSON merge patch know no schema and live with the server. Invariant: a conflict is a value.

pub mod apply;
pub mod field_set;
pub mod strategic;
