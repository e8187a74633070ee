//! The RPCs about the runtime itself.

pub(crate) mod configuration;
pub(crate) mod status;
