//! WATCH: what is there (when asked), then every change, until the time is up or the caller falls behind.
//!
//!     Backlog --sent--> Live --timeout, server ending, queue overrun--> Ended
//!
//! A bookmark is sent only when the queue is empty, with a revision read before it was found empty: everything up to there was sent.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use control_plane_api::{Object, Status};
use control_plane_store::Revision;
use futures::{StreamExt, stream};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::{respond, version};
use crate::{
    behaviour,
    body::{Body, BoxError},
    cache::{Cached, Notice, Start, Subscription},
    negotiate::{Format, Shape},
    status::Outcome,
    verb::Call,
    wire,
};

/// How often a quiet watch is told how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without timeoutSeconds ends after this, and the next one starts where it stopped.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30 * 60);

struct Watch {
    call: Call,
    subscription: Subscription,
    bookmarks: bool,
    /// Send a bookmark that ends the initial events.
    mark_initial_end: bool,
    backlog: std::vec::IntoIter<Notice>,
    deadline: Instant,
    ticker: tokio::time::Interval,
    bookmarked: Revision,
    /// Column definitions are sent with the first table only.
    table_started: bool,
}

pub(crate) async fn serve(call: &Call) -> Outcome<Response<Body>> {
    let filter = call.filter()?;
    let collection = call.collection()?;
    let initial = call.query.has("sendInitialEvents").then(|| call.query.flag("sendInitialEvents"));
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if initial.is_some() && call.query.first("resourceVersionMatch") != Some("NotOlderThan") {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return Err(Status::bad_request(why).into());
    }
    let wanted = call.query.first("resourceVersion").map(version::parse).transpose()?;
    let start = match wanted {
        None | Some(0) => {
            if wanted.is_none() {
                call.kernel.cache.catch_up().await?;
            }
            match initial {
                Some(false) => Start::After(call.kernel.cache.applied()),
                _ => Start::Now,
            }
        }
        Some(wanted) => {
            version::reach(call, wanted).await?;
            if initial == Some(true) { Start::Now } else { Start::After(Revision(wanted)) }
        }
    };
    let expired = |wanted: u64| Status::expired(format!("too old resource version: {wanted}"));
    let mut subscription = match collection.subscribe(filter, start) {
        Some(subscription) => subscription,
        // The history no longer reaches back: the watch itself succeeds and says so, as clients expect.
        None => return gone(call, &expired(wanted.unwrap_or(0))),
    };
    let timeout = match call.query.first("timeoutSeconds") {
        Some(text) => match text.parse() {
            Ok(0) => TIMEOUT_DEFAULT,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Status::bad_request(format!("timeoutSeconds must be a number, not {text:?}")).into()),
        },
        None => call.query.first("timeout").and_then(duration).unwrap_or(TIMEOUT_DEFAULT),
    };
    let mut ticker = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch {
        call: call.clone(),
        backlog: std::mem::take(&mut subscription.backlog).into_iter(),
        bookmarked: subscription.revision,
        subscription,
        bookmarks,
        mark_initial_end: initial == Some(true) && bookmarks,
        deadline: Instant::now() + timeout,
        ticker,
        table_started: false,
    };
    Ok(stream_response(call, watch.into_stream()))
}

/// `30s`, `1m30s`: Go's way to write a duration, as the old `timeout` parameter carries it.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit() && one != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|one: char| one.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit_end] {
            "ms" => value / 1000.0,
            "s" => value,
            "m" => value * 60.0,
            "h" => value * 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(seconds).ok()?;
        rest = &rest[unit_end..];
    }
    (!total.is_zero()).then_some(total)
}

fn gone(call: &Call, status: &Status) -> Outcome<Response<Body>> {
    let bytes = event_frame(call, "ERROR", status.to_value())?;
    Ok(stream_response(call, stream::iter([Ok(bytes)])))
}

