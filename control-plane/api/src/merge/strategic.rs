//! Strategic merge patch: a merge patch that knows which lists merge by which key.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`.
//! Both documents keep to the depth of [`crate::budget`] when they come here, and a merge is never deeper than the deeper one.
//! Invariants: an error gives nothing back; time goes with the size of both, however long their lists are.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{Field, Kind, Type};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a strategic merge patch must be a JSON object")]
    NotAnObject,
    #[error("map: {item} does not contain declared merge key: {key}")]
    MissingKey { item: String, key: String },
    #[error("invalid patch type \"{found}\" at {path}: use replace, merge or delete")]
    Directive { path: String, found: String },
    #[error("{path} must be a list in the patch and in the object")]
    NotAList { path: String },
    #[error("the order in patch list at {path} doesn't match $setElementOrder list")]
    Order { path: String },
    #[error("$retainKeys at {path} does not name {key}, which the patch sets")]
    RetainKeys { path: String, key: String },
}

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// The original with the patch merged in.
pub fn merge(of: &'static Type, original: Value, patch: &Value) -> Result<Value, Error> {
    let patch = patch.as_object().ok_or(Error::NotAnObject)?;
    let original = match original {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    Ok(merge_map(Some(of), original, patch, "")?.map_or(Value::Null, Value::Object))
}

/// The merged map; nothing when the patch deletes it.
fn merge_map(
    of: Option<&'static Type>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<Option<Map<String, Value>>, Error> {
    match patch.get(PATCH).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            let mut replaced = patch.clone();
            replaced.remove(PATCH);
            return Ok(Some(replaced));
        }
        Some(Some("delete")) => return Ok(None),
        Some(_) => return Err(Error::Directive { path: path.into(), found: patch[PATCH].to_string() }),
    }
    retain_keys(&mut original, patch, path)?;
    delete_primitives(&mut original, patch, path)?;
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        let path = join(path, name);
        let order = patch.get(&format!("{ORDER}{name}")).map(|order| order_list(order, &path)).transpose()?;
        merge_field(of.and_then(|of| of.field(name)), &mut original, name, value, order, &path)?;
    }
    // An order alone sorts what is there.
    for (directive, order) in patch {
        let Some(name) = directive.strip_prefix(ORDER).filter(|name| !patch.contains_key(*name)) else { continue };
        let order = order_list(order, &join(path, name))?;
        if let Some(Value::Array(list)) = original.get_mut(name) {
            let key = of.and_then(|of| of.field(name)).and_then(|field| field.patch_merge_key);
            let live = positions(list, key);
            *list = interleave(std::mem::take(list), &positions(order, key), &live, key);
        }
    }
    Ok(Some(original))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn order_list<'a>(order: &'a Value, path: &str) -> Result<&'a [Value], Error> {
    order.as_array().map(Vec::as_slice).ok_or_else(|| Error::NotAList { path: format!("{path} ({ORDER})") })
}

fn merge_field(
    field: Option<&'static Field>,
    original: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    order: Option<&[Value]>,
    path: &str,
) -> Result<(), Error> {
    let live = original.remove(name);
    let merged = match value {
        Value::Null => None,
        Value::Object(patch) => {
            let inner = field.and_then(|field| field.kind.as_struct());
            let live = match live {
                Some(Value::Object(map)) if !field.is_some_and(is_replaced) => map,
                _ => Map::new(),
            };
            merge_map(inner, live, patch, path)?.map(Value::Object)
        }
        Value::Array(patch) => Some(Value::Array(merge_list(field, live, patch, order, path)?)),
        scalar => Some(scalar.clone()),
    };
    if let Some(merged) = merged {
        original.insert(name.into(), merged);
    }
    Ok(())
}

/// Free-form values are replaced as a whole.
fn is_replaced(field: &Field) -> bool {
    matches!(field.kind, Kind::RawExtension | Kind::FieldsV1)
}

fn merge_list(
    field: Option<&'static Field>,
    live: Option<Value>,
    patch: &[Value],
    order: Option<&[Value]>,
    path: &str,
) -> Result<Vec<Value>, Error> {
    let Some(field) = field.filter(|field| field.patch_merge) else { return Ok(patch.to_vec()) };
    let key = field.patch_merge_key.filter(|_| !is_primitive(&field.kind));
    if let Some(order) = order {
        check_order(patch, order, key, path)?;
    }
    let live = match live {
        Some(Value::Array(list)) => list,
        // A value of another type gives way.
        _ => Vec::new(),
    };
    let (merged, live) = match key {
        Some(key) => match merge_keyed(field, key, live, patch, path)? {
            Keyed::Replaced(list) => return Ok(list),
            Keyed::Merged { merged, live } => (merged, live),
        },
        None => {
            let places = positions(&live, None);
            let mut seen = HashSet::new();
            let both = live.into_iter().chain(patch.iter().cloned());
            (both.filter(|item| seen.insert(item.clone())).collect(), places)
        }
    };
    let wanted = positions(order.unwrap_or(patch), key);
    Ok(interleave(merged, &wanted, &live, key))
}

