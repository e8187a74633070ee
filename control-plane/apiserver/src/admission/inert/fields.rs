//! Fields that are kept faithfully and that no part acts on yet: whoever writes one is told by its path, so that nobody relies on
//! what does not happen. `fields.txt` says which; this walks an object along its schema. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use control_plane_api::schema::{Kind, Type};
use serde_json::{Map, Value};

const TABLE: &str = include_str!("fields.txt");
const METADATA: &str = "meta.v1.ObjectMeta";

/// Annotations that ask for something, by the beginning of their names.
const ANNOTATIONS: [(&str, &str); 3] = [
    ("kubernetes.io/ingress-bandwidth", "traffic is not limited"),
    ("kubernetes.io/egress-bandwidth", "traffic is not limited"),
    ("container.apparmor.security.beta.kubernetes.io/", "write `securityContext.appArmorProfile` instead"),
];

struct Entry {
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests ask whether every field is in the table"))]
    acts: HashSet<&'static str>,
    inert: HashMap<&'static str, Inert>,
}

struct Inert {
    /// A field beside this one and its value: with that, this one is acted on.
    unless: Option<(&'static str, &'static str)>,
    what: &'static str,
}

static ENTRIES: LazyLock<HashMap<&'static str, Entry>> = LazyLock::new(|| {
    let mut entries: HashMap<&str, Entry> = HashMap::new();
    let mut last = "";
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, rest)) = line.split_once(": ").or_else(|| line.split_once(':')) else { continue };
        match head.strip_prefix('\t') {
            None => {
                last = head;
                entries.insert(head, Entry { acts: rest.split_whitespace().collect(), inert: HashMap::new() });
            }
            Some(head) => {
                let (field, condition) = head.split_once(" unless ").map_or((head, None), |(f, c)| (f, Some(c)));
                let unless = condition.and_then(|condition| condition.split_once('='));
                let entry =
                    entries.entry(last).or_insert_with(|| Entry { acts: HashSet::new(), inert: HashMap::new() });
                entry.inert.insert(field, Inert { unless, what: rest });
            }
        }
    }
    entries
});

/// What to tell about an object of a type; nothing about what `live` says already.
pub(super) fn find(of: &Type, object: &Map<String, Value>, live: Option<&Map<String, Value>>) -> Vec<String> {
    let mut found = Vec::new();
    walk(of, object, live, "", &mut found);
    found
}

fn walk(of: &Type, object: &Map<String, Value>, live: Option<&Map<String, Value>>, at: &str, found: &mut Vec<String>) {
    if of.name == METADATA {
        return annotations(object, live, at, found);
    }
    let Some(entry) = ENTRIES.get(of.name) else { return };
    for (name, value) in object {
        let old = live.and_then(|live| live.get(name));
        if is_empty(value) || old == Some(value) {
            continue;
        }
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match entry.inert.get(name.as_str()) {
            Some(inert) => {
                let is_met = |(field, expect): (&str, &str)| object.get(field).and_then(Value::as_str) == Some(expect);
                if !inert.unless.is_some_and(is_met) {
                    found.push(told(&path, inert.what));
                }
            }
            None => {
                if let Some(field) = of.field(name) {
                    descend(&field.kind, value, old, &path, found);
                }
            }
        }
    }
}

/// Into structures, and into the items of lists: each beside the live one of the same place.
fn descend(kind: &Kind, value: &Value, live: Option<&Value>, at: &str, found: &mut Vec<String>) {
    match (kind, value) {
        (Kind::List(inner), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                descend(inner, item, live.and_then(|live| live.get(index)), &format!("{at}[{index}]"), found);
            }
        }
        (kind, Value::Object(object)) => {
            if let Some(of) = kind.as_struct() {
                walk(of, object, live.and_then(Value::as_object), at, found);
            }
        }
        _ => {}
    }
}

fn annotations(metadata: &Map<String, Value>, live: Option<&Map<String, Value>>, at: &str, found: &mut Vec<String>) {
    let of = |metadata: &Map<String, Value>| metadata.get("annotations").and_then(Value::as_object).cloned();
    let old = live.and_then(of).unwrap_or_default();
    for (name, value) in of(metadata).unwrap_or_default() {
        let known = ANNOTATIONS.iter().find(|(start, _)| name.starts_with(start));
        if let Some((_, what)) = known.filter(|_| old.get(&name) != Some(&value)) {
            found.push(told(&format!("{at}.annotations[{name}]"), what));
        }
    }
}

fn told(path: &str, what: &str) -> String {
    format!("{path}: kept, but Sampan does not act on it yet: {what}")
}

/// What says no more than its absence.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
#[path = "fields/tests.rs"]
mod tests;