fn stream_response(
    call: &Call,
    frames: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> Response<Body> {
    let body = StreamBody::new(frames.map(|bytes| bytes.map(Frame::data)));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    let media = match call.accept.format {
        Format::Protobuf if call.accept.shape != Shape::Table => "application/vnd.kubernetes.protobuf;stream=watch",
        // A YAML stream of events has no framing that clients agree on.
        _ => "application/json",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    respond::add_warnings(call, headers);
    response
}

impl Watch {
    fn into_stream(self) -> impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        stream::unfold(self, |mut watch| async move {
            let frame = watch.next().await?;
            Some((frame, watch))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        if self.backlog.len() > 0 {
            // What is there goes out in large pieces, not an object at a time.
            const PIECE_BYTES: usize = 64 << 10;
            let mut piece = BytesMut::new();
            while piece.len() < PIECE_BYTES {
                let Some(notice) = self.backlog.next() else { break };
                match self.frame(&notice) {
                    Ok(frame) => piece.put_slice(&frame),
                    Err(error) => return Some(Err(error)),
                }
            }
            return Some(Ok(piece.freeze()));
        }
        if std::mem::take(&mut self.mark_initial_end) {
            return Some(self.bookmark(self.bookmarked, true));
        }
        loop {
            let shutdown = self.call.kernel.shutdown.clone();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                notice = self.subscription.receiver.recv() => {
                    // None: the cache dropped a watcher that did not keep up. The caller starts again from its last revision.
                    let notice = notice?;
                    return Some(self.frame(&notice));
                }
                _ = self.ticker.tick(), if self.bookmarks => {
                    let applied = self.call.kernel.cache.applied();
                    if self.subscription.receiver.is_empty() && applied > self.bookmarked {
                        self.bookmarked = applied;
                        return Some(self.bookmark(applied, false));
                    }
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    // A last bookmark makes the next watch cheap.
                    let applied = self.call.kernel.cache.applied();
                    if self.bookmarks && self.subscription.receiver.is_empty() && applied > self.bookmarked {
                        self.bookmarked = applied;
                        return Some(self.bookmark(applied, false));
                    }
                    return None;
                }
            }
        }
    }

    fn frame(&mut self, notice: &Notice) -> Result<Bytes, BoxError> {
        let (kind, cached, bytes) = match notice {
            Notice::Added(cached) => ("ADDED", cached, cached.bytes.clone()),
            Notice::Modified(cached) => ("MODIFIED", cached, cached.bytes.clone()),
            Notice::Deleted(cached, at) => ("DELETED", cached, wire::reserved(&cached.bytes, *at)),
        };
        if respond::is_plain(&self.call) {
            let mut out = BytesMut::with_capacity(bytes.len() + 40);
            out.put_slice(b"{\"type\":\"");
            out.put_slice(kind.as_bytes());
            out.put_slice(b"\",\"object\":");
            out.put_slice(&bytes);
            out.put_slice(b"}\n");
            return Ok(out.freeze());
        }
        let object = self.object(cached, notice);
        let value = self.shaped(&object).map_err(|failure| Box::new(failure.0) as BoxError)?;
        event_frame(&self.call, kind, value).map_err(|failure| Box::new(failure.0) as BoxError)
    }

    fn object(&self, cached: &Arc<Cached>, notice: &Notice) -> Object {
        let mut object = behaviour::from_storage(self.call.row, cached.object());
        if let Notice::Deleted(_, at) = notice {
            object.set_resource_version(at.0);
        }
        object
    }

    fn shaped(&mut self, object: &Object) -> Outcome<Value> {
        match self.call.accept.shape {
            Shape::Whole => Ok(object.to_value()),
            Shape::PartialMetadata => Ok(respond::partial(object).into_value()),
            Shape::Table => {
                let version = object.resource_version();
                let mut table = behaviour::table(&self.call, std::slice::from_ref(object), version, None)?;
                if std::mem::replace(&mut self.table_started, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                Ok(table)
            }
        }
    }

    fn bookmark(&mut self, at: Revision, ends_initial: bool) -> Result<Bytes, BoxError> {
        let mut object = self.call.row.object();
        object.set_resource_version(at.0);
        object.metadata_mut().insert("creationTimestamp".into(), Value::Null);
        if ends_initial {
            object.set_annotation("k8s.io/initial-events-end", "true");
        }
        let value = match self.call.accept.shape {
            Shape::Whole => object.into_value(),
            Shape::PartialMetadata => respond::partial(&object).into_value(),
            Shape::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": at.to_string()},
                "columnDefinitions": [], "rows": [{"cells": [], "object": respond::partial(&object).into_value()}]})
            }
        };
        event_frame(&self.call, "BOOKMARK", value).map_err(|failure| Box::new(failure.0) as BoxError)
    }
}

/// One event in the caller's framing: a line of JSON, or a length and a protobuf WatchEvent.
fn event_frame(call: &Call, kind: &str, object: Value) -> Outcome<Bytes> {
    if call.accept.format == Format::Protobuf && call.accept.shape != Shape::Table {
        return behaviour::watch_event_protobuf(kind, object);
    }
    let mut bytes = serde_json::to_vec(&json!({"type": kind, "object": object})).expect("JSON values always encode");
    bytes.push(b'\n');
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text).map(|one| u64::try_from(one.as_millis()).unwrap()), expect, "{text}");
        };
        check("2s", Some(2000));
        check("1m30s", Some(90_000));
        check("1.5h", Some(5_400_000));
        check("200ms", Some(200));
        check("0", None);
        check("x", None);
    }
}
