//! What one request may cost: the budgets of every way in and out, in one place.
//!
//! Whoever reads a body, merges a patch or writes an object asks here. Nothing here recurses: a value is judged before anything
//! that does is called with it. Invariant: what passed [`check`] can be read again by every reader of this project, wrapped in a
//! list, a table or a watch event.

use serde_json::{Map, Value};

/// Levels of lists and maps in an object, a patch, or what a patch leaves. `serde_json` reads 127; an object within a table
/// within a watch event lies five deeper.
pub const DEPTH_MAX: usize = 120;
/// Levels of a YAML document, whose reader takes up to 20 KiB of stack for each; JSON goes deeper, and kubectl sends JSON.
pub const YAML_DEPTH_MAX: usize = 64;
/// Values of an object, scalars too: three bytes of JSON become some hundred in memory, and more with their defaults.
pub const VALUES_MAX: usize = 250_000;
/// The largest body that is read; a larger one is 413. As upstream.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// The largest object that is stored, as etcd's default (`--max-request-bytes`); so that what is read can be sent back.
pub const OBJECT_BYTES_MAX: usize = 3 << 19;
/// Operations of a JSON patch; as upstream.
pub const PATCH_OPERATIONS_MAX: usize = 10_000;
/// Bytes that the `copy` operations of a JSON patch may add; as upstream.
pub const COPIED_BYTES_MAX: usize = 3 << 20;
/// Values that the operations of one JSON patch may visit or push aside: a second's work, and far from what anybody means.
pub const PATCH_STEPS_MAX: usize = 20_000_000;
/// Bytes of a selector in a query.
pub const SELECTOR_BYTES_MAX: usize = 32 << 10;
/// Requirements of a selector.
pub const SELECTOR_TERMS_MAX: usize = 1_000;
/// Aliases of one YAML document, and anchors that they may name.
pub const YAML_ALIASES_MAX: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("lists and maps nest deeper than {DEPTH_MAX} levels")]
    Depth,
    #[error("there are more than {VALUES_MAX} values")]
    Values,
}

/// Whether a value keeps to depth and number.
pub fn check(value: &Value) -> Result<(), Exceeded> {
    measure(value, DEPTH_MAX, VALUES_MAX).map(drop)
}

/// As [`check`], for the map of an object.
pub fn check_map(map: &Map<String, Value>) -> Result<(), Exceeded> {
    walk(vec![Level::Map(map.values())], 1, DEPTH_MAX, VALUES_MAX).map(drop)
}

/// How many values a value consists of, itself included; an error when it is deeper or more than asked.
pub fn measure(value: &Value, depth_max: usize, values_max: usize) -> Result<usize, Exceeded> {
    match Level::of(value) {
        Some(level) => walk(vec![level], 1, depth_max, values_max),
        None => Ok(1),
    }
}

enum Level<'a> {
    List(std::slice::Iter<'a, Value>),
    Map(serde_json::map::Values<'a>),
}

impl<'a> Level<'a> {
    fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(list) => Some(Self::List(list.iter())),
            Value::Object(map) => Some(Self::Map(map.values())),
            _ => None,
        }
    }

    fn next(&mut self) -> Option<&'a Value> {
        match self {
            Self::List(items) => items.next(),
            Self::Map(items) => items.next(),
        }
    }
}

fn walk(mut levels: Vec<Level<'_>>, mut count: usize, depth_max: usize, values_max: usize) -> Result<usize, Exceeded> {
    // One iterator a level, so that memory goes with the depth and not with the width.
    while let Some(level) = levels.last_mut() {
        let next = level.next();
        if levels.len() > depth_max {
            return Err(Exceeded::Depth);
        }
        let Some(value) = next else {
            levels.pop();
            continue;
        };
        count += 1;
        if count > values_max {
            return Err(Exceeded::Values);
        }
        levels.extend(Level::of(value));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(depth: usize) -> Value {
        (1..depth).fold(json!([]), |value, index| if index % 2 == 0 { json!([value]) } else { json!({"a": value}) })
    }

    #[test]
    fn counts_levels_and_values() {
        assert_eq!(check(&nested(DEPTH_MAX)), Ok(()));
        assert_eq!(check(&nested(DEPTH_MAX + 1)), Err(Exceeded::Depth));
        assert_eq!(measure(&json!({"a": [1, {"b": null}], "c": "x"}), 9, 9), Ok(6));
        assert_eq!(measure(&json!([1, 2, 3]), 9, 3), Err(Exceeded::Values));
        assert_eq!(measure(&json!(1), 0, 0), Ok(1));
        assert_eq!(check(&Value::Array(vec![Value::Null; VALUES_MAX])), Err(Exceeded::Values));
    }

    #[test]
    fn what_keeps_to_the_budget_is_read_again_wherever_it_is_wrapped() {
        let table = json!({"type": "ADDED", "object": {"rows": [{"object": nested(DEPTH_MAX)}]}});
        assert!(serde_json::from_slice::<Value>(table.to_string().as_bytes()).is_ok());
    }
}
