//! What was authorized, as a value: who may do what to which objects. Only [`Authorizer::admit`] makes one, and the verbs take nothing
//! else.
//!
//!     request line --admit--> Authorized<Objects> --verb::serve--> answer
//!                         `-> Authorized<Path>    --path::serve--> answer
//!
//! Invariant: selectors are parsed here, once; a name that was authorized is a requirement of the selection, whatever the query says.

use control_plane_api::{
    Reason, Row, Status, row,
    selector::{FieldSelector, Selector},
};

use super::{Attributes, Authorizer, upgrade_attributes};
use crate::{
    authn::User,
    fields,
    request::{Query, RequestInfo, ResourcePath, Verb},
    status::Outcome,
};

/// A permit: the user may do this, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Authorized<T> {
    user: User,
    asked: T,
}

impl<T> Authorized<T> {
    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    pub(crate) fn asked(&self) -> &T {
        &self.asked
    }
}

/// A verb on objects of a row.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    row: &'static Row,
    verb: Verb,
    path: ResourcePath,
    labels: Selector,
    fields: FieldSelector,
}

impl Objects {
    pub(crate) fn row(&self) -> &'static Row {
        self.row
    }

    pub(crate) fn verb(&self) -> Verb {
        self.verb
    }

    pub(crate) fn path(&self) -> &ResourcePath {
        &self.path
    }

    /// Labels and fields of the objects that may be served; the authorized name is one of the fields.
    pub(crate) fn selectors(&self) -> (&Selector, &FieldSelector) {
        (&self.labels, &self.fields)
    }
}

/// A path that is no resource.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    verb: Verb,
    path: String,
}

impl Path {
    pub(crate) fn verb(&self) -> Verb {
        self.verb
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// What a request was admitted to.
#[derive(Debug)]
pub(crate) enum Admitted {
    Objects(Box<Authorized<Objects>>),
    Path(Authorized<Path>),
}

impl Authorizer {
    /// Authorizes a request, then finds what it names. In this order: who may not ask is not told what exists.
    pub(crate) fn admit(&self, user: User, info: &RequestInfo, query: &Query) -> Outcome<Admitted> {
        let check = |attributes: &Attributes| {
            self.require(&user, attributes).map_err(|failure| {
                // An anonymous caller is asked for credentials instead of being told what exists.
                let anonymous = user.is_anonymous() && failure.0.reason == Reason::Forbidden;
                if anonymous { Status::unauthorized().into() } else { failure }
            })
        };
        check(&Attributes::of(info))?;
        if let Some(attributes) = upgrade_attributes(info) {
            check(&attributes)?;
        }
        match &info.resource {
            None => {
                let asked = Path { verb: info.verb, path: info.path.clone() };
                Ok(Admitted::Path(Authorized { user, asked }))
            }
            Some(path) => {
                let asked = objects(info, path, query)?;
                Ok(Admitted::Objects(Box::new(Authorized { user, asked })))
            }
        }
    }
}

/// Finds the row, and refuses what it does not offer.
fn objects(info: &RequestInfo, path: &ResourcePath, query: &Query) -> Outcome<Objects> {
    let row = row(&path.group, &path.version, &path.resource).ok_or_else(Status::no_such_path)?;
    // /api/v1/namespaces/d/nodes is nobody's path, and so is a named object of a namespaced kind without its namespace.
    let in_namespace = !path.namespace.is_empty();
    let misplaced = match row.namespaced {
        false => in_namespace && row.resource != "namespaces",
        true => !in_namespace && (!path.subresource.is_empty() || needs_namespace(info)),
    };
    if misplaced {
        return Err(Status::no_such_path().into());
    }
    if !path.subresource.is_empty() && row.subresource(&path.subresource).is_none() {
        return Err(Status::no_such_path().into());
    }
    let mut path = path.clone();
    if !row.namespaced {
        path.namespace.clear();
    }
    let selects = matches!(info.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
    let (labels, fields) = if selects { selectors(row, &path.name, query)? } else { Default::default() };
    Ok(Objects { row, verb: info.verb, path, labels, fields })
}

/// Verbs on one object cannot do without its namespace; a list by name can.
fn needs_namespace(info: &RequestInfo) -> bool {
    !matches!(info.verb, Verb::List | Verb::Watch | Verb::DeleteCollection | Verb::Create)
}

/// Both selectors of the query, the second with the authorized name.
fn selectors(row: &'static Row, name: &str, query: &Query) -> Outcome<(Selector, FieldSelector)> {
    let labels = match query.first("labelSelector") {
        Some(text) => Selector::parse(text)
            .map_err(|error| Status::bad_request(format!("unable to parse the label selector: {error}")))?,
        None => Selector::everything(),
    };
    let sent = fields::parse(row, query.first("fieldSelector").unwrap_or(""))?;
    if name.is_empty() {
        return Ok((labels, sent));
    }
    // As upstream: a selector beside a name must ask for this name.
    if !sent.is_empty() && sent.exact("metadata.name") != Some(name) {
        return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name").into());
    }
    Ok((labels, fields::with_name(&sent, name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorized_name_is_part_of_the_selection() {
        let secrets = row("", "v1", "secrets").unwrap();
        let check = |name: &str, selector: &str, expect: Result<&[&str], u16>| {
            let query = Query::parse(&format!("fieldSelector={selector}"));
            let found = selectors(secrets, name, &query).map(|(_, fields)| {
                let all = ["allowed", "other", "a,b"];
                let matching = all.into_iter().filter(|name| {
                    fields
                        .matches(|path| if path == "metadata.name" { (*name).to_owned() } else { "Opaque".to_owned() })
                });
                matching.collect::<Vec<_>>()
            });
            assert_eq!(found.as_deref().map_err(|failure| failure.0.code), expect, "{name} {selector}");
        };
        check("", "", Ok(&["allowed", "other", "a,b"]));
        check("", "metadata.name!%3Dother", Ok(&["allowed", "a,b"]));
        check("allowed", "", Ok(&["allowed"]));
        check("a,b", "", Ok(&["a,b"]));
        check("allowed", "metadata.name%3Dallowed", Ok(&["allowed"]));
        check("allowed", "metadata.name%3Dallowed,type%3DOpaque", Ok(&["allowed"]));
        check("allowed", "metadata.name%3Dallowed,metadata.name!%3Dallowed", Ok(&[]));
        check("allowed", "metadata.name!%3Dzzz", Err(400));
        check("allowed", "metadata.name%3Dother", Err(400));
        check("allowed", "metadata.namespace%3Dd", Err(400));
        check("allowed", "type%3DOpaque", Err(400));
        check("allowed", "spec.unknown%3Dx", Err(400));
        check("allowed", "nonsense", Err(400));
    }
}
