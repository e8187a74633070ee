//! Typed values as trees: the set of an intent's fields, merging by the schema, and pruning.
//!
//! A leaf is a scalar, an atomic list, map or struct, or a value of no known type that is no map.

use std::collections::{BTreeSet, HashMap, HashSet};

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

/// The path element of a keyed list's item. A missing or empty `protocol` is TCP, as it will be stored.
pub(super) fn item_element(keys: &[&'static str], item: &Value) -> Result<String, &'static str> {
    let mut map = Map::new();
    for key in keys {
        match item.get(*key) {
            None | Some(Value::Null) if *key != "protocol" => continue,
            Some(value) if *key != "protocol" || value.as_str().is_some_and(|text| !text.is_empty()) => {
                map.insert((*key).into(), value.clone())
            }
            _ => map.insert((*key).into(), "TCP".into()),
        };
    }
    if map.is_empty() { Err(keys.first().copied().unwrap_or("name")) } else { Ok(keyed(&map)) }
}

/// The path element of an item that is stored already: one that lost its only key to the normal form had the empty text there.
pub(super) fn stored_element(keys: &[&'static str], item: &Value) -> String {
    item_element(keys, item).unwrap_or_else(|key| keyed(&Map::from_iter([(key.to_owned(), "".into())])))
}

/// Whether upstream's schema has a default for the key: the name of a local reference is empty then.
fn has_default_key(of: Option<&Type>) -> bool {
    of.is_some_and(|of| of.short_name() == "LocalObjectReference")
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
                // As upstream, an empty list of items is nothing to own.
                if child.is_empty() {
                    set.children.remove(&field(name));
                }
            }
        }
        (Shape::Set, Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                if item.is_null() {
                    return Err(Error::NullItem { path: path.into(), index });
                }
                set.children.entry(valued(item)).or_default().member = true;
            }
        }
        (Shape::Keyed(keys, of), Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                if item.is_null() {
                    return Err(Error::NullItem { path: path.into(), index });
                }
                let element = match item_element(keys, item) {
                    Err(key) if !has_default_key(of) => {
                        return Err(Error::MissingKey { path: path.into(), index, key: key.into() });
                    }
                    _ => stored_element(keys, item),
                };
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
            let element = |item: &Value| stored_element(keys, item);
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
    let shared: HashSet<&str> = wanted.iter().map(String::as_str).collect();
    let live: Vec<(String, &Value)> = live.iter().map(|item| (element(item), item)).collect();
    let mut places: HashMap<&str, &Value> = HashMap::with_capacity(live.len());
    for (name, item) in &live {
        places.entry(name).or_insert(item);
    }
    let mut merged = Vec::with_capacity(live.len() + intent.len());
    let mut rest = live.iter().peekable();
    for (item, name) in intent.iter().zip(&wanted) {
        let same = places.get(name.as_str()).copied();
        while let Some((next, kept)) = rest.next_if(|(next, _)| next != name) {
            if !shared.contains(next.as_str()) {
                merged.push((*kept).clone());
            } else if same.is_none() {
                // A new item stands before the shared one that follows in live.
                break;
            }
        }
        merged.push(merge(same, item));
    }
    merged.extend(rest.filter(|(next, _)| !shared.contains(next.as_str())).map(|(_, kept)| (*kept).clone()));
    merged
}

/// Takes out of `value` what `gone` names, unless `owned` holds something at or below it. A struct's field of which nobody owns
/// anything any more goes with everything below it: the defaults that came with it mean nothing without it.
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
                let is_field = of.is_some_and(|of| of.field(name).is_some());
                if (below.member || is_field) && still.is_none() {
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
            let element = stored_element(keys, item);
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
