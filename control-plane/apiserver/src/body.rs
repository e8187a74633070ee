//! Bodies in and out: one type for every transport, one limit on what is read.

use bytes::{Bytes, BytesMut};
use control_plane_api::{Status, budget::BODY_BYTES_MAX};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

use crate::status::Outcome;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every request and response inside the server.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// Makes any transport's body ours.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Reads a whole body, up to the limit. Frame by frame: the generic collectors cannot prove their futures `Send` here.
pub(crate) async fn read(mut body: Body) -> Outcome<Bytes> {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("the body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if out.len() + data.len() > BODY_BYTES_MAX {
            return Err(Status::too_large(format!("Request entity too large: limit is {BODY_BYTES_MAX}")).into());
        }
        out.extend_from_slice(&data);
    }
    Ok(out.freeze())
}
