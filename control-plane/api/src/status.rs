//! The `Status` error of the API: reason, code, message and causes, worded as clients expect.
//!
//! It builds and encodes; which error a failure becomes is decided by whoever met it. Invariant: code and reason agree.

use std::fmt;

use serde_json::{Map, Value, json};

/// Why a request failed, in the words of `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    ServiceUnavailable,
    /// A failure without a reason of its own; the code says what it was.
    Unknown,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Unknown => "",
        }
    }

    pub fn code(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::BadRequest => 400,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::InternalError | Self::ServerTimeout | Self::Unknown => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// The kind of one cause, in the words of `field.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseType {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
    FieldManagerConflict,
    /// policy/v1: an eviction that a budget does not allow.
    DisruptionBudget,
}

impl CauseType {
    /// The `reason` of a StatusCause.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
            Self::FieldManagerConflict => "FieldManagerConflict",
            Self::DisruptionBudget => "DisruptionBudget",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
            Self::FieldManagerConflict => "conflict",
            Self::DisruptionBudget => "disruption budget",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub kind: CauseType,
    /// The field's path: `spec.containers[0].name`.
    pub field: String,
    /// The whole sentence after the field's name.
    pub message: String,
}

impl Cause {
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::build(CauseType::Required, field, None, detail)
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::build(CauseType::Invalid, field, Some(show(value)), detail)
    }

    pub fn invalid_str(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::build(CauseType::Invalid, field, Some(quote(value)), detail)
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::build(CauseType::Duplicate, field, Some(show(value)), "")
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::build(CauseType::NotFound, field, Some(show(value)), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::build(CauseType::Forbidden, field, None, detail)
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::build(CauseType::TypeInvalid, field, Some(show(value)), detail)
    }

    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|name| quote(name)).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::build(CauseType::NotSupported, field, Some(show(value)), &detail)
    }

    pub fn too_long(field: impl Into<String>, bytes_max: usize) -> Self {
        Self::build(CauseType::TooLong, field, None, &format!("may not be more than {bytes_max} bytes"))
    }

    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::build(CauseType::TooMany, field, Some(count.to_string()), &format!("must have at most {max} {items}"))
    }

    fn build(kind: CauseType, field: impl Into<String>, value: Option<String>, detail: &str) -> Self {
        let mut message = kind.words().to_owned();
        if let Some(value) = value {
            message.push_str(": ");
            message.push_str(&value);
        }
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        Self { kind, field: field.into(), message }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.message)
    }
}

/// A value as an error shows it: strings quoted, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// What a failed (or a successful, bodiless) request answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub reason: Reason,
    pub code: u16,
    pub message: String,
    pub details: Option<Details>,
}

/// What a failure was about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource for most reasons, the kind for Invalid: so do clients expect it.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// `pods`, or `deployments.apps` outside the core group.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, code: reason.code(), message: message.into(), details: None }
    }

    fn about(reason: Reason, group: &str, kind: &str, name: &str, message: String) -> Self {
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() };
        Self { details: Some(details), ..Self::new(reason, message) }
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), quote(name));
        Self::about(Reason::NotFound, group, resource, name, message)
    }

    /// An unknown path: no such resource or verb at all.
    pub fn no_such_path() -> Self {
        Self {
            details: Some(Details::default()),
            ..Self::new(Reason::NotFound, "the server could not find the requested resource")
        }
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), quote(name));
        Self::about(Reason::AlreadyExists, group, resource, name, message)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, resource), quote(name));
        Self::about(Reason::Conflict, group, resource, name, message)
    }

    /// A write against an outdated resourceVersion.
    pub fn stale(group: &str, resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// Server-side apply met fields of other managers.
    pub fn apply_conflict(causes: Vec<Cause>) -> Self {
        let count = causes.len();
        let mut message = format!("Apply failed with {count} conflict{}: ", if count == 1 { "" } else { "s" });
        message.push_str(&list_conflicts(&causes));
        let details = Details { causes, ..Details::default() };
        Self { details: Some(details), ..Self::new(Reason::Conflict, message) }
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (name.is_empty(), resource.is_empty()) {
            (_, true) => format!("forbidden: {why}"),
            (true, false) => format!("{} is forbidden: {why}", qualified(group, resource)),
            (false, false) => format!("{} {} is forbidden: {why}", qualified(group, resource), quote(name)),
        };
        Self::about(Reason::Forbidden, group, resource, name, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for cause in &causes {
            let text = cause.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) };
        let mut status = Self::about(
            Reason::Invalid,
            group,
            kind,
            name,
            format!("{} {} is invalid: {list}", qualified(group, kind), quote(name)),
        );
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {}", quote(&qualified(group, resource)));
        Self::about(Reason::MethodNotAllowed, group, resource, "", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(Reason::UnsupportedMediaType, message)
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(Reason::NotAcceptable, message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Reason::RequestEntityTooLarge, message)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(Reason::Gone, message)
    }

    pub fn internal(why: impl fmt::Display) -> Self {
        let mut status = Self::new(Reason::InternalError, format!("Internal error occurred: {why}"));
        let cause = Cause { kind: CauseType::Internal, field: String::new(), message: why.to_string() };
        status.details = Some(Details { causes: vec![cause], ..Details::default() });
        status
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() };
        Self { details: Some(details), ..Self::new(Reason::Timeout, message) }
    }

    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        let mut status = Self::about(Reason::ServerTimeout, group, resource, operation, message);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = Some(retry_after_seconds);
        }
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() };
        Self { details: Some(details), ..Self::new(Reason::TooManyRequests, message) }
    }

    /// The answer to a delete that left nothing behind.
    pub fn success_deleted(group: &str, resource: &str, name: &str, uid: &str) -> Value {
        let mut details = Map::new();
        details.insert("name".into(), name.into());
        if !group.is_empty() {
            details.insert("group".into(), group.into());
        }
        details.insert("kind".into(), resource.into());
        if !uid.is_empty() {
            details.insert("uid".into(), uid.into());
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }

    /// The `Status` object itself.
    pub fn to_value(&self) -> Value {
        let mut out = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message});
        if self.reason != Reason::Unknown {
            out["reason"] = self.reason.as_str().into();
        }
        if let Some(details) = &self.details {
            out["details"] = details.to_value();
        }
        out["code"] = self.code.into();
        out
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                let mut one = Map::new();
                // Upstream gives an internal error's cause no reason, only its message.
                if cause.kind != CauseType::Internal {
                    one.insert("reason".into(), cause.kind.as_str().into());
                }
                one.insert("message".into(), cause.message.as_str().into());
                if !cause.field.is_empty() {
                    one.insert("field".into(), cause.field.as_str().into());
                }
                Value::Object(one)
            });
            out.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.retry_after_seconds.filter(|seconds| *seconds > 0) {
            out.insert("retryAfterSeconds".into(), seconds.into());
        }
        Value::Object(out)
    }
}

