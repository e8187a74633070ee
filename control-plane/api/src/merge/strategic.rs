//! Strategic merge patch: a merge patch that knows which lists merge by which key.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`.
//! Invariant: the patch is judged wholly before the original is given back; an error changes nothing.

use std::cmp::Ordering;

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
pub fn merge(of: &'static Type, original: &Value, patch: &Value) -> Result<Value, Error> {
    let patch = patch.as_object().ok_or(Error::NotAnObject)?;
    let original = original.as_object().cloned().unwrap_or_default();
    Ok(merge_map(Some(of), original, patch, "")?.map_or(Value::Null, Value::Object))
}

/// The merged map; nothing when the patch deletes it.
fn merge_map(
    of: Option<&'static Type>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<Option<Map<String, Value>>, Error> {
    match patch.get(PATCH) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("replace") => {
                let mut replaced = patch.clone();
                replaced.remove(PATCH);
                return Ok(Some(replaced));
            }
            Some("delete") => return Ok(None),
            Some("merge") => {}
            _ => return Err(Error::Directive { path: path.into(), found: directive.to_string() }),
        },
    }
    retain_keys(&mut original, patch, path)?;
    delete_primitives(&mut original, patch, path)?;
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        merge_field(of, &mut original, name, value, &path)?;
    }
    for (name, order) in patch {
        let Some(name) = name.strip_prefix(ORDER) else { continue };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        set_order(of, &mut original, name, order, &path)?;
    }
    Ok(Some(original))
}

fn merge_field(
    of: Option<&'static Type>,
    original: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    path: &str,
) -> Result<(), Error> {
    let field = of.and_then(|of| of.field(name));
    match value {
        Value::Null => {
            original.remove(name);
        }
        Value::Object(patch) => {
            let inner = field.and_then(|field| field.kind.as_struct());
            let replace = field.is_some_and(is_replaced);
            let live = match original.get(name) {
                Some(Value::Object(map)) if !replace => map.clone(),
                _ => Map::new(),
            };
            match merge_map(inner, live, patch, path)? {
                Some(map) => original.insert(name.into(), Value::Object(map)),
                None => original.remove(name),
            };
        }
        Value::Array(patch) => {
            let merged = match field {
                Some(field) if field.patch_merge => {
                    let live = match original.get(name) {
                        None | Some(Value::Null) => &[][..],
                        Some(Value::Array(list)) => list,
                        Some(_) => return Err(Error::NotAList { path: path.into() }),
                    };
                    merge_list(field, live, patch, path)?
                }
                _ => patch.clone(),
            };
            original.insert(name.into(), Value::Array(merged));
        }
        scalar => {
            original.insert(name.into(), scalar.clone());
        }
    }
    Ok(())
}

/// Free-form values are replaced as a whole.
fn is_replaced(field: &Field) -> bool {
    matches!(field.kind, Kind::RawExtension | Kind::FieldsV1)
}

fn merge_list(field: &Field, live: &[Value], patch: &[Value], path: &str) -> Result<Vec<Value>, Error> {
    let Some(key) = field.patch_merge_key.filter(|_| !is_primitive(&field.kind)) else {
        return Ok(merge_primitives(live, patch));
    };
    let replace = |item: &&Value| item.get(PATCH).and_then(Value::as_str) == Some("replace");
    if patch.iter().any(|item| replace(&item)) {
        return Ok(patch.iter().filter(|item| !replace(item)).cloned().collect());
    }
    let of = field.kind.innermost_struct();
    let mut merged = live.to_vec();
    // Upstream takes the deletions out of the patch first.
    for item in patch.iter().filter(|item| item.get(PATCH).and_then(Value::as_str) == Some("delete")) {
        let wanted = key_of(item, key)?;
        merged.retain(|one| one.get(key) != Some(wanted));
    }
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or("?")) {
            Some("delete") => continue,
            None | Some("merge") => {}
            Some(found) => return Err(Error::Directive { path: path.into(), found: found.into() }),
        }
        let wanted = key_of(item, key)?;
        let Some(item_map) = item.as_object() else { return Err(Error::NotAList { path: path.into() }) };
        match merged.iter_mut().find(|one| one.get(key) == Some(wanted)) {
            Some(existing) => {
                let live = existing.as_object().cloned().unwrap_or_default();
                if let Some(map) = merge_map(of, live, item_map, path)? {
                    *existing = Value::Object(map);
                }
            }
            None => merged.extend(merge_map(of, Map::new(), item_map, path)?.map(Value::Object)),
        }
    }
    Ok(merged)
}

