//! /scale: the replica count of a workload as an `autoscaling/v1` Scale, read and written.

use control_plane_api::{Object, Status, scale};
use http::{Request, Response, StatusCode};

use crate::{
    body::Body,
    request::Verb,
    status::Outcome,
    verb::{Call, decode, respond, write, write::patch},
};

pub(super) async fn serve(mut call: Call, request: Request<Body>) -> Outcome<Response<Body>> {
    match call.verb {
        Verb::Get => {
            let cached = call.read().await?;
            respond::object(&call, StatusCode::OK, &scale::read(&call.in_version(&cached)))
        }
        Verb::Update => {
            let body = decode::Sent::read(request).await?;
            let sent = decode::object_of(&mut call, &body, ("autoscaling", "v1", "Scale"))?;
            let changed = write::change(&mut call, &mut |_, live| scaled(live, &sent)).await?;
            respond::object(&call, StatusCode::OK, &scale::read(&changed))
        }
        Verb::Patch => {
            let body = decode::Sent::read(request).await?;
            let patch = patch::parse(&mut call, &body)?;
            let produce = &mut |call: &mut Call, live: &Object| {
                let before = scale::read(live);
                let after = match &patch {
                    patch::Patch::Apply(intent) => {
                        let mut after = before.clone();
                        if let Some(replicas) = intent.at(&["spec", "replicas"]) {
                            after.set(&["spec", "replicas"], replicas.clone());
                        }
                        after
                    }
                    patch => patch::patched(call, &before, patch)?,
                };
                scaled(live, &after)
            };
            let changed = write::change(&mut call, produce).await?;
            respond::object(&call, StatusCode::OK, &scale::read(&changed))
        }
        _ => Err(call.not_allowed()),
    }
}

fn scaled(live: &Object, sent: &Object) -> Outcome<Object> {
    let mut next = live.clone();
    next.metadata_mut().remove("resourceVersion");
    scale::write(&mut next, sent).map_err(|causes| Status::invalid("autoscaling", "Scale", live.name(), causes))?;
    if !sent.uid().is_empty() {
        next.set_uid(sent.uid());
    }
    Ok(next)
}
