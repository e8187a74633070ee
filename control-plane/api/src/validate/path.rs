//! Paths that stay where they belong.

use super::Causes;
use super::field::Field;

fn has_backsteps(text: &str) -> bool {
    text.split('/').any(|part| part == "..")
}

/// No part of the path leads upwards.
pub(super) fn no_backsteps(field: &Field<'_, '_>, text: &str, causes: &mut Causes) {
    if has_backsteps(text) {
        field.invalid_as(&text.into(), "must not contain '..'", causes);
    }
}

/// A relative path that stays below where it starts.
pub(super) fn descending(field: &Field<'_, '_>, text: &str, causes: &mut Causes) {
    if text.starts_with('/') {
        field.invalid_as(&text.into(), "must be a relative path", causes);
    }
    no_backsteps(field, text, causes);
}

/// A descending path that is not one of the names the kubelet keeps for itself, which begin with two dots.
pub(super) fn not_reserved(field: &Field<'_, '_>, text: &str, causes: &mut Causes) {
    descending(field, text, causes);
    if text.starts_with("..") && !has_backsteps(text) {
        field.invalid_as(&text.into(), "must not start with '..'", causes);
    }
}