fn is_primitive(kind: &Kind) -> bool {
    kind.inner().is_some_and(|inner| inner.as_struct().is_none())
}

fn merge_primitives(live: &[Value], patch: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::with_capacity(live.len() + patch.len());
    for item in live.iter().chain(patch) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    merged
}

fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    item.get(key).ok_or_else(|| Error::MissingKey { item: item.to_string(), key: key.to_owned() })
}

fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str) -> Result<(), Error> {
    let Some(keys) = patch.get(RETAIN) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| Error::NotAList { path: format!("{path}.{RETAIN}") })?;
    let named = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
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
        if let Some(Value::Array(list)) = original.get_mut(name) {
            list.retain(|item| !gone.contains(item));
        }
    }
    Ok(())
}

/// Brings the merged list into the order that the patch asks for; items that it does not name keep their places among
/// their neighbours.
fn set_order(
    of: Option<&'static Type>,
    original: &mut Map<String, Value>,
    name: &str,
    order: &Value,
    path: &str,
) -> Result<(), Error> {
    let wrong = || Error::NotAList { path: format!("{path} ({ORDER})") };
    let order = order.as_array().ok_or_else(wrong)?;
    let key = of.and_then(|of| of.field(name)).and_then(|field| field.patch_merge_key);
    let Some(Value::Array(list)) = original.get_mut(name) else { return Ok(()) };
    let identity = |item: &Value| match key {
        Some(key) if item.is_object() => item.get(key).cloned().unwrap_or(Value::Null),
        _ => item.clone(),
    };
    let order: Vec<Value> = order.iter().map(&identity).collect();
    let place = |item: &Value| order.iter().position(|one| *one == identity(item));
    let (named, free): (Vec<_>, Vec<_>) =
        std::mem::take(list).into_iter().enumerate().partition(|(_, item)| place(item).is_some());
    let mut named = named;
    named.sort_by_key(|(_, item)| place(item));
    // A merge of two sorted runs: the named in the asked order, the others by where they stood.
    let (mut named, mut free) = (named.into_iter().peekable(), free.into_iter().peekable());
    while let (Some((named_at, _)), Some((free_at, _))) = (named.peek(), free.peek()) {
        let next = if free_at.cmp(named_at) == Ordering::Less { free.next() } else { named.next() };
        list.extend(next.map(|(_, item)| item));
    }
    list.extend(named.chain(free).map(|(_, item)| item));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::find;
    use serde_json::json;

    #[track_caller]
    fn check(kind: &str, original: Value, patch: Value, expect: Value) {
        assert_eq!(merge(find(kind).unwrap(), &original, &patch).unwrap(), expect);
    }

    #[test]
    fn merges_lists_by_key_and_replaces_the_others() {
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}], "tolerations": [{"key": "k"}]}),
            json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "c"}], "tolerations": [{"key": "l"}]}),
            json!({"containers": [{"name": "a", "image": "2", "args": ["y"]}, {"name": "b"}, {"name": "c"}],
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
            json!({"finalizers": ["b", "c"], "labels": {"z": "w"}}),
        );
        check(
            "core.v1.PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "free"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                "containers": [{"name": "c"}]}),
            json!({"containers": [{"name": "free"}, {"name": "c"}, {"name": "b"}, {"name": "a"}]}),
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
            json!({"nodeSelector": {"$patch": "sideways"}}),
            json!([1]),
            json!({"securityContext": {"$retainKeys": [], "runAsUser": 1}}),
        ] {
            assert!(merge(of, &json!({}), &patch).is_err(), "{patch}");
        }
    }
}
