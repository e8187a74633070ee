//! The entries of `managedFields`, decoded: who owns which fields.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::compare::Comparison;
use super::{Writer, conflict_causes};
use crate::Cause;
use crate::merge::field_set::FieldSet;
use crate::object::rfc3339;

/// More update entries than this are folded together, oldest first, as upstream does.
const UPDATE_ENTRIES_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// One entry of managedFields.
#[derive(Clone, Debug)]
pub struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<Timestamp>,
    pub set: FieldSet,
}

impl Entry {
    /// As a conflict names it: `"kubectl" using apps/v1 at 2026-01-02T03:04:05Z`.
    pub fn readable(&self) -> String {
        let mut text = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", Value::from(self.subresource.as_str())));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
            if let Some(time) = self.time {
                text.push_str(&format!(" at {}", rfc3339(time)));
            }
        }
        text
    }

    fn is_of(&self, writer: Writer<'_>, operation: Operation) -> bool {
        self.operation == operation
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && (operation == Operation::Apply || self.api_version == writer.api_version)
    }

    fn from_value(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            manager: text("manager"),
            operation: match text("operation").as_str() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time").parse().ok(),
            set: FieldSet::from_value(value.get("fieldsV1")?),
        })
    }

    fn to_value(&self) -> Value {
        let operation = if self.operation == Operation::Apply { "Apply" } else { "Update" };
        let mut out = json!({"manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.set.to_value()});
        if let Some(time) = self.time {
            out["time"] = rfc3339(time).into();
        }
        if !self.subresource.is_empty() {
            out["subresource"] = self.subresource.as_str().into();
        }
        out
    }
}

/// All entries of one object.
#[derive(Clone, Debug, Default)]
pub struct Managers(Vec<Entry>);

impl Managers {
    pub fn from_entries(entries: &[Value]) -> Self {
        Self(entries.iter().filter_map(Entry::from_value).collect())
    }

    /// Sorted as upstream: applies first, then by time and name. Entries that own nothing are gone.
    pub fn to_entries(&self) -> Vec<Value> {
        let mut entries: Vec<&Entry> = self.0.iter().filter(|entry| !entry.set.is_empty()).collect();
        entries.sort_by(|a, b| (a.operation, a.time, &a.manager).cmp(&(b.operation, b.time, &b.manager)));
        entries.into_iter().map(Entry::to_value).collect()
    }

    pub(super) fn owned(&self) -> FieldSet {
        let mut owned = FieldSet::default();
        for entry in &self.0 {
            owned.absorb(&entry.set);
        }
        owned
    }

    /// Puts the writer's new intent in place, and returns the one before.
    pub(super) fn replace_applied(&mut self, writer: Writer<'_>, set: FieldSet) -> Option<FieldSet> {
        let mine = self.0.iter_mut().find(|entry| entry.is_of(writer, Operation::Apply));
        let Some(entry) = mine else {
            self.0.push(new_entry(writer, Operation::Apply, set));
            return None;
        };
        if entry.set != set || entry.api_version != writer.api_version {
            entry.time = Some(writer.now);
        }
        entry.api_version = writer.api_version.to_owned();
        Some(std::mem::replace(&mut entry.set, set))
    }

    /// The fields of others that the changes touch.
    pub(super) fn conflicts(&self, writer: Writer<'_>, changes: &Comparison) -> Vec<Cause> {
        let others = self.0.iter().filter(|entry| !entry.is_of(writer, Operation::Apply));
        others.flat_map(|entry| conflict_causes(entry, &entry.set.intersection(&changes.changed))).collect()
    }

    pub(super) fn take_from_others(&mut self, writer: Writer<'_>, changes: &Comparison) {
        for entry in &mut self.0 {
            let kept = if entry.is_of(writer, Operation::Apply) {
                entry.set.clone()
            } else {
                entry.set.difference(&changes.changed).difference(&changes.removed)
            };
            entry.set = kept;
        }
    }

    pub(super) fn note_update(&mut self, writer: Writer<'_>, changes: &Comparison) {
        let Comparison { changed, removed } = changes;
        for entry in &mut self.0 {
            let mine = entry.is_of(writer, Operation::Update);
            let kept = entry.set.difference(removed);
            entry.set = if mine { kept } else { kept.difference(changed) };
        }
        if changed.is_empty() {
            return;
        }
        match self.0.iter_mut().find(|entry| entry.is_of(writer, Operation::Update)) {
            Some(entry) => {
                entry.set.absorb(changed);
                entry.time = Some(writer.now);
            }
            None => self.0.push(new_entry(writer, Operation::Update, changed.clone())),
        }
        self.fold_ancient();
    }

    fn fold_ancient(&mut self) {
        self.0.retain(|entry| !entry.set.is_empty());
        let updates = self.0.iter().filter(|entry| entry.operation == Operation::Update).count();
        if updates <= UPDATE_ENTRIES_MAX {
            return;
        }
        self.0.sort_by_key(|entry| (entry.operation, entry.time));
        let first = self.0.len() - updates;
        let old: Vec<Entry> = self.0.drain(first..=first + updates - UPDATE_ENTRIES_MAX).collect();
        let mut folded = old[old.len() - 1].clone();
        folded.manager = ANCIENT.into();
        for entry in &old {
            folded.set.absorb(&entry.set);
        }
        self.0.push(folded);
    }
}

fn new_entry(writer: Writer<'_>, operation: Operation, set: FieldSet) -> Entry {
    Entry {
        manager: writer.manager.to_owned(),
        operation,
        api_version: writer.api_version.to_owned(),
        subresource: writer.subresource.to_owned(),
        time: Some(writer.now),
        set,
    }
}
