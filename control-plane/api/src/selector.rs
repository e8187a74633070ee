//! Label and field selectors: parsing, and matching against an object.
//!
//! Which fields of a kind may be selected is its row's business. Invariant: a selector that parses can be matched.

pub mod field;
pub mod label;

pub use field::FieldSelector;
pub use label::{Operator, Requirement, Selector};
