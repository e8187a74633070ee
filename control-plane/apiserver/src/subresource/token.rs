//! /token: a new token for a service account, bound to what the request names.

use control_plane_api::{Cause, Object, Status, object::rfc3339};
use http::{Request, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    authn::token::{Bound, Lookup as _, Request as TokenRequest},
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
    let expires: Timestamp = call.now + SignedDuration::from_secs(seconds);
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

type Binding = (Option<Bound>, Option<(String, String)>);

/// What the token is bound to, checked to be there; for a pod also its node.
fn bound(call: &Call, review: &Object, account: &Object) -> Outcome<Binding> {
    let text = |field: &str| review.str_at(&["spec", "boundObjectRef", field]).unwrap_or("").to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    if kind.is_empty() && name.is_empty() {
        return Ok((None, None));
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
        // A kubelet gets tokens only for pods on its own node.
        if let Some(kubelet) = call.user.node_name()
            && kubelet != name
        {
            return Err(
                Status::forbidden("", "serviceaccounts", account.name(), "the pod is bound to another node").into()
            );
        }
    } else if call.user.node_name().is_some() {
        return Err(Status::forbidden(
            "",
            "serviceaccounts",
            account.name(),
            "node requested token not bound to a pod",
        )
        .into());
    }
    Ok((Some(Bound { claim, name, uid: found }), node))
}
