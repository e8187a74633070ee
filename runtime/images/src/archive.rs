//! Image archives: OCI layouts (directory or tar) and docker-archives, in and out.

mod export;
mod import;

use std::io;
use std::sync::Arc;

use crate::error::{Kind, is_no_space};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is neither an OCI layout nor a docker archive: {reason}")]
    NotAnArchive { path: String, reason: String },
    #[error("{path} has no {member}")]
    MissingMember { path: String, member: String },
    #[error("{member} in {path} is not valid: {reason}")]
    Malformed { path: String, member: String, reason: String },
    #[error("{path} exists and is not an empty directory; choose another place")]
    Occupied { path: String },
    #[error("read archive {path}")]
    Read {
        path: String,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("write archive {path}")]
    Write {
        path: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl Error {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::NotAnArchive { .. } | Self::MissingMember { .. } | Self::Malformed { .. } | Self::Occupied { .. } => {
                Kind::Invalid
            }
            Self::Write { source, .. } if is_no_space(source) => Kind::NoSpace,
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { .. } | Self::Write { .. } => Kind::Internal,
        }
    }
}
