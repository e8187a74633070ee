//! The OpenAPI documents, built from the rows and the table of types.
//!
//! Version 3 comes one document per group and version, version 2 as one document in JSON and in gnostic's protobuf.
//! Nothing is cached here. Invariant: every `$ref` points into the same document.

mod definitions;
mod gnostic;
mod paths;
mod published;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

pub use self::published::Published;

use crate::row::rows;
use crate::schema::{self, Type};

/// Descriptions by full type name (`io.k8s.api.core.v1.Pod`) and field; the empty field is the type itself.
pub trait Descriptions {
    fn describe(&self, type_name: &str, field: &str) -> Option<&str>;
}

/// No descriptions at all.
#[derive(Debug, Clone, Copy)]
pub struct Undescribed;

impl Descriptions for Undescribed {
    fn describe(&self, _: &str, _: &str) -> Option<&str> {
        None
    }
}

/// Which dialect is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// The document of one group and version, or nothing when it is not served. `version` is the server's: `v1.36.0`.
pub fn v3(group: &str, group_version: &str, version: &str, texts: &dyn Descriptions) -> Option<Value> {
    let mut paths = Map::new();
    let mut roots: BTreeSet<&'static str> = general_types();
    for row in rows().iter().filter(|row| row.group == group && row.version == group_version) {
        paths::add(row, Dialect::V3, &mut paths);
        roots.extend(types_of(row));
    }
    if paths.is_empty() {
        return None;
    }
    let schemas = definitions::of_types(&roots, Dialect::V3, texts);
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": version}, "paths": paths,
        "components": {"schemas": schemas}}))
}

/// The document of everything.
pub fn v2(version: &str, texts: &dyn Descriptions) -> Value {
    let mut paths = Map::new();
    let mut roots = general_types();
    for row in rows() {
        paths::add(row, Dialect::V2, &mut paths);
        roots.extend(types_of(row));
    }
    let definitions = definitions::of_types(&roots, Dialect::V2, texts);
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": version}, "paths": paths,
        "definitions": definitions})
}

/// What [`v2_protobuf`] is sent as. Clients ask for it with `@` in the place of the second dot, which is no media type.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A version 2 document in gnostic's protobuf. Its paths stay behind: clients
/// read definitions from it.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    gnostic::document(document)
}

fn general_types() -> BTreeSet<&'static str> {
    let names = ["meta.v1.DeleteOptions", "meta.v1.Status", "meta.v1.WatchEvent", "meta.v1.APIResourceList"];
    names.into_iter().filter_map(|name| Some(schema::find(name)?.name)).collect()
}

/// The types that a row's paths speak of: the kind, its list, its subresources' kinds.
fn types_of(row: &'static crate::Row) -> impl Iterator<Item = &'static str> {
    let own = schema::find(&row.schema).map(|of| of.name);
    let list = schema::find_kind(row.group, row.version, &row.list_kind()).map(|of| of.name);
    let subs =
        row.subresources.iter().filter_map(|sub| Some(schema::find_kind(sub.group, sub.version, sub.kind)?.name));
    own.into_iter().chain(list).chain(subs)
}

/// The group, version and kind of a type that has them.
fn group_version_kind(of: &Type) -> Option<(String, &'static str, &'static str)> {
    if !of.is_kind {
        return None;
    }
    let (package, kind) = of.name.rsplit_once('.')?;
    let (short, version) = package.split_once('.')?;
    if short == "meta" {
        return Some((String::new(), version, kind));
    }
    let group = rows().iter().map(|row| row.group).find(|group| schema::short_group(group) == short)?;
    Some((group.to_owned(), version, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[track_caller]
    fn check_references(document: &Value) {
        let mut found = Vec::new();
        references(document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_document_is_closed_over_its_references() {
        for (group, versions) in crate::row::groups() {
            for version in versions {
                check_references(&v3(group, version, "v1.36.0", &Undescribed).unwrap());
            }
        }
        check_references(&v2("v1.36.0", &Undescribed));
        assert_eq!(v3("none", "v1", "", &Undescribed), None);
    }

    #[test]
    fn apps_says_what_kubectl_reads() {
        let document = v3("apps", "v1", "v1.36.0", &Undescribed).unwrap();
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(path["patch"]["x-kubernetes-group-version-kind"], kind);
        assert_eq!(path["patch"]["x-kubernetes-action"], "patch");
        let parameters = path["patch"]["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|one| one["name"] == "fieldValidation" && one["in"] == "query"));
        let schemas = &document["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0], kind);
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
        assert_eq!(document["paths"]["/apis/apps/v1/deployments"]["get"]["x-kubernetes-action"], "list");
        assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"].is_object());
    }

    #[test]
    fn the_protobuf_form_holds_the_definitions() {
        let document = v2("v1.36.0", &Undescribed);
        let bytes = v2_protobuf(&document);
        assert!(bytes.starts_with(b"\x0a\x032.0"));
        let name = b"io.k8s.api.core.v1.PodSpec";
        assert!(bytes.windows(name.len()).any(|window| window == name));
    }
}
