//! WATCH: what is there (when asked), then every change, until the time is up or the caller falls behind.
//!
//!     Gap --the store's log read up to where memory begins--> Backlog --sent--> Live --timeout, server ending, overrun, panic--> Ended
//!
//! A large object leaves as the bytes that the cache holds, and an event in any other form as bytes that all watchers share: a
//! watcher that does not read costs little more than its place.
//!
//! A bookmark is sent only when the queue is empty, with a revision read before it was found empty: everything up to there was sent.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use control_plane_api::{Object, Reason, Status};
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
    cache::{Filter, Form, Kind, Notice, Refused, Start, Subscription},
    negotiate::{Format, Shape},
    request::duration,
    status::Outcome,
    verb::Call,
    wire,
};

/// How often a quiet watch is told how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch lasts no longer than this, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Objects of this size and more are sent as they lie in the cache; smaller ones are copied into one piece with what surrounds them.
const SHARED_BYTES_MIN: usize = 16 << 10;
/// When to try again after too many watches.
const RETRY_AFTER_SECONDS: u32 = 5;
/// A watch without timeoutSeconds ends after this, and the next one starts where it stopped.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30 * 60);

struct Watch {
    call: Call,
    subscription: Subscription,
    bookmarks: bool,
    /// Send a bookmark that ends the initial events.
    mark_initial_end: bool,
    /// What is about to be sent, in order.
    ready: VecDeque<Bytes>,
    /// What lies before the backlog.
    gap: Option<Gap>,
    is_backlog_sent: bool,
    deadline: Instant,
    ticker: tokio::time::Interval,
    bookmarked: Revision,
    /// Column definitions are sent with the first table only.
    table_started: bool,
}

/// What a watch from before the history in memory has still to read from the store, a part at a time.
struct Gap {
    filter: Filter,
    after: Revision,
    /// Memory has what comes after.
    until: Revision,
    /// What was read and not sent.
    read: Vec<Notice>,
}

impl Gap {
    /// Reads the next part.
    async fn fill(&mut self, call: &Call) -> Outcome<()> {
        let collection = call.collection()?;
        let changes = call.kernel.store.changes(self.filter.prefix(), self.after).await?;
        let events = changes.events.iter().take_while(|event| event.revision <= self.until);
        self.read.extend(events.filter_map(|event| collection.notice(event, &self.filter)));
        self.after = if changes.more { changes.complete_to } else { self.until };
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.after >= self.until
    }
}

