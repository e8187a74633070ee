//! What differs between two objects, as sets of fields.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::tree::{Shape, child_shape, stored_element};
use crate::merge::field_set::{FieldSet, field, valued};
use crate::schema::Type;

/// The fields that were added or modified, and those that went.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) changed: FieldSet,
    pub(super) removed: FieldSet,
}

/// An object of the kind as Go's zero value has it: the structs that are no pointers exist already.
pub(super) fn zero(of: &Type) -> Value {
    let structs = of.fields.iter().filter(|field| !field.pointer && field.numbers != [0]);
    let structs = structs.filter_map(|field| Some((field.name.to_owned(), zero(field.kind.as_struct()?))));
    Value::Object(structs.collect::<Map<_, _>>())
}

pub(super) fn compare(of: &'static Type, before: &Value, after: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    let Comparison { changed, removed } = &mut comparison;
    walk(Shape::Map(Some(of), None), Some(before), Some(after), changed, removed);
    comparison
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

fn walk(
    shape: Shape<'_>,
    before: Option<&Value>,
    after: Option<&Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    let (before, after) = (present(before), present(after));
    if before == after {
        return;
    }
    changed.member |= before.is_none();
    removed.member |= after.is_none();
    let fits = |value: Option<&Value>| match (shape, value) {
        (_, None) => true,
        (Shape::Map(..), Some(value)) => value.is_object(),
        (Shape::Set | Shape::Keyed(..), Some(value)) => value.is_array(),
        (Shape::Leaf, Some(_)) => false,
    };
    if !fits(before) || !fits(after) {
        changed.member |= before.is_some() && after.is_some();
        return;
    }
    for (element, shape, before, after) in children(shape, before, after) {
        let mut below = (FieldSet::default(), FieldSet::default());
        walk(shape, before, after, &mut below.0, &mut below.1);
        for (set, below) in [(&mut *changed, below.0), (&mut *removed, below.1)] {
            if !below.is_empty() {
                set.children.insert(element.clone(), below);
            }
        }
    }
}

type Child<'v, 'k> = (String, Shape<'k>, Option<&'v Value>, Option<&'v Value>);

/// The parts of two values of one shape, paired by their path element.
fn children<'v, 'k>(shape: Shape<'k>, before: Option<&'v Value>, after: Option<&'v Value>) -> Vec<Child<'v, 'k>> {
    match shape {
        Shape::Map(of, kind) => {
            let get = |side: Option<&'v Value>, name: &str| side.and_then(|map| map.get(name));
            let names = |side: Option<&'v Value>| side.and_then(Value::as_object).into_iter().flat_map(Map::keys);
            let only_before = names(before).filter(|name| get(after, name).is_none());
            let pair = |name: &'v String| {
                let (before, after) = (get(before, name), get(after, name));
                let sample = after.or(before).unwrap_or(&Value::Null);
                (field(name), child_shape(of, kind, name, sample), before, after)
            };
            names(after).chain(only_before).map(pair).collect()
        }
        Shape::Set => pair_items(before, after, valued, Shape::Leaf),
        Shape::Keyed(keys, of) => {
            let element = |item: &Value| stored_element(keys, item);
            pair_items(before, after, element, Shape::Map(of, None))
        }
        Shape::Leaf => Vec::new(),
    }
}

fn pair_items<'v, 'k>(
    before: Option<&'v Value>,
    after: Option<&'v Value>,
    element: impl Fn(&Value) -> String,
    shape: Shape<'k>,
) -> Vec<Child<'v, 'k>> {
    let list = |side: Option<&'v Value>| side.and_then(Value::as_array).into_iter().flatten();
    let mut pairs: Vec<Child<'v, 'k>> = list(after).map(|item| (element(item), shape, None, Some(item))).collect();
    let mut places: HashMap<String, usize> = HashMap::with_capacity(pairs.len());
    for (place, pair) in pairs.iter().enumerate() {
        places.entry(pair.0.clone()).or_insert(place);
    }
    for item in list(before) {
        let name = element(item);
        match places.get(&name).and_then(|place| pairs.get_mut(*place)) {
            Some(pair) => pair.2 = Some(item),
            None => {
                places.insert(name.clone(), pairs.len());
                pairs.push((name, shape, Some(item), None));
            }
        }
    }
    pairs
}
