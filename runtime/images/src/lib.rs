//! Images: references, registries, parallel pull and unpack, overlay snapshots, import and export.
//! Not a runtime: it hands out directories to mount and never mounts them.
//! Invariant: what `prepare` hands out was verified against the digests of the image's manifest and configuration.
//!
//! On disk, below `Config::dir`: `blobs/<algorithm>/<hex>` content, `partial/` downloads under way, `l/<n>` unpacked layers (short
//! names, so that many fit the mount option limit), `layers/` their records, `s/<n>/{fs,work}` writable snapshots,
//! `snapshots/` their records, `images.json` what the images are called, `tmp/` what a crash may leave and `open` removes.

mod archive;
mod auth;
mod content;
mod digest;
mod error;
mod layer;
mod manifest;
mod platform;
mod progress;
mod pull;
mod record;
mod reference;
mod registry;
mod store;

pub use archive::Error as ArchiveError;
pub use auth::{Auth, AuthFields, Error as AuthError};
pub use digest::{Algorithm, Digest, ParseError as DigestError};
pub use error::{Error, Kind};
pub use layer::Error as LayerError;
pub use platform::Platform;
pub use progress::{Event, Progress};
pub use record::Error as RecordError;
pub use reference::{ParseError as ReferenceError, Reference};
pub use registry::Error as RegistryError;
pub use store::{Collected, Config, ExportFormat, FsUsage, Image, Images, Overlay, Usage};
