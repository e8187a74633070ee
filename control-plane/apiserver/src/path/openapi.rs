//! OpenAPI documents, as the vocabulary makes them. Encodes and tags them; describes nothing itself.

use control_plane_api::Status;
use http::{HeaderMap, Response};

use crate::{body::Body, status::Outcome};

pub(super) fn v2(_headers: &HeaderMap) -> Outcome<Response<Body>> {
    Err(Status::no_such_path().into())
}

pub(super) fn v3_index() -> Outcome<Response<Body>> {
    Err(Status::no_such_path().into())
}

pub(super) fn v3(_path: &str, _headers: &HeaderMap) -> Outcome<Response<Body>> {
    Err(Status::no_such_path().into())
}
