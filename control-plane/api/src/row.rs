//! One row per kind: its names, scope, verbs and subresources, and the doors to its behaviour.
//!
//! Rows are data (`row/table.rs`); behaviour (defaults, validation, strategy, printing) is found by group and kind.
//! Invariant: a (group, version, resource) names one row; every row of a family is stored as one version.

mod table;

use std::sync::LazyLock;

use crate::Object;

/// A kind as it is served in one version.
#[derive(Debug)]
pub struct Row {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// The plural that stands in paths: `pods`.
    pub resource: &'static str,
    pub kind: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Where and as what objects are stored; differs from group and version for an alias.
    pub storage: Storage,
    /// The name of the type in [`crate::schema`]: `core.v1.Pod`.
    pub schema: String,
}

/// The group and version that an object's bytes are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    pub group: &'static str,
    pub version: &'static str,
}

/// A path below an object: `status`, `scale`, `exec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    /// The group, version and kind of what is sent and answered.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

impl Row {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    pub fn storage_api_version(&self) -> String {
        api_version(self.storage.group, self.storage.version)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|one| one.name == name)
    }

    /// `/registry/<group or core>/<resource>/`, shared by all versions and aliases of a kind.
    pub fn storage_prefix(&self) -> String {
        let group = if self.storage.group.is_empty() { "core" } else { self.storage.group };
        format!("/registry/{group}/{}/", self.resource)
    }

    /// True for reviews and bindings: created, answered, never stored.
    pub fn is_ephemeral(&self) -> bool {
        !self.has_verb("get")
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// An empty object of this kind.
    pub fn object(&self) -> Object {
        Object::new(&self.api_version(), self.kind)
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits `apps/v1` into (`apps`, `v1`), and `v1` into (``, `v1`).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(table::build);

/// All rows, grouped by API group in discovery's order, preferred versions first.
pub fn rows() -> &'static [Row] {
    &ROWS
}

pub fn row(group: &str, version: &str, resource: &str) -> Option<&'static Row> {
    rows().iter().find(|row| row.group == group && row.version == version && row.resource == resource)
}

pub fn row_for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Row> {
    rows().iter().find(|row| row.group == group && row.version == version && row.kind == kind)
}

/// The groups with their versions, preferred first, in discovery's order.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows() {
        match groups.iter_mut().find(|(group, _)| *group == row.group) {
            Some((_, versions)) if versions.contains(&row.version) => {}
            Some((_, versions)) => versions.push(row.version),
            None => groups.push((row.group, vec![row.version])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_names_and_has_a_schema() {
        for one in rows() {
            assert!(std::ptr::eq(row(one.group, one.version, one.resource).unwrap(), one), "{one:?}");
            assert!(std::ptr::eq(row_for_kind(one.group, one.version, one.kind).unwrap(), one), "{one:?}");
            assert!(crate::schema::find(&one.schema).is_some(), "{}", one.schema);
            for sub in one.subresources.iter().filter(|sub| !sub.kind.ends_with("Options")) {
                assert!(crate::schema::find_kind(sub.group, sub.version, sub.kind).is_some(), "{sub:?}");
            }
        }
    }

    #[test]
    fn aliases_share_one_storage() {
        let events = [row("", "v1", "events").unwrap(), row("events.k8s.io", "v1", "events").unwrap()];
        assert_eq!(events[0].storage_prefix(), events[1].storage_prefix());
        assert_eq!(
            row("autoscaling", "v1", "horizontalpodautoscalers").unwrap().storage_api_version(),
            "autoscaling/v2"
        );
        assert_eq!(groups()[0], ("", vec!["v1"]));
        assert!(groups().contains(&("autoscaling", vec!["v2", "v1"])));
    }
}
