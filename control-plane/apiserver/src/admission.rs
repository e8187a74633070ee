//! Admission: what the server adds to an object, and what it refuses although RBAC allows it. One file per subject.
//!
//! Order of `mutate`: namespace must live -> pod completion (account, class, tolerations, priority, limits) -> node. Reads only the cache.

mod account;
pub(crate) mod inert;
mod limits;
pub(crate) mod namespace;
mod node;
mod pod;
mod rbac;
mod runtime_class;
mod security;
mod signing;

use control_plane_api::{Object, Row, Status};

use crate::{
    status::Outcome,
    verb::{Call, delete},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
}

fn is(row: &Row, group: &str, resource: &str) -> bool {
    row.group == group && row.resource == resource
}

/// Completes the object. `live` is there for updates.
pub(crate) async fn mutate(
    call: &mut Call,
    operation: Operation,
    subresource: &str,
    object: &mut Object,
    live: Option<&Object>,
) -> Outcome<()> {
    let row = call.row;
    if operation == Operation::Create {
        namespace::must_live(call, object).await?;
        if subresource.is_empty() {
            inert::warn(call);
        }
    }
    if is(row, "", "pods") {
        match operation {
            Operation::Create => {
                limits::complete(call, object)?;
                account::complete(call, object).await?;
                runtime_class::complete(call, object)?;
                pod::complete(call, object)?;
            }
            Operation::Update if subresource.is_empty() => pod::keep_on_update(object, live),
            Operation::Update => {}
        }
    }
    if is(row, "", "nodes") && operation == Operation::Create {
        node::complete(object);
    }
    if is(row, "", "namespaces") {
        namespace::complete(object, operation);
    }
    if is(row, "certificates.k8s.io", "certificatesigningrequests") {
        match operation {
            Operation::Create => signing::complete(object, &call.user),
            Operation::Update => signing::keep_on_update(object, live),
        }
    }
    Ok(())
}

/// Refuses what must not be stored.
pub(crate) async fn validate(
    call: &mut Call,
    operation: Operation,
    subresource: &str,
    object: &Object,
    live: Option<&Object>,
) -> Outcome<()> {
    let row = call.row;
    if let Some(node) = call.user.node_name() {
        node::restrict(call, node, operation, subresource, object, live)?;
    }
    if row.group == crate::authz::rbac::GROUP {
        rbac::no_escalation(call, object, live)?;
    }
    if is(row, "", "pods") && operation == Operation::Create {
        limits::check(call, object)?;
    }
    security::enforce(call, operation, subresource, object, live)?;
    Ok(())
}

/// Refuses deletions.
pub(crate) fn validate_delete(call: &Call, live: &Object) -> Outcome<()> {
    let row = call.row;
    if is(row, "", "namespaces") && namespace::is_immortal(live.name()) {
        let why = "this namespace may not be deleted";
        return Err(Status::forbidden("", "namespaces", live.name(), why).into());
    }
    if let Some(node) = call.user.node_name() {
        node::restrict_delete(call, node, live)?;
    }
    Ok(())
}

/// Whether this update is the end of a deletion that waited.
pub(crate) fn is_deletion_complete(row: &Row, live: &Object, next: &Object) -> bool {
    live.is_deleting() && delete::is_complete(row, next)
}
