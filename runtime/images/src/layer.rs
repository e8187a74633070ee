//! Layers: a tar stream -> a directory that overlayfs can stack. Two steps: `unpack` needs the stream alone, so layers are
//! unpacked side by side; `settle` then borrows from the layers below what the stream left open.
//! Invariant: nothing is ever written outside the layer's directory, whatever the archive says.

mod decompress;
mod metadata;
mod rooted;
mod settle;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::sync::Arc;

use crate::error::Kind;

pub(crate) use decompress::decompressed;
pub(crate) use settle::settle;
pub(crate) use unpack::{Unpacked, unpack};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("the layer's archive is damaged or cut off")]
    Read {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("entry {entry:?} {reason}")]
    Entry { entry: String, reason: &'static str },
    #[error("{action} {entry:?}")]
    Write {
        action: &'static str,
        entry: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl Error {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Read { .. } | Self::Entry { .. } => Kind::Corrupt,
            Self::Write { source, .. } if crate::error::is_no_space(source) => Kind::NoSpace,
            Self::Write { .. } => Kind::Internal,
        }
    }

    pub(crate) fn read(source: io::Error) -> Self {
        Self::Read { source: Arc::new(source) }
    }

    fn write(action: &'static str, entry: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Write { action, entry: String::from_utf8_lossy(entry).into_owned(), source: Arc::new(source.into()) }
    }

    fn entry(entry: &[u8], reason: &'static str) -> Self {
        Self::Entry { entry: String::from_utf8_lossy(entry).into_owned(), reason }
    }
}
