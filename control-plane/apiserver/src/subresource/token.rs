//! /token: a new token for a service account, bound to what the request names.

use control_plane_api::{Cause, Object, Status, object::rfc3339};
use http::{Request, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    authn::token::{Bound, Lookup as _, Request as TokenRequest},
    authz::Attributes,
    body::Body,
    status::Outcome,
    verb::{Call, decode, respond},
};

const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

pub(super) async fn serve(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    let body = decode::Sent::read(request).await?;
    let mut review = decode::object_of(&mut call, &body, ("authentication.k8s.io", "v1", "TokenRequest"))?;
    call.path.subresource.clear();
    let account = call.read().await?.object();
    let seconds = review.i64_at(&["spec", "expirationSeconds"]).unwrap_or(SECONDS_DEFAULT);
    let invalid = |why: &str| {
        let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), why);
        Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause])
    };
    if seconds < SECONDS_MIN {
        return Err(invalid("may not specify a duration less than 10 minutes").into());
    }
    if seconds > SECONDS_MAX {
        return Err(invalid("may not specify a duration larger than 2^32 seconds").into());
    }
    let tokens = &call.kernel.tokens;
    let mut audiences: Vec<String> =
        review.list_at(&["spec", "audiences"]).iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.extend(tokens.audiences.iter().take(1).cloned());
    }
    let (bound, node) = bound(&call, &review, &account)?;
    let request = TokenRequest {
        namespace: account.namespace().to_owned(),
        account: account.name().to_owned(),
        account_uid: account.uid().to_owned(),
        audiences: audiences.clone(),
        seconds,
        bound,
        node,
    };
    let token = tokens
        .key
        .sign(&tokens.claims(&request, call.now))
        .map_err(|error| Status::internal(format!("sign the token: {error}")))?;
    let expires: Timestamp = call.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    for field in ["name", "namespace"] {
        if let Some(value) = account.at(&["metadata", field]) {
            review.set(&["metadata", field], value.clone());
        }
    }
    review.set(&["metadata", "creationTimestamp"], rfc3339(call.now));
    review.set(&["spec", "audiences"], json!(audiences));
    review.set(&["spec", "expirationSeconds"], seconds);
    review.set(&["status"], json!({"token": token, "expirationTimestamp": rfc3339(expires)}));
    respond::object(&call, StatusCode::CREATED, &review)
}

/// A kubelet asks for audiences that the pod names, or that it was granted by the verb `request-serviceaccounts-token-audience`: a
/// token for anybody else is of no use to the pod (upstream's ServiceAccountNodeAudienceRestriction).
fn audiences(call: &Call, review: &Object, pod: &Object, account: &Object) -> Outcome<()> {
    let listed: Vec<&str> = review.list_at(&["spec", "audiences"]).iter().filter_map(Value::as_str).collect();
    // None is the server's own.
    let wanted = if listed.is_empty() { vec![""] } else { listed };
    let named = named_audiences(call, pod);
    for audience in wanted.into_iter().filter(|audience| !named.iter().any(|one| one == audience)) {
        let verb = "request-serviceaccounts-token-audience";
        let asked = Attributes::resource(verb, "", audience, account.namespace(), account.name());
        if !call.kernel.authorizer.decide(&call.user, &asked).allowed {
            let why = format!("audience {audience:?} not found in pod spec volume");
            return Err(Status::forbidden("", "serviceaccounts", account.name(), &why).into());
        }
    }
    Ok(())
}

/// The audiences of a pod's projected tokens, and of those that the CSI drivers of its volumes ask for.
fn named_audiences(call: &Call, pod: &Object) -> Vec<String> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("").to_owned();
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut found = Vec::new();
    for volume in pod.list_at(&["spec", "volumes"]) {
        for source in list(volume.get("projected").and_then(|projected| projected.get("sources"))) {
            if let Some(token) = source.get("serviceAccountToken").filter(|token| !token.is_null()) {
                found.push(text(token.get("audience")));
            }
        }
        let Some(driver) = volume.get("csi").map(|csi| text(csi.get("driver"))) else { continue };
        let driver = call.kernel.cache.of("storage.k8s.io", "csidrivers").and_then(|all| all.get("", &driver));
        for request in driver.iter().flat_map(|driver| driver.object().list_at(&["spec", "tokenRequests"]).to_vec()) {
            found.push(text(request.get("audience")));
        }
    }
    found
}

fn unbound(account: &Object) -> Status {
    Status::forbidden("", "serviceaccounts", account.name(), "node requested token not bound to a pod")
}

type Binding = (Option<Bound>, Option<(String, String)>);

/// What the token is bound to, checked to be there; for a pod also its node.
fn bound(call: &Call, review: &Object, account: &Object) -> Outcome<Binding> {
    let text = |field: &str| review.str_at(&["spec", "boundObjectRef", field]).unwrap_or("").to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    if kind.is_empty() && name.is_empty() {
        return match call.user.node_name() {
            Some(_) => Err(unbound(account).into()),
            None => Ok((None, None)),
        };
    }
    let (claim, resource) = match (kind.as_str(), text("apiVersion").as_str()) {
        ("Pod", "v1") => ("pod", "pods"),
        ("Secret", "v1") => ("secret", "secrets"),
        ("Node", "v1") => ("node", "nodes"),
        (kind, version) => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object of type {kind} in {version:?}",
                account.name()
            ))
            .into());
        }
    };
    let namespace = if claim == "node" { "" } else { account.namespace() };
    let cache = &call.kernel.cache;
    let found = cache.uid(resource, namespace, &name).ok_or_else(|| Status::not_found("", resource, &name))?;
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", resource, &name, &why).into());
    }
    let mut node = None;
    if claim == "pod"
        && let Some(pod) = cache.of("", "pods").and_then(|pods| pods.get(namespace, &name))
    {
        let pod = pod.object();
        let own = pod.str_at(&["spec", "serviceAccountName"]).unwrap_or("");
        if own != account.name() {
            let why = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                account.name()
            );
            return Err(Status::bad_request(why).into());
        }
        let name = pod.str_at(&["spec", "nodeName"]).unwrap_or("");
        if !name.is_empty() {
            node = Some((name.to_owned(), cache.uid("nodes", "", name).unwrap_or_default()));
        }
        if let Some(kubelet) = call.user.node_name() {
            let refuse = |why: &str| Status::forbidden("", "serviceaccounts", account.name(), why);
            // A kubelet gets tokens only for pods on its own node, and for this very pod.
            if kubelet != name {
                return Err(refuse("node requested token bound to a pod scheduled on a different node").into());
            }
            if uid.is_empty() {
                return Err(refuse("node requested token with a pod binding without a uid").into());
            }
            audiences(call, review, &pod, account)?;
        }
    } else if call.user.node_name().is_some() {
        return Err(unbound(account).into());
    }
    Ok((Some(Bound { claim, name, uid: found }), node))
}
