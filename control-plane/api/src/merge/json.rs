//! JSON patch (RFC 6902) and JSON merge patch (RFC 7396), within budgets. They know no schema.
//!
//! A patch is judged operation by operation: what one copies, moves or puts in is measured before it is made, so that neither
//! depth nor memory can double with each of them. Invariant: what comes out is no deeper than [`budget::DEPTH_MAX`].

use std::io;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::budget::{self, Exceeded};

/// A JSON patch as it was sent: at most [`budget::PATCH_OPERATIONS_MAX`] operations.
#[derive(Debug)]
pub struct Patch(Vec<PatchOperation>);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("error decoding the JSON patch: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("The allowed maximum operations in a JSON patch is {}, got {found}", budget::PATCH_OPERATIONS_MAX)]
    Operations { found: usize },
    #[error("operation {index} at {path:?}: {why}")]
    Failed { index: usize, path: String, why: String },
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {found}, exceeding the limit {}",
        budget::COPIED_BYTES_MAX
    )]
    Copied { found: usize },
    #[error("operation {index} at {path:?}: {source}")]
    Budget { index: usize, path: String, source: Exceeded },
    #[error("operation {index} at {path:?}: the patch visits more than {} values", budget::PATCH_STEPS_MAX)]
    Steps { index: usize, path: String },
}

impl Patch {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let patch: json_patch::Patch = serde_json::from_slice(bytes)?;
        match patch.0.len() {
            found if found > budget::PATCH_OPERATIONS_MAX => Err(Error::Operations { found }),
            _ => Ok(Self(patch.0)),
        }
    }

    /// Whether an operation is about this very path.
    pub fn names(&self, path: &str) -> bool {
        self.0.iter().any(|operation| operation.path().as_str() == path)
    }
}

/// The document after all operations.
pub fn apply(mut document: Value, patch: &Patch) -> Result<Value, Error> {
    let mut spent = Spent::default();
    for (index, operation) in patch.0.iter().enumerate() {
        spent.on(index, operation, &document)?;
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation)).map_err(|error| Error::Failed {
            index,
            path: operation.path().to_string(),
            why: error.kind.to_string(),
        })?;
    }
    Ok(document)
}

/// The document after a merge patch, whose depth was judged when it was read.
pub fn merge(mut document: Value, patch: &Value) -> Value {
    json_patch::merge(&mut document, patch);
    document
}

#[derive(Default)]
struct Spent {
    copied: usize,
    steps: usize,
}

impl Spent {
    /// Judges what an operation is about to do.
    fn on(&mut self, index: usize, operation: &PatchOperation, document: &Value) -> Result<(), Error> {
        let path = operation.path().as_str();
        let (value, target) = match operation {
            PatchOperation::Add(add) => (Some(&add.value), Some(path)),
            PatchOperation::Replace(replace) => (Some(&replace.value), Some(path)),
            PatchOperation::Copy(copy) => (document.pointer(copy.from.as_str()), Some(path)),
            PatchOperation::Move(from) => (document.pointer(from.from.as_str()), Some(path)),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => (None, None),
        };
        let from = match operation {
            PatchOperation::Move(from) => Some(from.from.as_str()),
            _ => None,
        };
        let mut steps = 1 + path.len();
        for path in [Some(path), from].into_iter().flatten() {
            steps += pushed_aside(document, path);
        }
        if let (Some(value), Some(target)) = (value, target) {
            // What lies at a path of n tokens is n levels deep already.
            let above = target.bytes().filter(|byte| *byte == b'/').count();
            let left = budget::DEPTH_MAX.saturating_sub(above);
            let measured = budget::measure(value, left, budget::PATCH_STEPS_MAX);
            let place = || target.to_owned();
            steps += measured.map_err(|source| Error::Budget { index, path: place(), source })?;
            if matches!(operation, PatchOperation::Copy(_)) {
                self.copy(value)?;
            }
        }
        self.steps = self.steps.saturating_add(steps);
        if self.steps > budget::PATCH_STEPS_MAX {
            return Err(Error::Steps { index, path: path.to_owned() });
        }
        Ok(())
    }

    fn copy(&mut self, value: &Value) -> Result<(), Error> {
        let mut counter = Counter { bytes: 0, max: budget::COPIED_BYTES_MAX.saturating_sub(self.copied) };
        // The only failure is the counter's own refusal.
        let complete = serde_json::to_writer(&mut counter, value).is_ok();
        self.copied = self.copied.saturating_add(counter.bytes);
        if complete { Ok(()) } else { Err(Error::Copied { found: self.copied }) }
    }
}

