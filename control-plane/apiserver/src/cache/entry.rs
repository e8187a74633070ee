//! One cached object: its served bytes, and beside them only what selectors ask for. The parsed object is made when needed:
//! kept parsed, a pod would take five times its bytes.

use std::sync::Arc;

use bytes::Bytes;
use control_plane_api::{Object, Row};
use control_plane_store::{Entry, Revision};

use super::shelf::Keyed;
use crate::{fields, wire};

#[derive(Debug)]
pub(crate) struct Cached {
    key: Arc<str>,
    /// Where the name begins in the key.
    name_at: usize,
    pub(crate) revision: Revision,
    /// The JSON as served, with its resourceVersion.
    pub(crate) bytes: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the row's selectable fields, in the order of `fields::of`.
    fields: Box<[Box<str>]>,
    pub(crate) uid: Box<str>,
}

impl Keyed for Cached {
    fn key(&self) -> &str {
        &self.key
    }
}

impl Cached {
    /// `None` when the stored bytes are no object; such an entry is reported and left out.
    pub(super) fn new(row: &Row, entry: &Entry) -> Option<Self> {
        let object = match Object::from_slice(&entry.value) {
            Ok(object) => object,
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "stored bytes are no object; it is not served");
                return None;
            }
        };
        let labels = object.labels().map(|(key, value)| (key.into(), value.into())).collect();
        let fields = fields::of(row).iter().map(|field| fields::value(&object, field).into_boxed_str()).collect();
        let name_at = entry.key.rfind('/').map_or(0, |at| at + 1);
        Some(Self {
            key: Arc::clone(&entry.key),
            name_at,
            revision: entry.revision,
            bytes: wire::served(&entry.value, entry.revision),
            labels,
            fields,
            uid: object.uid().into(),
        })
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn name(&self) -> &str {
        &self.key[self.name_at..]
    }

    /// The namespace; for a cluster-wide resource the last part of its prefix, which nobody asks for.
    pub(crate) fn namespace(&self) -> &str {
        let before = &self.key[..self.name_at.saturating_sub(1)];
        before.rsplit('/').next().unwrap_or("")
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
    }

    pub(crate) fn field(&self, row: &Row, path: &str) -> String {
        match path {
            "metadata.name" => self.name().to_owned(),
            "metadata.namespace" if row.namespaced => self.namespace().to_owned(),
            path => {
                let index = fields::of(row).iter().position(|field| *field == path);
                index.and_then(|index| self.fields.get(index)).map(|value| value.to_string()).unwrap_or_default()
            }
        }
    }

    /// Parses the bytes. They were parsed once before, so they parse.
    pub(crate) fn object(&self) -> Object {
        Object::from_slice(&self.bytes).expect("cached bytes were parsed when they were cached")
    }

    /// Bytes held, roughly: what the history's limit counts.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + 256
    }
}
