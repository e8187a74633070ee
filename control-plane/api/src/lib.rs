//! The vocabulary: one row per kind, the untyped object, quantities, selectors, status errors and merge keys.
//!
//! No async, no I/O, no policy: everything here is a pure function of its arguments. Time is an argument.
//! Invariant: nothing a user wrote is dropped in silence; what is not understood is kept, or named in an error.

#![cfg_attr(test, allow(clippy::needless_pass_by_value, reason = "tests pass literals"))]

pub mod object;
pub mod status;

pub mod row;

pub mod name;
pub mod quantity;
pub mod selector;

pub mod schema;

pub mod budget;
pub mod read;

pub mod convert;
pub mod defaults;
pub mod openapi;
pub mod panics;
pub mod pod_security;
pub mod print;
pub mod qos;
pub mod scale;
pub mod strategy;
pub mod validate;

pub mod merge;
pub mod proto;

/// The Kubernetes release that is served, as servers and nodes name it.
pub const KUBERNETES_VERSION: &str = "v1.36.2+sampan";

pub use object::Object;
pub use quantity::Quantity;
pub use row::{Row, row, row_for_kind, rows};
pub use status::{Cause, CauseType, Reason, Status};
