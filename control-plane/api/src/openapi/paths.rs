//! Paths with their operations: what kubectl looks for, no more.

use serde_json::{Map, Value, json};

use super::Dialect;
use crate::Row;
use crate::row::Subresource;
use crate::schema;

const JSON: &str = "application/json";
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const LIST_PARAMETERS: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// What an operation is about.
struct About<'a> {
    row: &'a Row,
    dialect: Dialect,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    /// The end of the operation's id: `AppsV1NamespacedDeployment`.
    id: String,
}

pub(super) fn add(row: &Row, dialect: Dialect, paths: &mut Map<String, Value>) {
    let root = if row.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/{}", row.group, row.version) };
    let scoped = if row.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let collection = format!("{scoped}/{}", row.resource);
    let about = |id: String| About { row, dialect, group: row.group, version: row.version, kind: row.kind, id };
    let group = capital(schema::short_group(row.group));
    let scope = if row.namespaced { "Namespaced" } else { "" };
    let id = format!("{group}{}{scope}{}", capital(row.version), row.kind);
    let mut operations = Map::new();
    for (verb, method) in [("list", "get"), ("create", "post"), ("deletecollection", "delete")] {
        if row.has_verb(verb) {
            operations.insert(method.into(), operation(&about(id.clone()), verb));
        }
    }
    insert(paths, &collection, operations, row.namespaced, false, dialect);
    if row.namespaced && row.has_verb("list") {
        let id = format!("{group}{}{}ForAllNamespaces", capital(row.version), row.kind);
        let mut operations = Map::new();
        operations.insert("get".into(), operation(&about(id), "list"));
        insert(paths, &format!("{root}/{}", row.resource), operations, false, false, dialect);
    }
    let mut operations = Map::new();
    for (verb, method) in [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")] {
        if row.has_verb(verb) {
            operations.insert(method.into(), operation(&about(id.clone()), verb));
        }
    }
    insert(paths, &format!("{collection}/{{name}}"), operations, row.namespaced, true, dialect);
    for sub in row.subresources {
        let operations = subresource(row, sub, dialect, &id);
        insert(paths, &format!("{collection}/{{name}}/{}", sub.name), operations, row.namespaced, true, dialect);
    }
}

fn subresource(row: &Row, sub: &Subresource, dialect: Dialect, id: &str) -> Map<String, Value> {
    let mut operations = Map::new();
    let connects = sub.kind.ends_with("Options");
    for verb in sub.verbs {
        let method = match *verb {
            "create" => "post",
            "update" => "put",
            other => other,
        };
        let about = About {
            row,
            dialect,
            group: sub.group,
            version: sub.version,
            kind: sub.kind,
            id: format!("{id}{}", capital(sub.name)),
        };
        let shown = if connects { "connect" } else { verb };
        operations.insert(method.into(), operation_as(&about, verb, shown));
    }
    operations
}

fn insert(
    paths: &mut Map<String, Value>,
    path: &str,
    mut operations: Map<String, Value>,
    namespaced: bool,
    named: bool,
    dialect: Dialect,
) {
    if operations.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    for (wanted, name) in [(named, "name"), (namespaced, "namespace")] {
        if wanted {
            let mut one = parameter(name, "string", dialect);
            one["in"] = "path".into();
            one["required"] = true.into();
            parameters.push(one);
        }
    }
    parameters.push(parameter("pretty", "string", dialect));
    operations.insert("parameters".into(), parameters.into());
    paths.insert(path.into(), operations.into());
}

fn parameter(name: &str, kind: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
        Dialect::V3 => json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}}),
    }
}

fn operation(about: &About<'_>, verb: &str) -> Value {
    operation_as(about, verb, verb)
}

/// `verb` decides the shape, `shown` the action's name.
fn operation_as(about: &About<'_>, verb: &str, shown: &str) -> Value {
    let (action, prefix, parameters) = match verb {
        "list" => ("list", "list", LIST_PARAMETERS),
        "create" => ("post", "create", WRITE_PARAMETERS),
        "update" => ("put", "replace", WRITE_PARAMETERS),
        "patch" => ("patch", "patch", PATCH_PARAMETERS),
        "delete" => ("delete", "delete", DELETE_PARAMETERS),
        "deletecollection" => ("deletecollection", "deleteCollection", LIST_PARAMETERS),
        _ => ("get", "read", &[][..]),
    };
    let action = if shown == "connect" { "connect" } else { action };
    let dialect = about.dialect;
    let mut query: Vec<Value> = parameters.iter().map(|(name, kind)| parameter(name, kind, dialect)).collect();
    let own = schema::find_kind(about.group, about.version, about.kind);
    let list = schema::find_kind(about.group, about.version, &about.row.list_kind());
    let status = schema::find("meta.v1.Status");
    let answer = match (action, verb) {
        ("connect", _) => None,
        (_, "list") => list,
        (_, "delete" | "deletecollection") => status,
        _ => own,
    };
    let body = match (action, verb) {
        ("connect", _) => None,
        (_, "create" | "update") => own,
        (_, "delete" | "deletecollection") => schema::find("meta.v1.DeleteOptions"),
        _ => None,
    };
    let reference = |of: &schema::Type| json!({"$ref": dialect.reference(&of.full_name())});
    let mut out = json!({"operationId": format!("{prefix}{}", about.id), "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": about.group, "version": about.version, "kind": about.kind}});
    let body = match (verb, body) {
        ("patch", _) => Some(json!({"type": "object"})),
        (_, body) => body.map(reference),
    };
    let answer = answer.map_or_else(|| json!({"type": "string"}), reference);
    match dialect {
        Dialect::V2 => {
            out["produces"] = json!([JSON]);
            if let Some(body) = body {
                out["consumes"] = if verb == "patch" { json!(PATCHES) } else { json!(["*/*"]) };
                query.push(json!({"name": "body", "in": "body", "required": verb != "delete", "schema": body}));
            }
            out["responses"] = json!({"200": {"description": "OK", "schema": answer}});
        }
        Dialect::V3 => {
            if let Some(body) = body {
                let types = if verb == "patch" { PATCHES } else { &["*/*"] };
                let content: Map<String, Value> =
                    types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": body}))).collect();
                out["requestBody"] = json!({"content": content});
            }
            out["responses"] = json!({"200": {"description": "OK", "content": {JSON: {"schema": answer}}}});
        }
    }
    if !query.is_empty() {
        out["parameters"] = query.into();
    }
    out
}

/// The first letter large: `AppsV1`.
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
