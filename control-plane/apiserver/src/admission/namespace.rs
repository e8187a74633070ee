//! Namespaces: nothing is created in one that is missing or ending; the system's own are not deleted.

use control_plane_api::{Cause, CauseType, Object, Reason, Status, status::Details};
use serde_json::{Value, json};

use super::Operation;
use crate::{status::Outcome, verb::Call};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn is_immortal(name: &str) -> bool {
    IMMORTAL.contains(&name)
}

pub(super) async fn must_live(call: &Call, object: &Object) -> Outcome<()> {
    if !call.row.namespaced || call.row.is_ephemeral() {
        return Ok(());
    }
    let name = object.namespace();
    let namespaces = call.kernel.cache.of("", "namespaces");
    // It may have been created, or begun to end, a moment ago.
    call.kernel.cache.catch_up().await?;
    let found = namespaces.and_then(|namespaces| namespaces.get("", name));
    let Some(found) = found else { return Err(Status::not_found("", "namespaces", name).into()) };
    if namespaces.is_some_and(|all| found.field(all.row(), "status.phase") == "Terminating") {
        let why = format!("unable to create new content in namespace {name} because it is being terminated");
        let mut status = Status::forbidden(call.row.group, call.row.resource, object.name(), &why);
        let cause = Cause {
            kind: CauseType::Forbidden,
            field: "metadata.namespace".into(),
            message: format!("namespace {name} is being terminated"),
        };
        status.reason = Reason::Forbidden;
        status.details.get_or_insert_with(Details::default).causes = vec![cause];
        return Err(status.into());
    }
    Ok(())
}

/// The label that selectors of namespaces count on, the finalizer that the namespace controller removes, and the phase.
pub(super) fn complete(object: &mut Object, operation: Operation) {
    let name = object.name().to_owned();
    object.set_label("kubernetes.io/metadata.name", &name);
    if operation == Operation::Create {
        let finalizers = object.list_at(&["spec", "finalizers"]);
        if !finalizers.iter().any(|one| one == "kubernetes") {
            let mut finalizers: Vec<Value> = finalizers.to_vec();
            finalizers.push(json!("kubernetes"));
            object.set(&["spec", "finalizers"], finalizers);
        }
    }
}

/// Replaces spec.finalizers: the finalize subresource.
pub(crate) fn finalize(live: &Object, sent: &Object) -> Object {
    let mut next = live.clone();
    match sent.at(&["spec", "finalizers"]) {
        Some(finalizers) => next.set(&["spec", "finalizers"], finalizers.clone()),
        None => {
            next.remove(&["spec", "finalizers"]);
        }
    }
    next
}
