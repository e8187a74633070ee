//! The one place where failures become `Status` answers, and `Status` answers become responses.

use control_plane_api::{Reason, Status};
use http::{HeaderValue, Response, StatusCode, header};

use crate::{
    body::{self, Body},
    cache, negotiate,
};

impl From<cache::Error> for Failure {
    fn from(error: cache::Error) -> Self {
        let status = match &error {
            cache::Error::Store(source) => return source.clone().into(),
            cache::Error::Behind { .. } => Status::timeout(error.to_string(), 1),
        };
        status.into()
    }
}

impl From<control_plane_store::Error> for Failure {
    fn from(error: control_plane_store::Error) -> Self {
        use control_plane_store::Error;
        let status = match &error {
            Error::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
            Error::Future { wanted, newest } => too_large_version(wanted.0, newest.0),
            Error::DiskFull { .. } | Error::Closed => Status::service_unavailable(error.to_string()),
            _ => {
                tracing::error!(error = %chain(&error), "the store failed");
                Status::internal(&error)
            }
        };
        status.into()
    }
}

/// A wrapper that lets `?` turn this package's errors into a `Status`. Boxed: results are passed often, failures seldom.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Status>);

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

/// What a verb returns.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// A revision that has not been reached.
pub(crate) fn too_large_version(wanted: u64, newest: u64) -> Status {
    use control_plane_api::{Cause, CauseType, status::Details};
    let mut status = Status::timeout(format!("Too large resource version: {wanted}, current: {newest}"), 1);
    // Clients recognise this case by the cause's message alone; its type has no word of its own here.
    let cause = Cause { kind: CauseType::Internal, field: String::new(), message: "Too large resource version".into() };
    status.details = Some(Details { causes: vec![cause], retry_after_seconds: Some(1), ..Details::default() });
    status
}

/// The whole chain of an error, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(crate) fn response(status: &Status) -> Response<Body> {
    let bytes = serde_json::to_vec(&status.to_value()).expect("a status always encodes");
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(negotiate::JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds).filter(|s| *s > 0) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.reason == Reason::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