enum Keyed {
    /// The patch's list stands alone.
    Replaced(Vec<Value>),
    /// What was there comes first, and the places that it had.
    Merged { merged: Vec<Value>, live: HashMap<Value, usize> },
}

fn merge_keyed(
    field: &'static Field,
    key: &'static str,
    mut merged: Vec<Value>,
    patch: &[Value],
    path: &str,
) -> Result<Keyed, Error> {
    let directive = |item: &Value| item.get(PATCH).map(|one| one.as_str().unwrap_or("?").to_owned());
    let is = |item: &Value, wanted: &str| directive(item).as_deref() == Some(wanted);
    if patch.iter().any(|item| is(item, "replace")) {
        return Ok(Keyed::Replaced(patch.iter().filter(|item| !is(item, "replace")).cloned().collect()));
    }
    let of = field.kind.innermost_struct();
    // Upstream takes the deletions out of the patch first.
    let gone = patch.iter().filter(|item| is(item, "delete")).map(|item| key_of(item, key));
    let gone: HashSet<&Value> = gone.collect::<Result<_, _>>()?;
    merged.retain(|one| one.get(key).is_none_or(|value| !gone.contains(value)));
    let live = positions(&merged, Some(key));
    let mut places = live.clone();
    for item in patch {
        match directive(item).as_deref() {
            Some("delete") => continue,
            None | Some("merge") => {}
            Some(found) => return Err(Error::Directive { path: path.into(), found: found.into() }),
        }
        let wanted = key_of(item, key)?;
        let Some(item_map) = item.as_object() else { return Err(Error::NotAList { path: path.into() }) };
        match places.get(wanted) {
            Some(place) => {
                let old = match std::mem::take(&mut merged[*place]) {
                    Value::Object(map) => map,
                    _ => Map::new(),
                };
                merged[*place] = merge_map(of, old, item_map, path)?.map_or(Value::Null, Value::Object);
            }
            None => {
                places.insert(wanted.clone(), merged.len());
                merged.extend(merge_map(of, Map::new(), item_map, path)?.map(Value::Object));
            }
        }
    }
    Ok(Keyed::Merged { merged, live })
}

/// What an item is known by: its merge key's value, or all of it.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> &'a Value {
    match key {
        Some(key) if item.is_object() => item.get(key).unwrap_or(&Value::Null),
        _ => item,
    }
}

/// Where each item stands first.
fn positions(list: &[Value], key: Option<&str>) -> HashMap<Value, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (place, item) in list.iter().enumerate() {
        places.entry(identity(item, key).clone()).or_insert(place);
    }
    places
}

/// Brings a merged list into upstream's order: what the patch names in the patch's order, the others in the order they had. One
/// of the others goes first only where it stood before the next named one; so what is new comes before what the patch leaves out.
fn interleave(
    merged: Vec<Value>,
    wanted: &HashMap<Value, usize>,
    live: &HashMap<Value, usize>,
    key: Option<&str>,
) -> Vec<Value> {
    let mut out = Vec::with_capacity(merged.len());
    let (mut named, mut others): (Vec<_>, Vec<_>) =
        merged.into_iter().partition(|item| wanted.contains_key(identity(item, key)));
    named.sort_by_key(|item| wanted.get(identity(item, key)));
    others.sort_by_key(|item| live.get(identity(item, key)));
    let place = |item: &Value| live.get(identity(item, key)).copied();
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(one), Some(other)) = (named.peek(), others.peek()) {
        let first = matches!((place(other), place(one)), (Some(other), Some(one)) if other < one);
        out.extend(if first { others.next() } else { named.next() });
    }
    out.extend(named.chain(others));
    out
}

/// The items of a patch must stand in the order that it asks for.
fn check_order(patch: &[Value], order: &[Value], key: Option<&str>, path: &str) -> Result<(), Error> {
    if order.is_empty() {
        return Ok(());
    }
    let mut asked = order.iter().map(|item| identity(item, key));
    let stays = |item: &&Value| item.get(PATCH).and_then(Value::as_str).is_none_or(|directive| directive == "merge");
    match patch.iter().filter(stays).all(|item| asked.any(|one| one == identity(item, key))) {
        true => Ok(()),
        false => Err(Error::Order { path: path.into() }),
    }
}

fn is_primitive(kind: &Kind) -> bool {
    kind.inner().is_some_and(|inner| inner.as_struct().is_none())
}

fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    item.get(key).ok_or_else(|| Error::MissingKey { item: item.to_string(), key: key.to_owned() })
}

fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str) -> Result<(), Error> {
    let Some(keys) = patch.get(RETAIN) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| Error::NotAList { path: format!("{path}.{RETAIN}") })?;
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let named = |name: &str| keys.contains(name);
    if let Some((key, _)) = patch.iter().find(|(key, value)| !key.starts_with('$') && !value.is_null() && !named(key)) {
        return Err(Error::RetainKeys { path: path.into(), key: key.clone() });
    }
    original.retain(|name, _| named(name));
    Ok(())
}

