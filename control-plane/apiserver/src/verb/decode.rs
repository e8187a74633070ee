//! A body becomes an object: JSON, YAML or protobuf, checked against the row's type as fieldValidation asks, in its normal form.

use bytes::Bytes;
use control_plane_api::{Object, Status, budget::Exceeded, read, schema};
use http::Request;
use serde_json::Value;

use crate::{
    behaviour,
    body::{self, Body},
    negotiate::{self, MediaType},
    status::{Failure, Outcome},
    verb::Call,
};

/// A body as it was sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) media: MediaType,
    pub(crate) bytes: Bytes,
}

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Strict,
    Warn,
    Ignore,
}

impl Sent {
    pub(crate) async fn read(request: Request<Body>) -> Outcome<Self> {
        let (parts, body) = request.into_parts();
        let media = negotiate::content_type(&parts.headers);
        Ok(Self { media, bytes: body::read(body).await? })
    }

    /// The value in the body, whatever its kind, with its duplicate fields.
    pub(crate) fn value(&self) -> Outcome<(Value, Vec<String>)> {
        match self.media.essence.as_str() {
            negotiate::JSON | "text/json" => json(&self.bytes),
            negotiate::YAML | "text/yaml" => yaml(&self.bytes),
            negotiate::PROTOBUF => Ok((behaviour::from_protobuf(&self.bytes)?.into_value(), Vec::new())),
            _ => Err(Status::unsupported_media_type(&[negotiate::JSON, negotiate::YAML, negotiate::PROTOBUF]).into()),
        }
    }
}

pub(crate) fn json(bytes: &[u8]) -> Outcome<(Value, Vec<String>)> {
    read::json(bytes).map_err(refused)
}

pub(crate) fn yaml(bytes: &[u8]) -> Outcome<(Value, Vec<String>)> {
    read::yaml(bytes).map_err(refused)
}

fn refused(error: read::Error) -> Failure {
    match error {
        read::Error::Budget(Exceeded::Values) => Status::too_large(error.to_string()).into(),
        error => Status::bad_request(error.to_string()).into(),
    }
}

impl Call {
    pub(crate) fn field_validation(&self) -> Outcome<FieldValidation> {
        match self.query.first("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => {
                Err(Status::bad_request(format!("fieldValidation must be Strict, Warn or Ignore, not {other:?}"))
                    .into())
            }
        }
    }

    /// Checks fields and types of a value that is to become an object of this type.
    pub(crate) fn check_shape(&mut self, of: &schema::Type, value: &Value, duplicates: &[String]) -> Outcome<()> {
        let validation = self.field_validation()?;
        let mut findings: Vec<String> = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
        if validation != FieldValidation::Ignore {
            findings
                .extend(schema::check::unknown_fields(of, value).iter().map(|path| format!("unknown field {path:?}")));
        }
        schema::check::types(of, value).map_err(|mismatch| {
            Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: {mismatch}",
                self.row.kind,
                self.row.version,
                of.short_name()
            ))
        })?;
        match validation {
            FieldValidation::Strict if !findings.is_empty() => {
                Err(Status::bad_request(format!("strict decoding error: {}", findings.join(", "))).into())
            }
            FieldValidation::Warn => {
                self.warnings.extend(findings);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The body as an object of the call's row.
pub(crate) fn object(call: &mut Call, sent: &Sent) -> Outcome<Object> {
    let (group, version, kind) = (call.row.group, call.row.version, call.row.kind);
    object_of(call, sent, (group, version, kind))
}

/// The body as an object of a kind: the row's, or a subresource's.
pub(crate) fn object_of(
    call: &mut Call,
    sent: &Sent,
    (group, version, kind): (&'static str, &'static str, &'static str),
) -> Outcome<Object> {
    let (value, duplicates) = sent.value()?;
    let mut object = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
    let expected = control_plane_api::row::api_version(group, version);
    if object.kind().is_empty() && object.api_version().is_empty() {
        object.set_type(&expected, kind);
    }
    if object.kind() != kind || object.api_version() != expected {
        let message = if object.api_version() != expected {
            format!(
                "the API version in the data ({}) does not match the expected API version ({expected})",
                object.api_version()
            )
        } else {
            format!("the kind in the data ({}) does not match the expected kind ({kind})", object.kind())
        };
        return Err(Status::bad_request(message).into());
    }
    if let Some(of) = schema::find_kind(group, version, kind) {
        let value = object.into_value();
        call.check_shape(of, &value, &duplicates)?;
        object = Object::from_value(value).map_err(|error| Status::bad_request(error.to_string()))?;
        schema::normal::normalize(of, &mut object);
    }
    Ok(object)
}
