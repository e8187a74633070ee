//! What is done to a pod, one file per operation; worker.rs starts them and hears how they went. An operation may be given up at
//! its marked places only. Invariant: each can be repeated after dying anywhere.

pub mod release;
pub mod sandbox;
pub mod start;
pub mod stop;

/// Why a step failed, as a waiting container or a pod shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

impl Failure {
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { reason, message: message.into() }
    }
}

/// An error with its causes on one line, each said once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