/// A watch that starts after a revision which memory no longer has; the first part is read at once, to know that the store has it.
async fn late(call: &Call, filter: Filter, after: Revision) -> Outcome<Result<(Subscription, Option<Gap>), Refused>> {
    let (subscription, until) = match call.collection()?.subscribe_late(filter.clone()) {
        Ok(late) => late,
        Err(refused) => return Ok(Err(refused)),
    };
    let mut gap = Gap { filter, after, until, read: Vec::new() };
    match gap.fill(call).await {
        Ok(()) => Ok(Ok((subscription, Some(gap)))),
        Err(failure) if failure.0.reason == Reason::Expired => Ok(Err(Refused::Expired)),
        Err(failure) => Err(failure),
    }
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
    // Taken before the subscription: whatever is told later than this is not in what is sent first.
    let applied = call.kernel.cache.applied();
    let subscribed = match (collection.subscribe(filter.clone(), start), start) {
        (Err(Refused::Expired), Start::After(after)) => late(call, filter, after).await?,
        (subscribed, _) => subscribed.map(|subscription| (subscription, None)),
    };
    let (subscription, gap) = match subscribed {
        Ok(subscribed) => subscribed,
        // The store's history no longer reaches back either: the watch itself succeeds and says so, as clients expect.
        Err(Refused::Expired) => {
            let wanted = wanted.unwrap_or(0);
            return gone(call, &Status::expired(format!("too old resource version: {wanted}")));
        }
        Err(Refused::TooMany) => {
            let why = "too many watches run; end some that are not needed, or try again later";
            return Err(Status::too_many_requests(why, RETRY_AFTER_SECONDS).into());
        }
    };
    let timeout = match call.query.first("timeoutSeconds") {
        Some(text) => match text.parse() {
            Ok(0) => TIMEOUT_DEFAULT,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Status::bad_request(format!("timeoutSeconds must be a number, not {text:?}")).into()),
        },
        None => {
            let wanted = call.query.first("timeout").and_then(duration::parse).filter(|one| !one.is_zero());
            wanted.unwrap_or(TIMEOUT_DEFAULT)
        }
    };
    let now = Instant::now();
    let after = |duration: Duration| now.checked_add(duration).unwrap_or(now);
    let mut ticker = tokio::time::interval_at(after(BOOKMARK_EVERY), BOOKMARK_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch {
        call: call.clone(),
        ready: VecDeque::new(),
        gap,
        is_backlog_sent: false,
        // Everything up to here, whichever kind changed: the kind's own last change may lie long ago, or never have been.
        bookmarked: subscription.revision.max(applied),
        subscription,
        bookmarks,
        mark_initial_end: initial == Some(true) && bookmarks,
        deadline: after(timeout.min(TIMEOUT_MAX)),
        ticker,
        table_started: false,
    };
    Ok(stream_response(call, watch.into_stream()))
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
        stream::unfold(Some(self), |watch| async move {
            let mut watch = watch?;
            let kernel = Arc::clone(&watch.call.kernel);
            let subject = watch.call.row.resource;
            let frame = kernel.walls.around("watch", subject, async move {
                let frame = watch.next().await;
                (frame, watch)
            });
            match frame.await {
                Ok((frame, watch)) => Some((frame?, Some(watch))),
                // It ends alone; the caller begins again.
                Err(panicked) => Some((Err(Box::new(panicked) as BoxError), None)),
            }
        })
    }

    /// What is there goes out in large pieces, not an object at a time; `false` when there is no more of it.
    fn fill_from_backlog(&mut self) -> Result<bool, BoxError> {
        const PIECE_BYTES: usize = 64 << 10;
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES && self.ready.is_empty() {
            let Some(notice) = self.subscription.receiver.next_of_backlog() else { break };
            let mut frames = self.frames(&notice)?;
            match (frames.len(), frames.pop_front()) {
                (1, Some(only)) if only.len() < SHARED_BYTES_MIN => piece.put_slice(&only),
                (_, Some(first)) => {
                    self.ready.push_back(first);
                    self.ready.append(&mut frames);
                }
                _ => {}
            }
        }
        if !piece.is_empty() {
            self.ready.push_front(piece.freeze());
        }
        Ok(!self.ready.is_empty())
    }

    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Some(Ok(bytes));
        }
        while let Some(mut gap) = self.gap.take() {
            if gap.read.is_empty() && !gap.is_closed() {
                // Compacted meanwhile: the caller starts again from the last change that it was told.
                gap.fill(&self.call).await.ok()?;
            }
            for notice in std::mem::take(&mut gap.read) {
                match self.frames(&notice) {
                    Ok(mut frames) => self.ready.append(&mut frames),
                    Err(error) => return Some(Err(error)),
                }
            }
            self.gap = (!gap.is_closed()).then_some(gap);
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
        }
        if !self.is_backlog_sent {
            match self.fill_from_backlog() {
                Ok(true) => return self.ready.pop_front().map(Ok),
                Ok(false) => self.is_backlog_sent = true,
                Err(error) => return Some(Err(error)),
            }
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
                    match self.frames(&notice) {
                        Ok(frames) => self.ready = frames,
                        Err(error) => return Some(Err(error)),
                    }
                    return self.ready.pop_front().map(Ok);
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

    /// The bytes of one event, in as many parts as share them best.
    fn frames(&mut self, notice: &Notice) -> Result<VecDeque<Bytes>, BoxError> {
        if respond::is_plain(&self.call) {
            return Ok(plain_frames(notice));
        }
        // The first table carries the columns; it is this watcher's own.
        let shared = self.call.accept.shape != Shape::Table || self.table_started;
        let frame = match notice.encoded.clone().filter(|_| shared) {
            Some(encoded) => {
                let form = self.form(notice.kind);
                encoded.get_or_make(form, || self.frame(notice))?
            }
            None => self.frame(notice)?,
        };
        Ok([frame].into())
    }

    fn form(&self, kind: Kind) -> Form {
        let Call { row, accept, query, .. } = &self.call;
        let include = query.first("includeObject").unwrap_or("");
        let name = format!(
            "{:?} {:?} {} {} {} {include}",
            accept.format,
            accept.shape,
            accept.meta_version,
            accept.pretty,
            row.api_version()
        );
        Form { kind, name }
    }

    fn frame(&mut self, notice: &Notice) -> Result<Bytes, BoxError> {
        let object = self.object(notice);
        let value = self.shaped(&object).map_err(|failure| Box::new(failure.0) as BoxError)?;
        event_frame(&self.call, notice.kind.as_str(), value).map_err(|failure| Box::new(failure.0) as BoxError)
    }

    fn object(&self, notice: &Notice) -> Object {
        let mut object = behaviour::from_storage(self.call.row, notice.cached.object());
        if let Kind::Deleted(at) = notice.kind {
            object.set_resource_version(at.0);
        }
        object
    }

    fn shaped(&mut self, object: &Object) -> Outcome<Value> {
        match self.call.accept.shape {
            Shape::Whole => Ok(object.to_value()),
            Shape::PartialMetadata => Ok(respond::partial(&self.call, object).into_value()),
            Shape::Table => {
                let version = object.resource_version();
                let mut table = behaviour::table(&self.call, std::slice::from_ref(object), version, None)?;
                if std::mem::replace(&mut self.table_started, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                Ok(respond::versioned(&self.call, table))
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
            Shape::PartialMetadata => respond::partial(&self.call, &object).into_value(),
            Shape::Table => {
                json!({"kind": "Table", "apiVersion": self.call.accept.meta_version, "metadata": {"resourceVersion": at.to_string()},
                "columnDefinitions": [], "rows": [{"cells": [], "object": respond::partial(&self.call, &object).into_value()}]})
            }
        };
        event_frame(&self.call, "BOOKMARK", value).map_err(|failure| Box::new(failure.0) as BoxError)
    }
}

/// An event of the cached bytes themselves. Small ones are copied into one piece; of large ones only what surrounds them is new.
fn plain_frames(notice: &Notice) -> VecDeque<Bytes> {
    let deleted = |at: Revision| wire::reserved(&notice.cached.bytes, at);
    let bytes = match (notice.kind, &notice.encoded) {
        (Kind::Added | Kind::Modified, _) => notice.cached.bytes.clone(),
        (Kind::Deleted(at), None) => deleted(at),
        (Kind::Deleted(at), Some(encoded)) => {
            let form = Form { kind: notice.kind, name: "object".to_owned() };
            let made = encoded.get_or_make(form, || Ok::<_, std::convert::Infallible>(deleted(at)));
            match made {
                Ok(bytes) => bytes,
                Err(never) => match never {},
            }
        }
    };
    let head = format!("{{\"type\":\"{}\",\"object\":", notice.kind.as_str());
    if bytes.len() >= SHARED_BYTES_MIN {
        return [Bytes::from(head), bytes, Bytes::from_static(b"}\n")].into();
    }
    let mut out = BytesMut::with_capacity(bytes.len() + 48);
    out.put_slice(head.as_bytes());
    out.put_slice(&bytes);
    out.put_slice(b"}\n");
    [out.freeze()].into()
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
