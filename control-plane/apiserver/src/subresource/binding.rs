//! /binding: the scheduler's decision. Sets the pod's node once; a bound pod stays where it is.

use control_plane_api::{Cause, Object, Status, object::rfc3339};
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    body::Body,
    status::Outcome,
    verb::{Call, decode, respond, write},
};

pub(super) async fn serve(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    let body = decode::Sent::read(request).await?;
    let binding = decode::object_of(&mut call, &body, ("", "v1", "Binding"))?;
    bind(call, binding).await
}

/// Binds the pod that the binding names: also for a Binding created as an object of its own.
pub(crate) async fn bind(mut call: Call, binding: Object) -> Outcome<Response<Body>> {
    if !binding.name().is_empty() && binding.name() != call.path.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object").into());
    }
    let target = binding.str_at(&["target", "name"]).unwrap_or("").to_owned();
    let kind = binding.str_at(&["target", "kind"]).unwrap_or("");
    if !matches!(kind, "" | "Node") {
        let cause = Cause::not_supported("target.kind", &json!(kind), &["Node", "<empty>"]);
        return Err(Status::invalid("", "Binding", &call.path.name, vec![cause]).into());
    }
    if target.is_empty() {
        return Err(Status::invalid("", "Binding", &call.path.name, vec![Cause::required("target.name", "")]).into());
    }
    let produce = &mut |call: &mut Call, live: &Object| {
        let refuse = |why: &str| Status::conflict("", "pods/binding", live.name(), why);
        if !binding.uid().is_empty() && binding.uid() != live.uid() {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                binding.uid(),
                live.uid()
            );
            return Err(Status::conflict("", "pods", live.name(), &why).into());
        }
        if live.is_deleting() {
            return Err(refuse(&format!("pod {} is being deleted, cannot be assigned to a host", live.name())).into());
        }
        let current = live.str_at(&["spec", "nodeName"]).unwrap_or("");
        if !current.is_empty() {
            return Err(refuse(&format!("pod {} is already assigned to node {current:?}", live.name())).into());
        }
        if !live.list_at(&["spec", "schedulingGates"]).is_empty() {
            return Err(refuse(&format!("pod {} has non-empty .spec.schedulingGates", live.name())).into());
        }
        let mut next = live.clone();
        next.set(&["spec", "nodeName"], target.as_str());
        for (key, value) in binding.annotations() {
            next.set_annotation(key, value);
        }
        set_scheduled(&mut next, &rfc3339(call.now));
        Ok(next)
    };
    write::change(&mut call, produce).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    respond::value(&call, StatusCode::CREATED, &status)
}

fn set_scheduled(pod: &mut Object, now: &str) {
    let mut conditions = pod.list_at(&["status", "conditions"]).to_vec();
    conditions.retain(|one| one.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    conditions
        .push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    pod.set(&["status", "conditions"], conditions);
}
