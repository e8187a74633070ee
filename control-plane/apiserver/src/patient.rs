//! A request's body that must have arrived in time: who sends a byte a minute does not hold what was set aside for him.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use crate::body::{Body, BoxError};

/// The body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the request body did not arrive within {seconds} seconds")]
struct Late {
    seconds: u64,
}

struct Patient {
    body: Body,
    limit: Duration,
    deadline: Instant,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The body, which fails when it has not ended after `limit`.
pub(crate) fn within(body: Body, limit: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let now = Instant::now();
    let deadline = now.checked_add(limit).unwrap_or(now);
    Patient { body, limit, deadline, timer: None }.boxed_unsync()
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(this.deadline)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Box::new(Late { seconds: this.limit.as_secs() })))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let first = futures::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))]);
        let stuck = futures::stream::pending::<Result<Frame<Bytes>, BoxError>>();
        use futures::StreamExt as _;
        let body = StreamBody::new(first.chain(stuck)).boxed_unsync();
        let outcome = within(body, Duration::from_millis(1)).collect().await.map(|_| ());
        assert_eq!(outcome.unwrap_err().to_string(), "the request body did not arrive within 0 seconds");
        let whole = within(crate::body::full("abc"), Duration::ZERO).collect().await.unwrap().to_bytes();
        assert_eq!(whole, "abc", "what is there is taken");
    }
}
