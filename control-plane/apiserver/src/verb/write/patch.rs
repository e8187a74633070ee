//! PATCH: JSON patch, merge patch, strategic merge patch, and apply. Chooses the pure function and makes the change with it.

use control_plane_api::{Object, Reason, Status, schema};
use http::{Response, StatusCode};
use serde_json::Value;

use super::{change, check_name, create};
use crate::{
    authz::Attributes,
    behaviour,
    body::Body,
    status::Outcome,
    verb::{
        Call,
        decode::{self, Sent},
        respond,
    },
};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY_YAML: &str = "application/apply-patch+yaml";
const APPLY_CBOR: &str = "application/apply-patch+cbor";
const ALL: [&str; 4] = [JSON_PATCH, MERGE_PATCH, STRATEGIC, APPLY_YAML];
/// Operations in one JSON patch; as upstream.
const OPERATIONS_MAX: usize = 10_000;

/// A change as it was sent.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    Apply(Object),
}

pub(crate) async fn serve(call: &mut Call, sent: &Sent) -> Outcome<Response<Body>> {
    check_name(call, &call.path.name.clone())?;
    let patch = parse(call, sent)?;
    if let Patch::Apply(intent) = patch {
        return apply(call, intent).await;
    }
    if call.query.has("force") && call.query.flag("force") {
        return Err(Status::bad_request("force is only for apply patches; leave it out").into());
    }
    let changed = change(call, &mut |call, live| patched(call, live, &patch)).await?;
    respond::object(call, StatusCode::OK, &changed)
}

pub(crate) fn parse(call: &mut Call, sent: &Sent) -> Outcome<Patch> {
    match sent.media.essence.as_str() {
        JSON_PATCH => {
            let patch: json_patch::Patch = serde_json::from_slice(&sent.bytes)
                .map_err(|error| Status::bad_request(format!("error decoding the JSON patch: {error}")))?;
            if patch.0.len() > OPERATIONS_MAX {
                let why = format!(
                    "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
                    patch.0.len()
                );
                return Err(Status::too_large(why).into());
            }
            Ok(Patch::Json(patch))
        }
        MERGE_PATCH => Ok(Patch::Merge(decode::json(&sent.bytes)?.0)),
        STRATEGIC => Ok(Patch::Strategic(decode::json(&sent.bytes)?.0)),
        APPLY_YAML => {
            // YAML contains JSON, but the JSON parser also finds duplicate fields.
            let (value, duplicates) = match sent.bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
                Some(b'{') => decode::json(&sent.bytes).or_else(|_| decode::yaml(&sent.bytes))?,
                _ => decode::yaml(&sent.bytes)?,
            };
            Ok(Patch::Apply(intent(call, value, &duplicates)?))
        }
        APPLY_CBOR => Err(Status::unsupported_media_type(&ALL).into()),
        _ => Err(Status::unsupported_media_type(&ALL).into()),
    }
}

/// The new version of the object under a patch that is no apply.
pub(crate) fn patched(call: &mut Call, live: &Object, patch: &Patch) -> Outcome<Object> {
    let of = behaviour::body_type(call);
    let mut value = live.to_value();
    let original_version = live.resource_version().to_owned();
    match patch {
        Patch::Json(patch) => json_patch::patch(&mut value, patch).map_err(|error| {
            let mut status = Status::new(
                Reason::Invalid,
                format!("the server rejected our request due to an error in our request: {error}"),
            );
            status.code = 422;
            status
        })?,
        Patch::Merge(patch) => json_patch::merge(&mut value, patch),
        Patch::Strategic(patch) => match of {
            Some(of) => value = behaviour::strategic(of, &value, patch)?,
            None => return Err(Status::unsupported_media_type(&ALL[..2]).into()),
        },
        Patch::Apply(_) => unreachable!("apply has its own path"),
    }
    let mut next = Object::from_value(value)
        .map_err(|error| Status::bad_request(format!("the patch leaves no object: {error}")))?;
    // A patch that names no resourceVersion goes by what is there, however often that changes.
    if next.resource_version() == original_version && !names_version(patch) {
        next.metadata_mut().remove("resourceVersion");
    }
    if next.kind() != live.kind() || next.api_version() != live.api_version() {
        return Err(Status::bad_request("a patch may not change apiVersion or kind").into());
    }
    if next.name() != live.name() {
        let why = format!("metadata.name: Invalid value: {:?}: field is immutable", next.name());
        return Err(Status::bad_request(why).into());
    }
    if let Some(of) = of {
        call.warnings.clear();
        let value = next.into_value();
        call.check_shape(of, &value, &[])?;
        next = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
        schema::normal::normalize(of, &mut next);
    }
    Ok(next)
}

