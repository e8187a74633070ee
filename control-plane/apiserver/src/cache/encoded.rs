//! The bytes of one event in the forms that watchers asked for: made by the first, shared by the rest, gone with the last.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::collection::Kind;

/// Forms that are kept; further ones are made for each watcher.
const FORMS_MAX: usize = 16;

/// What an event's bytes depend on, beside the change itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) kind: Kind,
    /// Media type, shape and version, in a word.
    pub(crate) name: String,
}

#[derive(Debug, Default)]
pub(crate) struct Encoded {
    forms: Mutex<Vec<(Form, Bytes)>>,
}

impl Encoded {
    /// The bytes in this form, made at most once unless two come at the same moment.
    pub(crate) fn get_or_make<E>(&self, form: Form, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let find = |forms: &[(Form, Bytes)]| forms.iter().find(|(own, _)| *own == form).map(|(_, bytes)| bytes.clone());
        if let Some(found) = find(&self.forms.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        let made = make()?;
        let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&forms) {
            return Ok(found);
        }
        if forms.len() < FORMS_MAX {
            forms.push((form, made.clone()));
        }
        Ok(made)
    }
}
