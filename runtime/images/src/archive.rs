//! Image archives: OCI layouts (directory or tar) and docker-archives, in and out.

use crate::error::Kind;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is neither an OCI layout nor a docker archive: {reason}")]
    NotAnArchive { path: String, reason: String },
}

impl Error {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::NotAnArchive { .. } => Kind::Invalid,
        }
    }
}
