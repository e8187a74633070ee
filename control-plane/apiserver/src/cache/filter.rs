//! Which objects of a collection a LIST or WATCH asks for.

use control_plane_api::{
    Row,
    selector::{FieldSelector, Selector},
};

use super::Cached;

#[derive(Clone, Debug)]
pub(crate) struct Filter {
    row: &'static Row,
    /// The storage prefix, with the namespace when one is asked for.
    prefix: String,
    labels: Selector,
    fields: FieldSelector,
}

impl Filter {
    /// Everything under a prefix.
    pub(crate) fn new(row: &'static Row, prefix: String, labels: Selector, fields: FieldSelector) -> Self {
        Self { row, prefix, labels, fields }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// True when the prefix alone decides.
    pub(crate) fn is_prefix_only(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, cached: &Cached) -> bool {
        cached.key().starts_with(&self.prefix)
            && self.labels.matches(|key| cached.label(key))
            && (self.fields.is_empty() || self.fields.matches(|path| cached.field(self.row, path)))
    }
}
