//! The CRI server: one file per RPC, facts checkpointed, status derived.
//!
//! The only caller of CNI and of shims; runs no container itself and keeps none alive: a pod's shim does. Invariant: what was
//! acknowledged is on disk, so the server may die at any instruction and be started again; see `adopt`.

mod adopt;
mod caller;
mod config;
mod container;
mod events;
mod facts;
mod image;
mod kept;
mod kill;
mod network;
mod node;
mod pool;
mod private;
mod record;
mod runtime;
mod sandbox;
mod server;
mod shim;
mod spec;
mod status;
mod streaming;

pub use config::{Cni, CniTemplate, Config, StreamListen};
pub use network::NetworkError;
pub use record::RecordError;
pub use server::{Server, run, run_with_images};
pub use spec::SpecError;
pub use status::Error;
pub use streaming::StreamError;
