//! DeleteOptions: from the body or the query, checked.

use control_plane_api::{Object, Status, schema};

use super::decode::Sent;
use crate::{behaviour, negotiate, status::Outcome, verb::Call};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Foreground,
    Background,
    Orphan,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(call: &Call, sent: &Sent) -> Outcome<Self> {
        let body = if sent.bytes.is_empty() {
            Object::default()
        } else if sent.media.essence == negotiate::PROTOBUF {
            behaviour::from_protobuf_as(&sent.bytes, "v1", "DeleteOptions")?
        } else {
            let (value, _) = sent.value()?;
            // A precondition, or a wish for a dry run, that is written in the wrong form must not be passed over.
            let of = schema::find("meta.v1.DeleteOptions");
            if let Some(mismatch) = of.and_then(|of| schema::check::types(of, &value).err()) {
                let why = format!("the body cannot be handled as DeleteOptions: {mismatch}");
                return Err(Status::bad_request(why).into());
            }
            Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?
        };
        let kind = body.kind();
        if !matches!(kind, "" | "DeleteOptions") {
            return Err(Status::bad_request(format!("the body must be DeleteOptions, not {kind}")).into());
        }
        if body.list_at(&["dryRun"]).iter().any(|one| one != "All") {
            return Err(Status::bad_request("dryRun must be All").into());
        }
        let text = |path: &[&str]| body.str_at(path).map(str::to_owned);
        let query = &call.query;
        let grace_seconds = match query.first("gracePeriodSeconds") {
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Status::bad_request(format!("gracePeriodSeconds must be a number, not {text:?}")))?,
            ),
            None => body.i64_at(&["gracePeriodSeconds"]),
        };
        let policy = query.first("propagationPolicy").map(str::to_owned).or_else(|| text(&["propagationPolicy"]));
        let orphan = match query.first("orphanDependents") {
            Some(value) => Some(value == "true"),
            None => body.bool_at(&["orphanDependents"]),
        };
        let propagation = match (policy.as_deref(), orphan) {
            (Some(_), Some(_)) => {
                return Err(Status::bad_request("orphanDependents and propagationPolicy cannot be both set").into());
            }
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) => Some(Propagation::Background),
            (Some("Orphan"), _) => Some(Propagation::Orphan),
            (Some(other), _) => {
                let why = format!("propagationPolicy must be Foreground, Background or Orphan, not {other:?}");
                return Err(Status::bad_request(why).into());
            }
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let dry_run = call.dry_run()? || !body.list_at(&["dryRun"]).is_empty();
        Ok(Self {
            grace_seconds,
            propagation,
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            dry_run,
        })
    }
}