/// One conflict on one line; several grouped by the manager that owns the fields.
fn list_conflicts(causes: &[Cause]) -> String {
    if let [one] = causes {
        return format!("{}: {}", one.message, one.field);
    }
    let mut managers: Vec<(&str, Vec<&str>)> = Vec::new();
    for cause in causes {
        match managers.iter_mut().find(|(manager, _)| *manager == cause.message) {
            Some((_, fields)) => fields.push(&cause.field),
            None => managers.push((&cause.message, vec![&cause.field])),
        }
    }
    let blocks = managers.iter().map(|(manager, fields)| {
        let lines: Vec<String> = fields.iter().map(|field| format!("- {field}")).collect();
        format!("{}:\n{}", manager.replacen("conflict with", "conflicts with", 1), lines.join("\n"))
    });
    blocks.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: &Status, code: u16, message: &str) {
        assert_eq!((status.code, status.message.as_str()), (code, message));
    }

    #[test]
    fn words_are_those_of_upstream() {
        check(&Status::not_found("", "pods", "x"), 404, r#"pods "x" not found"#);
        check(&Status::not_found("apps", "deployments", "x"), 404, r#"deployments.apps "x" not found"#);
        check(&Status::already_exists("", "pods", "x"), 409, r#"pods "x" already exists"#);
        check(
            &Status::stale("apps", "deployments", "x"),
            409,
            "Operation cannot be fulfilled on deployments.apps \"x\": the object has been modified; please apply \
             your changes to the latest version and try again",
        );
        check(&Status::forbidden("", "pods", "", "because"), 403, "pods is forbidden: because");
        let cause = Cause::not_supported("spec.type", &json!("Foo"), &["A", "B"]);
        check(
            &Status::invalid("", "Service", "s", vec![cause]),
            422,
            r#"Service "s" is invalid: spec.type: Unsupported value: "Foo": supported values: "A", "B""#,
        );
        let causes = vec![Cause::required("a", ""), Cause::invalid("b", &json!(3), "must be 4")];
        check(
            &Status::invalid("apps", "Deployment", "d", causes),
            422,
            r#"Deployment.apps "d" is invalid: [a: Required value, b: Invalid value: 3: must be 4]"#,
        );
    }

    #[test]
    fn encodes_details_and_causes() {
        let value = Status::invalid("", "Pod", "p", vec![Cause::required("spec.containers", "")]).to_value();
        assert_eq!(value["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(value["details"]["kind"], "Pod");
        assert_eq!(value["code"], 422);
        assert_eq!(value["status"], "Failure");
        assert_eq!(Status::unauthorized().to_value().get("details"), None);
    }

    #[test]
    fn groups_apply_conflicts_by_manager() {
        let one = |field: &str| Cause {
            kind: CauseType::FieldManagerConflict,
            field: field.into(),
            message: "conflict with \"a\" using v1".into(),
        };
        check(
            &Status::apply_conflict(vec![one(".x")]),
            409,
            "Apply failed with 1 conflict: conflict with \"a\" using v1: .x",
        );
        check(
            &Status::apply_conflict(vec![one(".x"), one(".y")]),
            409,
            "Apply failed with 2 conflicts: conflicts with \"a\" using v1:\n- .x\n- .y",
        );
    }
}
