//! Typed values as trees: the set of an intent's fields, merging by the schema, and pruning.
//!
//! A leaf is a scalar, an atomic list, map or struct, or a value of no known type that is no map.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Error;
use crate::merge::field_set::{FieldSet, field, keyed, valued};
use crate::schema::{Field, Kind, ListType, Type};

/// How a value is taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    Leaf,
    /// A struct with its type, or a map with its values' kind; nothing for a map of unknown type.
    Map(Option<&'static Type>, Option<&'a Kind>),
    Set,
    Keyed(&'a [&'static str], Option<&'static Type>),
}

/// The shape of a field's value. `None` is a field that the type does not have.
pub(super) fn shape<'a>(field: Option<&'a Field>, value: &Value) -> Shape<'a> {
    let Some(field) = field else {
        return if value.is_object() { Shape::Map(None, None) } else { Shape::Leaf };
    };
    match &field.kind {
        Kind::Struct(_) => match field.kind.as_struct() {
            Some(of) if !of.atomic && !field.map_atomic => Shape::Map(Some(of), None),
            _ => Shape::Leaf,
        },
        Kind::Map(inner) if !field.map_atomic => Shape::Map(None, Some(inner)),
        Kind::List(inner) => match field.list {
            ListType::Atomic => Shape::Leaf,
            ListType::Set => Shape::Set,
            ListType::Map => Shape::Keyed(&field.keys, inner.as_struct()),
        },
        _ => Shape::Leaf,
    }
}

/// The shape of a map's value.
pub(super) fn inner_shape<'a>(kind: Option<&'a Kind>, value: &Value) -> Shape<'a> {
    match kind {
        Some(kind) => match kind.as_struct() {
            Some(of) if !of.atomic => Shape::Map(Some(of), None),
            _ => Shape::Leaf,
        },
        None if value.is_object() => Shape::Map(None, None),
        None => Shape::Leaf,
    }
}

/// The shape of the value under `name` in a map of the given shape.
pub(super) fn child_shape<'a>(
    of: Option<&'static Type>,
    kind: Option<&'a Kind>,
    name: &str,
    value: &Value,
) -> Shape<'a> {
    match of {
        Some(of) => shape(of.field(name), value),
        None => inner_shape(kind, value),
    }
}

