//! Server-side apply: merging an intent into an object, and keeping `managedFields` over every kind of write.
//!
//! `apply` merges, prunes what the manager gave up, completes and finds conflicts; `update` notes what any other write changed.
//! A manager owns what it wrote, as it wrote it; whether something changed is judged in the normal form, with defaults.
//! Invariant: a field that another manager owns changes only by force, and then ownership moves with it.

mod compare;
mod managers;
mod tree;

use jiff::Timestamp;
use serde_json::Value;

use self::compare::Comparison;
pub use self::managers::{Entry, Managers, Operation};
use super::field_set::FieldSet;
use crate::schema::{Type, normal};
use crate::{Cause, CauseType, Object};

/// Who writes, where and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} fields are owned by others", .0.len())]
    Conflict(Vec<Cause>),
    #[error("{path}: duplicate entries for key {key}")]
    DuplicateKey { path: String, key: String },
    #[error("{path}: element {index}: associative list with keys has an element that omits key field {key:?}")]
    MissingKey { path: String, index: usize, key: String },
    #[error("{path}: element {index}: associative list may not have a null element")]
    NullItem { path: String, index: usize },
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
}

/// Fields that nobody owns: the identity of an object, and what the server writes.
const UNOWNED: &[&[&str]] = &[
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

fn strip(set: &mut FieldSet, ignored: &[&str]) {
    for path in UNOWNED {
        set.remove_tree(path);
    }
    set.remove_member(&["f:metadata"]);
    for name in ignored {
        set.remove_tree(&[&super::field_set::field(name)]);
    }
}

/// The object after `intent` was applied to `live`, managedFields included. `live` is an object of the kind without
/// anything else when it does not exist yet.
///
/// `ignored` names top-level fields that this request cannot set (`status`, say): they are neither merged nor owned. `complete`
/// fills in the kind's defaults.
pub fn apply(
    of: &'static Type,
    live: &Object,
    intent: &Object,
    writer: Writer<'_>,
    ignored: &[&str],
    force: bool,
    complete: impl Fn(&mut Object),
) -> Result<Object, Error> {
    if !intent.managed_fields().is_empty() {
        return Err(Error::ManagedFields);
    }
    let mut intent = intent.clone();
    for name in ignored {
        intent.as_map_mut().remove(*name);
    }
    let intent_value = intent.to_value();
    let mut live_object = live.clone();
    let mut managers = Managers::from_entries(live.managed_fields());
    live_object.set_managed_fields(Vec::new());
    let live_value = live_object.to_value();

    let mut set = tree::field_set(of, &intent_value)?;
    strip(&mut set, ignored);
    let merged = tree::merge(of, &live_value, &intent_value)?;
    let last = managers.replace_applied(writer, set);
    let merged = match last {
        Some(last) => tree::prune(of, merged, &last.difference(&managers.owned()), &managers.owned()),
        None => merged,
    };
    let mut result = Object::from_value(merged).unwrap_or_else(|_| live_object.clone());
    normal::normalize(of, &mut result);
    complete(&mut result);
    let mut changes = compare::compare(of, &live_value, &result.to_value());
    changes.strip(ignored);
    let conflicts = managers.conflicts(writer, &changes);
    if !conflicts.is_empty() && !force {
        return Err(Error::Conflict(conflicts));
    }
    managers.take_from_others(writer, &changes);
    result.set_managed_fields(managers.to_entries());
    Ok(result)
}

/// Notes in `new` what a write other than apply changed against `live`. For a creation, `live` is `None`.
pub fn update(of: &'static Type, live: Option<&Object>, new: &mut Object, writer: Writer<'_>, ignored: &[&str]) {
    let sent = new.managed_fields();
    let reset = matches!(sent, [Value::Object(only)] if only.is_empty());
    let entries = match live {
        _ if reset => Vec::new(),
        Some(live) if sent.is_empty() => live.managed_fields().to_vec(),
        _ => sent.to_vec(),
    };
    let mut managers = Managers::from_entries(&entries);
    new.set_managed_fields(Vec::new());
    let before = match live {
        Some(live) => {
            let mut live = live.clone();
            live.set_managed_fields(Vec::new());
            live.into_value()
        }
        None => compare::zero(of),
    };
    let mut changes = compare::compare(of, &before, &new.to_value());
    changes.strip(ignored);
    if !reset || live.is_none() {
        managers.note_update(writer, &changes);
    }
    new.set_managed_fields(managers.to_entries());
}

/// A conflict as a cause of the Status: who owns the field, and which.
fn conflict_causes(owner: &Entry, set: &FieldSet) -> Vec<Cause> {
    let message = format!("conflict with {}", owner.readable());
    let cause = |field| Cause { kind: CauseType::FieldManagerConflict, field, message: message.clone() };
    set.paths().into_iter().map(cause).collect()
}

impl Comparison {
    fn strip(&mut self, ignored: &[&str]) {
        strip(&mut self.changed, ignored);
        strip(&mut self.removed, ignored);
    }
}

#[cfg(test)]
mod tests;
