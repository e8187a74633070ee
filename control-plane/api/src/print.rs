//! `meta.k8s.io/v1` Tables with kubectl's own columns for every kind.
//!
//! A column of priority 1 is for `-o wide`. Time is an argument. Invariant: as many cells as columns.

mod cluster;
mod duration;
mod network;
mod pod;
mod policy;
mod storage;
mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use self::duration::human;
use crate::{Object, Row, convert};

/// A column: its heading, its type, and whether it is wide (1) or always shown (0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub priority: u8,
}

/// What each row of a Table carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    /// The default: a PartialObjectMetadata.
    Metadata,
    Object,
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 0 }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 1 }
}

const fn flag(name: &'static str) -> Column {
    Column { name, kind: "boolean", priority: 0 }
}

/// How a kind is printed: its columns, and an object's cells.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Object, Timestamp) -> Vec<Value>,
}

const NAME: Column = text("Name");
const AGE: Column = text("Age");
const CREATED_AT: Column = text("Created At");

/// What `/scale` answers, whatever kind it is asked of.
const SCALE: Printer = Printer {
    columns: const { &[NAME, number("Desired"), number("Available"), AGE] },
    cells: |object, now| {
        vec![
            name(object),
            count(object, &["spec", "replicas"]),
            count(object, &["status", "replicas"]),
            age(object, now),
        ]
    },
};

fn printer(row: &Row) -> Printer {
    let found = match row.group {
        "" | "events.k8s.io" => cluster::printer(row.kind)
            .or_else(|| network::printer(row.kind))
            .or_else(|| storage::printer(row.kind))
            .or_else(|| workload::printer(row.kind)),
        "apps" | "batch" | "autoscaling" => workload::printer(row.kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::printer(row.kind),
        "storage.k8s.io" => storage::printer(row.kind),
        _ => policy::printer(row.kind),
    };
    found.unwrap_or(Printer {
        columns: const { &[NAME, CREATED_AT] },
        cells: |object, _| vec![name(object), created_at(object)],
    })
}

pub fn columns(row: &Row) -> &'static [Column] {
    printer(row).columns
}

/// The cells of one object, as many as there are columns.
pub fn cells(row: &Row, object: &Object, now: Timestamp) -> Vec<Value> {
    let cells = printer(row).cells;
    if convert::is_needed(row) { cells(&convert::to_storage(row, object.clone()), now) } else { cells(object, now) }
}

/// One row of a Table.
pub fn table_row(row: &Row, object: &Object, include: Include, now: Timestamp) -> Value {
    let mut out = json!({"cells": cells(row, object, now)});
    if row.kind == "Pod"
        && let Some(phase @ ("Succeeded" | "Failed")) = object.str_at(&["status", "phase"])
    {
        let message = if phase == "Succeeded" { "The pod has completed successfully." } else { "The pod failed." };
        out["conditions"] = json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]);
    }
    with_object(out, object, include)
}

fn with_object(mut out: Value, object: &Object, include: Include) -> Value {
    match include {
        Include::None => out["object"] = Value::Null,
        Include::Object => out["object"] = object.to_value(),
        Include::Metadata => {
            let metadata = object.metadata().cloned().unwrap_or_default();
            out["object"] =
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        }
    }
    out
}

/// The `columnDefinitions` of a Table.
pub fn column_definitions(row: &Row) -> Value {
    definitions(columns(row))
}

fn definitions(columns: &[Column]) -> Value {
    let one = |column: &Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        json!({"name": column.name, "type": column.kind, "format": format, "description": column.name,
            "priority": column.priority})
    };
    columns.iter().map(one).collect()
}

/// The Table of one Scale.
pub fn scale_table(scale: &Object, include: Include, now: Timestamp) -> Value {
    let metadata = json!({"resourceVersion": scale.resource_version()});
    let metadata = metadata.as_object().cloned().unwrap_or_default();
    let row = with_object(json!({"cells": (SCALE.cells)(scale, now)}), scale, include);
    whole(&definitions(SCALE.columns), vec![row], metadata)
}

/// A whole Table. `metadata` is the list's: resourceVersion, continue, remainingItemCount.
pub fn table<'a>(
    row: &Row,
    objects: impl IntoIterator<Item = &'a Object>,
    metadata: Map<String, Value>,
    include: Include,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|object| table_row(row, object, include, now)).collect();
    whole(&column_definitions(row), rows, metadata)
}

fn whole(definitions: &Value, rows: Vec<Value>, metadata: Map<String, Value>) -> Value {
    let mut table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": definitions, "rows": []});
    table["metadata"] = Value::Object(metadata);
    table["rows"] = Value::Array(rows);
    table
}

fn name(object: &Object) -> Value {
    object.name().into()
}

fn created_at(object: &Object) -> Value {
    object
        .metadata()
        .and_then(|meta| meta.get("creationTimestamp"))
        .and_then(Value::as_str)
        .unwrap_or("<unknown>")
        .into()
}

fn age(object: &Object, now: Timestamp) -> Value {
    since(object.creation_timestamp(), now).into()
}

/// The time since then, as people read it.
fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".into(), |then| human(now.as_second() - then.as_second()))
}

fn time_at(object: &Object, path: &[&str]) -> Option<Timestamp> {
    object.str_at(path)?.parse().ok()
}

/// The text at `path`, or `<none>`.
fn text_or(object: &Object, path: &[&str], none: &str) -> Value {
    object.str_at(path).filter(|text| !text.is_empty()).unwrap_or(none).into()
}

fn count(object: &Object, path: &[&str]) -> Value {
    object.i64_at(path).unwrap_or(0).into()
}

/// Items joined by commas, or `<none>`.
fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    let items: Vec<&str> = items.into_iter().collect();
    if items.is_empty() { "<none>".into() } else { items.join(",").into() }
}

/// A value as upstream's `%v` shows it.
fn plain(value: Option<&Value>, none: &str) -> Value {
    match value {
        None | Some(Value::Null) => none.into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    }
}

/// A label selector as upstream prints it; `<none>` when it is empty.
fn selector(value: Option<&Value>) -> Value {
    use crate::selector::Selector;
    let parsed = match value {
        None | Some(Value::Null) => return "<none>".into(),
        Some(value) => Selector::from_value(value),
    };
    match parsed {
        Ok(selector) if selector.is_empty() => "<none>".into(),
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<error>".into(),
    }
}

/// A map of labels as `a=b,c=d`.
fn labels(value: Option<&Value>) -> Value {
    let pairs: Vec<String> = value
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    list(pairs.iter().map(String::as_str))
}

/// The names and the images of a pod spec's containers.
fn containers(spec: Option<&Value>) -> [Value; 2] {
    let containers =
        spec.and_then(|spec| spec.get("containers")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    ["name", "image"].map(|key| {
        let items: Vec<&str> = containers.iter().filter_map(|one| one.get(key)?.as_str()).collect();
        items.join(",").into()
    })
}

#[cfg(test)]
mod tests;
