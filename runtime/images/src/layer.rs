//! Layers: a verified tar stream -> a directory that overlayfs can stack.

use std::io;
use std::sync::Arc;

use crate::error::Kind;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("the layer's archive is damaged")]
    Read {
        #[source]
        source: Arc<io::Error>,
    },
    #[error("entry {entry:?}: {reason}")]
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
}