/// Items that a change at `path` moves by one place: those behind it in its list.
fn pushed_aside(document: &Value, path: &str) -> usize {
    let Some((parent, last)) = path.rsplit_once('/') else { return 0 };
    let Some(Value::Array(list)) = document.pointer(parent) else { return 0 };
    last.parse().map_or(0, |index| list.len().saturating_sub(index))
}

/// Counts what is written and refuses what is too much.
struct Counter {
    bytes: usize,
    max: usize,
}

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > self.max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(document: Value, patch: &Value) -> Result<Value, Error> {
        apply(document, &Patch::parse(patch.to_string().as_bytes())?)
    }

    #[test]
    fn applies_operations_in_order_or_none() {
        let patch = json!([{"op": "add", "path": "/a/-", "value": 2}, {"op": "copy", "from": "/a", "path": "/b"},
            {"op": "move", "from": "/b/0", "path": "/c"}, {"op": "remove", "path": "/a/0"},
            {"op": "test", "path": "/a", "value": [2]}, {"op": "replace", "path": "/a/0", "value": {"x": null}}]);
        assert_eq!(run(json!({"a": [1]}), &patch).unwrap(), json!({"a": [{"x": null}], "b": [2], "c": 1}));
        for bad in [
            json!([{"op": "remove", "path": "/none"}]),
            json!([{"op": "test", "path": "/a", "value": 2}]),
            json!([{"op": "add", "path": "/a/9", "value": 2}]),
            json!([{"op": "copy", "from": "/none", "path": "/b"}]),
            json!([{"op": "sideways", "path": "/a"}]),
            json!({"op": "remove", "path": "/a"}),
        ] {
            assert!(run(json!({"a": [1]}), &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn copies_cannot_double_without_end() {
        let doubling: Vec<Value> =
            (0..40).map(|index| json!({"op": "copy", "from": "/a", "path": format!("/a/{index}")})).collect();
        let error = run(json!({"a": {"x": "y"}}), &doubling.into()).unwrap_err();
        assert!(matches!(error, Error::Copied { .. } | Error::Budget { .. }), "{error}");
        let flat: Vec<Value> = (0..5).map(|_| json!({"op": "copy", "from": "/a", "path": "/b/-"})).collect();
        let error = run(json!({"a": "x".repeat(1 << 20), "b": []}), &flat.into()).unwrap_err();
        assert!(matches!(error, Error::Copied { .. }), "{error}");
    }

    #[test]
    fn nesting_stays_within_the_depth() {
        let value = (0..60).fold(json!([]), |value, _| json!([value]));
        let path = "/0".repeat(60);
        for operation in ["copy", "move"] {
            let patch = json!([{"op": "add", "path": "/x", "value": value.clone()},
                {"op": operation, "from": "/x", "path": format!("/a{path}/0")},
                {"op": "add", "path": format!("/a{path}{path}/0"), "value": [[[]]]}]);
            let error = run(json!({"a": value.clone()}), &patch).unwrap_err();
            assert!(matches!(error, Error::Budget { source: Exceeded::Depth, .. }), "{error}");
        }
    }

    #[test]
    fn the_work_of_a_patch_is_bounded() {
        let shift: Vec<Value> = (0..9000).map(|_| json!({"op": "add", "path": "/a/0", "value": 1})).collect();
        let error = run(json!({"a": vec![0; 100_000]}), &shift.into()).unwrap_err();
        assert!(matches!(error, Error::Steps { .. }), "{error}");
        let back_and_forth: Vec<Value> = (0..9000)
            .map(|index| if index % 2 == 0 { ("/a", "/b") } else { ("/b", "/a") })
            .map(|(from, path)| json!({"op": "move", "from": from, "path": path}))
            .collect();
        let error = run(json!({"a": vec![0; 100_000]}), &back_and_forth.into()).unwrap_err();
        assert!(matches!(error, Error::Steps { .. }), "{error}");
        let many = vec![json!({"op": "test", "path": "", "value": {}}); budget::PATCH_OPERATIONS_MAX + 1];
        assert!(matches!(run(json!({}), &many.into()), Err(Error::Operations { found: 10_001 })));
    }

    #[test]
    fn a_merge_patch_removes_by_null() {
        let merged =
            merge(json!({"a": {"b": 1, "c": 2}, "l": [1]}), &json!({"a": {"b": null}, "l": [null], "n": {"x": null}}));
        assert_eq!(merged, json!({"a": {"c": 2}, "l": [null], "n": {}}));
    }
}