fn delete_primitives(original: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str) -> Result<(), Error> {
    for (directive, gone) in patch {
        let Some(name) = directive.strip_prefix(DELETE_PRIMITIVES) else { continue };
        let gone = gone.as_array().ok_or_else(|| Error::NotAList { path: format!("{path}.{directive}") })?;
        let gone: HashSet<&Value> = gone.iter().collect();
        if let Some(Value::Array(list)) = original.get_mut(name) {
            list.retain(|item| !gone.contains(item));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::find;
    use serde_json::json;

    #[track_caller]
    fn check(kind: &str, original: Value, patch: Value, expect: Value) {
        assert_eq!(merge(find(kind).unwrap(), original, &patch).unwrap(), expect);
    }

    #[test]
    fn merges_lists_by_key_and_replaces_the_others() {
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}], "tolerations": [{"key": "k"}]}),
            json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}], "tolerations": [{"key": "l"}]}),
            json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}, {"name": "b"}],
                "tolerations": [{"key": "l"}]}),
        );
    }

    #[test]
    fn obeys_directives() {
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "y"}}),
            json!({"containers": [{"name": "a", "$patch": "delete"}], "nodeSelector": {"$patch": "replace", "z": "w"}}),
            json!({"containers": [{"name": "b"}], "nodeSelector": {"z": "w"}}),
        );
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}]}),
        );
        check(
            "apps.v1.DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        );
        check(
            "meta.v1.ObjectMeta",
            json!({"finalizers": ["a", "b"], "labels": {"x": "y", "z": "w"}}),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null}}),
            json!({"finalizers": ["c", "b"], "labels": {"z": "w"}}),
        );
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "free"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                "containers": [{"name": "c"}]}),
            json!({"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}, {"name": "free"}]}),
        );
    }

    #[test]
    fn merges_into_nothing_without_keeping_nulls() {
        check(
            "apps.v1.Deployment",
            json!({}),
            json!({"spec": {"template": {"metadata": {"annotations": {"a": "b", "c": null}}}}}),
            json!({"spec": {"template": {"metadata": {"annotations": {"a": "b"}}}}}),
        );
    }

    #[test]
    fn refuses_what_it_cannot_merge() {
        let of = find("core.v1.PodSpec").unwrap();
        for patch in [
            json!({"containers": [{"image": "x"}]}),
            json!({"containers": [{"name": "a", "$patch": "sideways"}]}),
            json!({"nodeSelector": {"$patch": "sideways"}}),
            json!([1]),
            json!({"securityContext": {"$retainKeys": [], "runAsUser": 1}}),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                "containers": [{"name": "b"}, {"name": "a"}]}),
        ] {
            assert!(merge(of, json!({"containers": [{"name": "a"}]}), &patch).is_err(), "{patch}");
        }
    }

    #[test]
    fn new_items_stand_where_upstream_puts_them() {
        let containers =
            |names: &str| -> Value { names.chars().map(|name| json!({"name": name.to_string()})).collect() };
        let place = |live: &str, patch: &str, expect: &str| {
            let (live, patch) = (json!({"containers": containers(live)}), json!({"containers": containers(patch)}));
            check("core.v1.PodSpec", live, patch, json!({"containers": containers(expect)}));
        };
        place("ab", "c", "cab");
        place("ab", "bc", "abc");
        place("abc", "ca", "bca");
        place("abcd", "bxd", "abxcd");
        place("", "ba", "ba");
        place("ab", "", "ab");
        let order = |live: &str, order: &str, expect: &str| {
            let patch = json!({"$setElementOrder/containers": containers(order)});
            let (live, expect) = (json!({"containers": containers(live)}), json!({"containers": containers(expect)}));
            check("core.v1.PodSpec", live, patch, expect);
        };
        order("abc", "cb", "acb");
        order("abf", "ba", "baf");
    }

    #[test]
    fn long_lists_merge_in_a_moment() {
        const ITEMS: usize = 50_000;
        let list =
            |from: usize| -> Value { (from..from + ITEMS).map(|index| json!({"name": index.to_string()})).collect() };
        let names = |from: usize| -> Value { (from..from + ITEMS).map(|index| json!(index.to_string())).collect() };
        let original = json!({"containers": list(0)});
        let patch = json!({"$setElementOrder/containers": list(ITEMS / 2), "containers": list(ITEMS / 2)});
        let merged = merge(find("core.v1.PodSpec").unwrap(), original, &patch).unwrap();
        assert_eq!(merged["containers"].as_array().unwrap().len(), ITEMS * 3 / 2);
        let patch = json!({"finalizers": names(1), "$deleteFromPrimitiveList/finalizers": names(7)});
        let merged = merge(find("meta.v1.ObjectMeta").unwrap(), json!({"finalizers": names(0)}), &patch).unwrap();
        assert_eq!(merged["finalizers"].as_array().unwrap().len(), ITEMS + 1);
    }
}
