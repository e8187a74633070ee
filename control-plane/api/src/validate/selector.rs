//! Label selectors: of pods, namespaces, claims.

use super::field::Field;
use super::{Causes, metadata};
use crate::name;

/// A selector that is sound when it is there.
pub(super) fn check(selector: &Field<'_, '_>, causes: &mut Causes) {
    if !selector.is_set() {
        return;
    }
    metadata::labels(&selector.key("matchLabels"), causes);
    for one in selector.key("matchExpressions").items() {
        let values = one.key("values");
        match one.key("operator").text() {
            "In" | "NotIn" if values.list().is_empty() => {
                values.required("must be specified when `operator` is 'In' or 'NotIn'", causes);
            }
            "Exists" | "DoesNotExist" if !values.list().is_empty() => {
                values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'", causes);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => one.key("operator").invalid("not a valid selector operator", causes),
        }
        one.key("key").must_be(name::qualified, causes);
        for value in values.items() {
            value.must_be(name::label_value, causes);
        }
    }
}

/// Whether a selector selects everything that there is.
pub(super) fn is_empty(selector: &Field<'_, '_>) -> bool {
    let labels = selector.key("matchLabels").value.as_object().is_none_or(serde_json::Map::is_empty);
    labels && selector.key("matchExpressions").list().is_empty()
}