/// The path element of a keyed list's item. A missing `protocol` is TCP, the only key with a default upstream.
pub(super) fn item_element(keys: &[&'static str], item: &Value) -> Result<String, &'static str> {
    let mut map = Map::new();
    for key in keys {
        match item.get(*key) {
            Some(value) if !value.is_null() => map.insert((*key).into(), value.clone()),
            _ if *key == "protocol" => map.insert((*key).into(), "TCP".into()),
            _ => continue,
        };
    }
    if map.is_empty() { Err(keys.first().copied().unwrap_or("name")) } else { Ok(keyed(&map)) }
}

/// The fields that an intent names.
pub(super) fn field_set(of: &'static Type, value: &Value) -> Result<FieldSet, Error> {
    let mut set = FieldSet::default();
    collect(Shape::Map(Some(of), None), value, &mut set, "")?;
    set.member = false;
    Ok(set)
}

fn collect(shape: Shape<'_>, value: &Value, set: &mut FieldSet, path: &str) -> Result<(), Error> {
    match (shape, value) {
        (Shape::Map(of, kind), Value::Object(map)) => {
            set.member |= map.is_empty();
            for (name, value) in map {
                let child = set.children.entry(field(name)).or_default();
                collect(child_shape(of, kind, name, value), value, child, &format!("{path}.{name}"))?;
                // Keys of free maps are members themselves; fields of structs only through what is below.
                child.member |= of.is_none_or(|of| of.field(name).is_none());
            }
        }
        (Shape::Set, Value::Array(items)) => {
            for item in items {
                set.children.entry(valued(item)).or_default().member = true;
            }
        }
        (Shape::Keyed(keys, of), Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let element = item_element(keys, item).map_err(|key| Error::MissingKey {
                    path: path.into(),
                    index,
                    key: key.into(),
                })?;
                if !seen.insert(element.clone()) {
                    return Err(Error::DuplicateKey { path: path.into(), key: element });
                }
                let child = set.children.entry(element.clone()).or_default();
                collect(Shape::Map(of, None), item, child, &format!("{path}[{index}]"))?;
                child.member = true;
            }
        }
        _ => set.member = true,
    }
    Ok(())
}

/// `live` with `intent` merged in.
pub(super) fn merge(of: &'static Type, live: &Value, intent: &Value) -> Result<Value, Error> {
    Ok(merge_value(Shape::Map(Some(of), None), Some(live), intent))
}

fn merge_value(shape: Shape<'_>, live: Option<&Value>, intent: &Value) -> Value {
    match (shape, live, intent) {
        (Shape::Map(of, kind), live, Value::Object(intent)) => {
            let mut merged = live.and_then(Value::as_object).cloned().unwrap_or_default();
            for (name, value) in intent {
                let child = merge_value(child_shape(of, kind, name, value), merged.get(name), value);
                merged.insert(name.clone(), child);
            }
            Value::Object(merged)
        }
        (Shape::Set, Some(Value::Array(live)), Value::Array(intent)) => {
            let element = |item: &Value| valued(item);
            Value::Array(interleave(live, intent, element, |_, item| item.clone()))
        }
        (Shape::Keyed(keys, of), live, Value::Array(intent)) => {
            let live = live.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let element = |item: &Value| item_element(keys, item).unwrap_or_else(|_| valued(item));
            Value::Array(interleave(live, intent, element, |live, item| merge_value(Shape::Map(of, None), live, item)))
        }
        _ => intent.clone(),
    }
}

/// Both lists in one: the intent's order rules, and items that only `live` has stay before what followed them.
fn interleave(
    live: &[Value],
    intent: &[Value],
    element: impl Fn(&Value) -> String,
    merge: impl Fn(Option<&Value>, &Value) -> Value,
) -> Vec<Value> {
    let wanted: Vec<String> = intent.iter().map(&element).collect();
    let mut merged = Vec::with_capacity(live.len() + intent.len());
    let mut rest = live.iter().peekable();
    for (item, name) in intent.iter().zip(&wanted) {
        while let Some(next) = rest.next_if(|next| element(next) != *name) {
            let shared = wanted.contains(&element(next));
            if !shared {
                merged.push(next.clone());
            } else if !live.iter().any(|one| element(one) == *name) {
                // A new item stands before the shared one that follows in live.
                break;
            }
        }
        let same = live.iter().find(|one| element(one) == *name);
        merged.push(merge(same, item));
    }
    merged.extend(rest.filter(|next| !wanted.contains(&element(next))).cloned());
    // What was skipped above and is not in the intent was pushed; nothing of live may be missing.
    for one in live {
        let name = element(one);
        if !merged.iter().any(|item| element(item) == name) {
            merged.push(one.clone());
        }
    }
    merged
}

/// Takes out of `value` what `gone` names, unless `owned` holds something at or below it.
pub(super) fn prune(of: &'static Type, value: Value, gone: &FieldSet, owned: &FieldSet) -> Value {
    let mut value = value;
    prune_in(Shape::Map(Some(of), None), &mut value, gone, Some(owned));
    value
}

fn prune_in(shape: Shape<'_>, value: &mut Value, gone: &FieldSet, owned: Option<&FieldSet>) {
    match (shape, value) {
        (Shape::Map(of, kind), Value::Object(map)) => {
            for (element, below) in &gone.children {
                let Some(name) = element.strip_prefix("f:") else { continue };
                let Some(child) = map.get_mut(name) else { continue };
                let still = owned.and_then(|owned| owned.child(element)).filter(|set| !set.is_empty());
                if below.member && still.is_none() {
                    map.remove(name);
                    continue;
                }
                prune_in(child_shape(of, kind, name, child), child, below, still);
                let emptied = matches!(child, Value::Object(map) if map.is_empty())
                    || matches!(child, Value::Array(list) if list.is_empty());
                if emptied && still.is_none() {
                    map.remove(name);
                }
            }
        }
        (Shape::Set, Value::Array(items)) => {
            items.retain(|item| !gone.child(&valued(item)).is_some_and(|set| set.member));
        }
        (Shape::Keyed(keys, of), Value::Array(items)) => items.retain_mut(|item| {
            let Ok(element) = item_element(keys, item) else { return true };
            let Some(below) = gone.child(&element) else { return true };
            let still = owned.and_then(|owned| owned.child(&element)).filter(|set| !set.is_empty());
            if below.member && still.is_none() {
                return false;
            }
            prune_in(Shape::Map(of, None), item, below, still);
            true
        }),
        _ => {}
    }
}
