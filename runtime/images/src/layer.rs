//! Layers: a tar stream -> a directory that overlayfs can stack. Two steps: `unpack` needs the stream alone, so layers are
//! unpacked side by side; `settle` then borrows from the layers below what the stream left open.
//! Invariant: nothing is ever written outside the layer's directory, whatever the archive says.

mod budget;
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

pub(crate) use budget::{Budgeted, HEADER_BYTES_MAX};
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
        Self::Write { action, entry: shown(entry), source: Arc::new(source.into()) }
    }

    fn entry(entry: &[u8], reason: &'static str) -> Self {
        Self::Entry { entry: shown(entry), reason }
    }
}

/// How much of a name is repeated in messages, which go into logs, events and the client's output.
const SHOWN_BYTES_MAX: usize = 256;

fn shown(name: &[u8]) -> String {
    match name.get(..SHOWN_BYTES_MAX) {
        Some(start) if name.len() > SHOWN_BYTES_MAX => {
            format!("{}... ({} bytes)", String::from_utf8_lossy(start), name.len())
        }
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}
