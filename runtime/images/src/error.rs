//! Every way a call of this room can fail, and what kind of failure that is for those who map errors onto a protocol.
//! Errors are `Clone`, for callers that wait for the same pull get the same answer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::{archive, layer, record, reference, registry};

/// What a caller can do about an error; the message has the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The name, the archive or the request itself is malformed.
    Invalid,
    /// No such image here, or the registry has no such manifest.
    NotFound,
    /// The registry refuses these credentials, or wants some.
    Unauthorized,
    /// The registry could not be reached or did not answer sensibly; trying again may help.
    Unavailable,
    /// TLS could not be established; configuration must change.
    Tls,
    /// What arrived is not what its digest promised, or not an archive.
    Corrupt,
    /// The image exists, but not for this machine.
    Platform,
    NoSpace,
    /// Another image, snapshot or process holds what was asked for.
    InUse,
    Cancelled,
    /// Disk or kernel trouble, or a bug.
    Internal,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reference(#[from] reference::ParseError),
    #[error("pull {reference}")]
    Pull {
        reference: String,
        #[source]
        source: Box<Error>,
    },
    #[error("push {reference}")]
    Push {
        reference: String,
        #[source]
        source: Box<Error>,
    },
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(
        "{subject} is corrupt: its content has digest {actual}; remove it from the registry or mirror and push it again"
    )]
    DigestMismatch { subject: String, actual: Digest },
    #[error("{subject} is corrupt: it has {actual} bytes where its descriptor promises {expected}")]
    SizeMismatch { subject: String, expected: u64, actual: u64 },
    #[error("{subject} is not valid: {reason}")]
    Malformed { subject: String, reason: String },
    #[error(
        "{image} is not built for {wanted}; it offers {}",
        if offered.is_empty() { "nothing that runs".to_owned() } else { offered.join(", ") }
    )]
    NoPlatform { image: String, wanted: String, offered: Vec<String> },
    #[error("{subject} has media type {media_type}, which is not a container image this program can run")]
    NotAnImage { subject: String, media_type: String },
    #[error("unpack layer {layer}")]
    Layer {
        layer: Digest,
        #[source]
        source: layer::Error,
    },
    #[error("no space left under {}: free some, or remove images that are not used, and try again", path.display())]
    NoSpace { path: PathBuf },
    #[error("no image {name} here; pull or import it first")]
    NoImage { name: String },
    #[error("snapshot {key} belongs to image {held}, not {asked}; release it first")]
    SnapshotTaken { key: String, held: Digest, asked: Digest },
    #[error("no snapshot {key}")]
    NoSnapshot { key: String },
    #[error("a layer of {image} is missing from {}; pull the image again", dir.display())]
    LayerMissing { image: Digest, dir: PathBuf },
    #[error(
        "the archive of layer {layer} of {image} is not kept here, so the image cannot be sent on; pull it again into a store that keeps archives"
    )]
    ArchiveGone { image: String, layer: Digest },
    #[error("{} is used by another process; stop it, or choose another directory", dir.display())]
    Locked { dir: PathBuf },
    #[error(transparent)]
    Record(#[from] record::Error),
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the work was given up before it was done")]
    Cancelled,
    #[error("a worker thread panicked: {0}")]
    Panicked(String),
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pull { source, .. } | Self::Push { source, .. } => source.kind(),
            Self::Reference(_) => Kind::Invalid,
            Self::Registry(source) => source.kind(),
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Malformed { .. } => Kind::Corrupt,
            Self::NoPlatform { .. } | Self::NotAnImage { .. } => Kind::Platform,
            Self::Layer { source, .. } => source.kind(),
            Self::NoSpace { .. } => Kind::NoSpace,
            Self::NoImage { .. } | Self::NoSnapshot { .. } | Self::ArchiveGone { .. } => Kind::NotFound,
            Self::SnapshotTaken { .. } | Self::Locked { .. } => Kind::InUse,
            Self::Archive(source) => source.kind(),
            Self::Cancelled => Kind::Cancelled,
            Self::Record(source) => source.kind(),
            Self::LayerMissing { .. } | Self::Io { .. } | Self::Panicked(_) => Kind::Internal,
        }
    }

    /// Names the step and the path; a full disk becomes its own variant, whatever was being done.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_no_space(&source) {
            return Self::NoSpace { path: path.to_owned() };
        }
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
