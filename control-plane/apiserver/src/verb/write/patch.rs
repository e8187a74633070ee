//! PATCH: JSON patch, merge patch, strategic merge patch, and apply. Chooses the pure function and makes the change with it.

use control_plane_api::{Cause, Object, Reason, Status, budget, merge::json, schema};
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
/// A change as it was sent.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json::Patch),
    Merge(Sheet),
    Strategic(Sheet),
    Apply(Object),
}

/// A patch that has the form of the object, with the paths that stand twice in it.
#[derive(Debug)]
pub(crate) struct Sheet {
    value: Value,
    duplicates: Vec<String>,
}

impl Sheet {
    fn read(bytes: &[u8]) -> Outcome<Self> {
        let (value, duplicates) = decode::json(bytes)?;
        Ok(Self { value, duplicates })
    }
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
        JSON_PATCH => Ok(Patch::Json(json::Patch::parse(&sent.bytes).map_err(|error| refused(&error))?)),
        MERGE_PATCH => Ok(Patch::Merge(Sheet::read(&sent.bytes)?)),
        STRATEGIC => Ok(Patch::Strategic(Sheet::read(&sent.bytes)?)),
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
    let original_version = live.resource_version().to_owned();
    let mut duplicates = &[][..];
    let value = match patch {
        Patch::Json(patch) => json::apply(live.to_value(), patch).map_err(|error| refused(&error))?,
        Patch::Merge(sheet) => {
            duplicates = &sheet.duplicates;
            json::merge(live.to_value(), &sheet.value)
        }
        Patch::Strategic(sheet) => match of {
            Some(of) => {
                duplicates = &sheet.duplicates;
                behaviour::strategic(of, live.to_value(), &sheet.value)?
            }
            None => return Err(Status::unsupported_media_type(&ALL[..2]).into()),
        },
        Patch::Apply(_) => unreachable!("apply has its own path"),
    };
    budget::check(&value).map_err(|error| unprocessable(&error.to_string()))?;
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
        // A patch that is wrong only where it lands is no bad request.
        call.field_validation()?;
        call.check_shape(of, &value, duplicates).map_err(|failure| unprocessable(&failure.0.message))?;
        next = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
        schema::normal::normalize(of, &mut next);
    }
    Ok(next)
}

fn refused(error: &json::Error) -> Status {
    match error {
        json::Error::Syntax(_) => Status::bad_request(error.to_string()),
        json::Error::Operations { .. } => Status::too_large(error.to_string()),
        error => {
            let message = format!("the server rejected our request due to an error in our request: {error}");
            let mut status = Status::new(Reason::Invalid, message);
            status.code = 422;
            status
        }
    }
}

/// What a patch leaves is no object of the kind; upstream would repeat all of it.
fn unprocessable(why: &str) -> Status {
    let mut status = Status::invalid("", "", "", vec![Cause::invalid_str("patch", "", why)]);
    status.message = format!("the patch leaves no valid object: {why}");
    status
}

fn names_version(patch: &Patch) -> bool {
    match patch {
        Patch::Merge(sheet) | Patch::Strategic(sheet) => {
            sheet.value.get("metadata").and_then(|metadata| metadata.get("resourceVersion")).is_some()
        }
        Patch::Json(patch) => patch.names("/metadata/resourceVersion"),
        Patch::Apply(object) => !object.resource_version().is_empty(),
    }
}

/// The applied configuration, checked.
fn intent(call: &mut Call, value: Value, duplicates: &[String]) -> Outcome<Object> {
    if call.query.first("fieldManager").is_none() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
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
        let value = object.to_value();
        // Who applies owns what it names: a field that no type has cannot be owned, so it is never dropped in silence here.
        let unknown = schema::check::unknown_fields(of, &value);
        if !unknown.is_empty() {
            let lines: Vec<String> =
                unknown.iter().map(|path| format!(".{path}: field not declared in schema")).collect();
            let why = if lines.len() == 1 { lines.concat() } else { format!("errors:\n  {}", lines.join("\n  ")) };
            return Err(behaviour::untyped(call, &object, &why).into());
        }
        call.check_shape(of, &value, duplicates)?;
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
