//! The one door where errors become gRPC codes, as kubelets and `crictl` expect them.
//!
//! Inside, an error keeps its type and its cause; the chain is put into words here, once.

use std::error::Error as StdError;
use std::fmt::Write as _;

use tonic::{Code, Status};

use crate::network::NetworkError;
use crate::record::RecordError;
use crate::spec::SpecError;
use crate::streaming::StreamError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {kind} {id:?} here")]
    NotFound { kind: &'static str, id: String },
    #[error("{kind} id {id:?} begins more than one id: give more of it")]
    Ambiguous { kind: &'static str, id: String },
    #[error("{kind} name {name:?} is reserved for {holder}: remove that one first, or raise the attempt")]
    NameTaken { kind: &'static str, name: String, holder: String },
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("{kind} {id} is {state}: cannot {operation} it")]
    WrongState { kind: &'static str, id: String, state: &'static str, operation: &'static str },
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
    #[error("{what} was given up: whoever asked for it has gone")]
    Abandoned { what: &'static str },
    /// The kernel or the OCI runtime, when the container was to be made.
    #[error("{words}")]
    Refused { words: String },
    #[error("{what} did not finish within {seconds} s")]
    Timeout { what: &'static str, seconds: i64 },
    #[error("{what} is longer than {bytes_max} bytes")]
    TooLong { what: &'static str, bytes_max: usize },
    #[error("a worker thread panicked; this is a bug, and the log has its trace")]
    Panicked,
    #[error("keep the records of pods")]
    Record(#[from] RecordError),
    #[error("make the container's configuration")]
    Spec(#[from] SpecError),
    #[error("pod network")]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Image(#[from] runtime_images::Error),
    #[error("registry credentials")]
    Auth(#[from] runtime_images::AuthError),
    #[error("image name")]
    Reference(#[from] runtime_images::ReferenceError),
    #[error("start the pod's shim")]
    Spawn(#[from] runtime_shim::SpawnError),
    #[error("shim configuration")]
    ShimConfig(#[from] runtime_shim::config::ConfigError),
    #[error(transparent)]
    Shim(#[from] runtime_shim::ClientError),
    #[error("stream")]
    Stream(#[from] StreamError),
    #[error("{action} {}", path.display())]
    Io { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("control group {path}")]
    Cgroup { path: String, source: runtime_linux::cgroup::Error },
    #[error("another server answers on {}: stop it, or choose another socket", path.display())]
    Busy { path: std::path::PathBuf },
    #[error("serve on {}", path.display())]
    Serve { path: std::path::PathBuf, source: tonic::transport::Error },
    /// Teardown goes on past the first error; the later ones are in the words.
    #[error("tear down {what}: {}", problems.join("; "))]
    Teardown { what: String, problems: Vec<String> },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }

    fn code(&self) -> Code {
        use runtime_images::Kind;
        use runtime_shim::{ClientError, FailureCode};
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::Ambiguous { .. }
            | Self::Invalid { .. }
            | Self::Auth(_)
            | Self::Reference(_)
            | Self::ShimConfig(_) => Code::InvalidArgument,
            Self::WrongState { .. } => Code::FailedPrecondition,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Abandoned { .. } => Code::Cancelled,
            Self::Refused { .. } => Code::Unknown,
            Self::TooLong { .. } => Code::ResourceExhausted,
            Self::Spec(error) if error.is_request() => Code::InvalidArgument,
            Self::Image(error) => match error.kind() {
                Kind::Invalid => Code::InvalidArgument,
                Kind::NotFound => Code::NotFound,
                Kind::Unauthorized => Code::PermissionDenied,
                Kind::Unavailable | Kind::Tls => Code::Unavailable,
                Kind::Corrupt => Code::DataLoss,
                Kind::Platform => Code::FailedPrecondition,
                Kind::NoSpace => Code::ResourceExhausted,
                Kind::InUse => Code::FailedPrecondition,
                Kind::Cancelled => Code::Cancelled,
                Kind::Internal => Code::Internal,
            },
            Self::Shim(ClientError::Failure(failure)) => match failure.code {
                FailureCode::NotFound => Code::NotFound,
                FailureCode::WrongState => Code::FailedPrecondition,
                FailureCode::Invalid => Code::InvalidArgument,
                FailureCode::Exhausted => Code::ResourceExhausted,
                FailureCode::AlreadyExists => Code::AlreadyExists,
                // What kubelets see when a command cannot be run.
                FailureCode::Failed | FailureCode::Unknown => Code::Unknown,
                FailureCode::Unsupported => Code::Unimplemented,
            },
            Self::Shim(error) if error.is_gone() => Code::Unavailable,
            _ => Code::Internal,
        }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words() {
        let check = |error: Error, code: Code, words: &str| {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, words));
        };
        check(Error::NotFound { kind: "container", id: "x".into() }, Code::NotFound, "no container \"x\" here");
        check(Error::Unimplemented("checkpoint"), Code::Unimplemented, "checkpoint is not implemented");
        let source = std::io::Error::other("disk on fire");
        let error = Error::Record(RecordError::Write { path: "/r".into(), source });
        check(error, Code::Internal, "keep the records of pods: write /r: disk on fire");
    }
}
