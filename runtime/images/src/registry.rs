//! Registries: where images come from, over the OCI distribution protocol.

mod error;

pub use error::Error;
