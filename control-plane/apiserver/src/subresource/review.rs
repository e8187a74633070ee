//! Objects that are answered and never stored: token and access reviews, and bindings made as objects.

use control_plane_api::{Cause, Object, Status, selector::FieldSelector};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::binding;
use crate::{
    authn::{User, token::Verified},
    authz::{Attributes, Decision, Target},
    body::Body,
    status::Outcome,
    verb::{Call, respond},
};

pub(crate) async fn serve(mut call: Call, mut object: Object) -> Outcome<Response<Body>> {
    let name = call.row.resource;
    match name {
        "bindings" => {
            object.name().clone_into(&mut call.path.name);
            call.row = control_plane_api::row("", "v1", "pods").ok_or_else(|| Status::internal("no pods"))?;
            return binding::bind(call, object).await;
        }
        "tokenreviews" => token_review(&call, &mut object)?,
        "selfsubjectreviews" => {
            object.set(&["status", "userInfo"], user_value(&call.user));
        }
        "selfsubjectaccessreviews" => {
            let decision = decide(&call, &call.user, &object)?;
            set_decision(&mut object, &decision);
        }
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = subject(&object)?;
            if name == "localsubjectaccessreviews" {
                let namespace = object.str_at(&["spec", "resourceAttributes", "namespace"]).unwrap_or("");
                if namespace != call.path.namespace {
                    let cause = Cause::invalid_str(
                        "spec.resourceAttributes.namespace",
                        namespace,
                        "must match metadata.namespace",
                    );
                    return Err(Status::invalid(call.row.group, call.row.kind, "", vec![cause]).into());
                }
            }
            let decision = decide(&call, &user, &object)?;
            set_decision(&mut object, &decision);
        }
        "selfsubjectrulesreviews" => rules(&call, &mut object)?,
        _ => return Err(call.not_allowed()),
    }
    object.metadata_mut();
    respond::object(&call, StatusCode::CREATED, &object)
}

fn user_value(user: &User) -> Value {
    let mut out = Map::new();
    out.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        out.insert("uid".into(), user.uid.as_str().into());
    }
    out.insert("groups".into(), json!(user.groups));
    if !user.extra.is_empty() {
        out.insert("extra".into(), json!(user.extra));
    }
    Value::Object(out)
}

fn token_review(call: &Call, object: &mut Object) -> Outcome<()> {
    let token = object.str_at(&["spec", "token"]).unwrap_or("").to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication").into());
    }
    let mut audiences: Vec<String> =
        object.list_at(&["spec", "audiences"]).iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.clone_from(&call.kernel.tokens.audiences);
    }
    let verified = call.kernel.tokens.verify(&token, &audiences, &*call.kernel.cache, call.now);
    let status = match verified {
        Ok(Verified { user, audiences }) => {
            json!({"authenticated": true, "user": user_value(&user), "audiences": audiences})
        }
        Err(reason) => {
            tracing::debug!(%reason, "a reviewed token was refused");
            json!({"error": "invalid bearer token", "user": {}})
        }
    };
    object.set(&["status"], status);
    Ok(())
}

fn subject(object: &Object) -> Outcome<User> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let name = object.str_at(&["spec", "user"]).unwrap_or("").to_owned();
    let groups = object.at(&["spec", "groups"]).map(texts).unwrap_or_default();
    if name.is_empty() && groups.is_empty() {
        let cause = Cause::required("spec.user", "at least one of user or group must be specified");
        return Err(Status::invalid("authorization.k8s.io", object.kind(), "", vec![cause]).into());
    }
    let extra = object.at(&["spec", "extra"]).and_then(Value::as_object).into_iter().flatten();
    Ok(User {
        name,
        uid: object.str_at(&["spec", "uid"]).unwrap_or("").to_owned(),
        groups,
        extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
    })
}

fn decide(call: &Call, user: &User, object: &Object) -> Outcome<Decision> {
    let resource = object.at(&["spec", "resourceAttributes"]).filter(|value| !value.is_null());
    let path = object.at(&["spec", "nonResourceAttributes"]).filter(|value| !value.is_null());
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let attributes = match (resource, path) {
        (Some(value), None) => Attributes {
            fields: reviewed_fields(value),
            verb: text(value, "verb"),
            target: Target::Resource {
                group: text(value, "group"),
                resource: text(value, "resource"),
                subresource: text(value, "subresource"),
                namespace: text(value, "namespace"),
                name: text(value, "name"),
            },
        },
        (None, Some(value)) => Attributes {
            verb: text(value, "verb"),
            target: Target::Path(text(value, "path")),
            fields: FieldSelector::default(),
        },
        _ => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let cause = Cause::invalid("spec.resourceAttributes", &Value::Null, why);
            return Err(Status::invalid("authorization.k8s.io", object.kind(), "", vec![cause]).into());
        }
    };
    Ok(call.kernel.authorizer.decide(user, &attributes))
}

/// The field selector of a review. A requirement that is no equality narrows nothing here, and what does not parse neither.
fn reviewed_fields(attributes: &Value) -> FieldSelector {
    let Some(selector) = attributes.get("fieldSelector") else { return FieldSelector::default() };
    let raw = selector.get("rawSelector").and_then(Value::as_str).unwrap_or("").to_owned();
    let requirements = selector.get("requirements").and_then(Value::as_array).into_iter().flatten();
    let terms = requirements.filter_map(|one| {
        let values = one.get("values")?.as_array()?;
        let (key, operator) = (one.get("key")?.as_str()?, one.get("operator")?.as_str()?);
        match (operator, &values[..]) {
            ("In", [Value::String(value)]) => Some(crate::fields::term(key, value)),
            _ => None,
        }
    });
    let text = std::iter::once(raw).chain(terms).filter(|term| !term.is_empty()).collect::<Vec<_>>().join(",");
    FieldSelector::parse(&text).unwrap_or_default()
}

fn set_decision(object: &mut Object, decision: &Decision) {
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.as_str().into();
    }
    object.set(&["status"], status);
}

fn rules(call: &Call, object: &mut Object) -> Outcome<()> {
    let namespace = object.str_at(&["spec", "namespace"]).unwrap_or("").to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request").into());
    }
    let mut resources = Vec::new();
    let mut paths = Vec::new();
    if call.user.in_group(crate::authn::MASTERS) {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    let index = call.kernel.authorizer.rbac().index();
    for rule in index.rules_for(&call.user, &namespace) {
        if rule.non_resource_urls.is_empty() {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                value["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(value);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let incomplete = call.user.node_name().is_some();
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete});
    if incomplete {
        status["evaluationError"] = "the node authorizer does not list its rules".into();
    }
    object.set(&["status"], status);
    Ok(())
}