fn names_version(patch: &Patch) -> bool {
    match patch {
        Patch::Merge(value) | Patch::Strategic(value) => {
            value.get("metadata").and_then(|metadata| metadata.get("resourceVersion")).is_some()
        }
        Patch::Json(patch) => patch.0.iter().any(|operation| operation.path() == "/metadata/resourceVersion"),
        Patch::Apply(object) => !object.resource_version().is_empty(),
    }
}

/// The applied configuration, checked.
fn intent(call: &mut Call, value: Value, duplicates: &[String]) -> Outcome<Object> {
    if call.query.first("fieldManager").is_none() {
        let cause = control_plane_api::Cause::required("fieldManager", "is required for apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]).into());
    }
    let mut object = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
    let expected = call.row.api_version();
    if object.api_version().is_empty() || object.kind().is_empty() {
        return Err(Status::bad_request("an applied object must say its apiVersion and kind").into());
    }
    let (api_version, kind) = match call.row.subresource(&call.path.subresource) {
        Some(sub) => (control_plane_api::row::api_version(sub.group, sub.version), sub.kind),
        None => (expected, call.row.kind),
    };
    if object.kind() != kind || object.api_version() != api_version {
        let why = format!(
            "the object's type ({}, {}) does not match that of the path ({api_version}, {kind})",
            object.api_version(),
            object.kind()
        );
        return Err(Status::bad_request(why).into());
    }
    if object.metadata().is_some_and(|metadata| {
        metadata
            .get("managedFields")
            .is_some_and(|list| !list.is_null() && list.as_array().is_none_or(|list| !list.is_empty()))
    }) {
        return Err(Status::bad_request("metadata.managedFields must be nil").into());
    }
    super::check_identity(call, &mut object)?;
    if let Some(of) = behaviour::body_type(call) {
        let value = object.into_value();
        call.check_shape(of, &value, duplicates)?;
        object = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
    }
    Ok(object)
}

async fn apply(call: &mut Call, intent: Object) -> Outcome<Response<Body>> {
    call.applies = true;
    let manager = call.field_manager()?;
    let force = call.query.flag("force");
    let applied = change(call, &mut |call, live| behaviour::apply(call, live, &intent, &manager, force)).await;
    let create_allowed = call.path.subresource.is_empty() && call.row.has_verb("create");
    match applied {
        Err(failure) if failure.0.reason == Reason::NotFound && create_allowed && intent.uid().is_empty() => {
            let attributes = Attributes::resource(
                "create",
                call.row.group,
                call.row.resource,
                &call.path.namespace,
                &call.path.name,
            );
            call.kernel.authorizer.require(&call.user, &attributes)?;
            let empty = call.row.object();
            let mut object = behaviour::apply(call, &empty, &intent, &manager, force)?;
            object.metadata_mut().remove("resourceVersion");
            match create(call, &mut object).await {
                // Somebody created it meanwhile: it is a change after all.
                Err(failure) if failure.0.reason == Reason::AlreadyExists => {
                    let changed =
                        change(call, &mut |call, live| behaviour::apply(call, live, &intent, &manager, force)).await?;
                    respond::object(call, StatusCode::OK, &changed)
                }
                created => respond::object(call, StatusCode::CREATED, &created?),
            }
        }
        changed => respond::object(call, StatusCode::OK, &changed?),
    }
}
