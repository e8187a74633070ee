//! Registries: where images come from and go to, over the OCI distribution protocol (distribution-spec 1.1).
//! Not here: what manifests mean (manifest.rs) and where bytes are kept (store.rs).
//! Invariant: credentials go to the registry they were given for and to the token service it names, and nowhere else.

mod challenge;
mod download;
mod error;
mod hosts;
mod session;
mod token;
mod transport;
mod upload;

pub(crate) use download::{Asked, download};
pub use error::Error;
pub(crate) use session::{Access, Session};
pub(crate) use transport::Transports;
