//! Discovery: which groups, versions, resources and subresources there are. Legacy lists and the aggregated document; both are
//! made from the rows, once.

use std::sync::LazyLock;

use bytes::Bytes;
use control_plane_api::{Row, Status, row, rows};
use http::{HeaderMap, Response, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{fixed, json as answer};
use crate::{body::Body, kernel::Kernel, status::Outcome};

const AGGREGATED_2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_2_BETA: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// An aggregated document with its tag.
#[derive(Debug)]
struct Document {
    bytes: Bytes,
    tag: String,
}

static CORE: [LazyLock<Document>; 2] =
    [LazyLock::new(|| aggregated(true, "v2")), LazyLock::new(|| aggregated(true, "v2beta1"))];
static GROUPS: [LazyLock<Document>; 2] =
    [LazyLock::new(|| aggregated(false, "v2")), LazyLock::new(|| aggregated(false, "v2beta1"))];

/// `/api` and `/apis`.
pub(super) fn root(kernel: &Kernel, path: &str, headers: &HeaderMap) -> Outcome<Response<Body>> {
    let core = path == "/api";
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("").replace(' ', "");
    let wanted = accept.split(',').find_map(|clause| {
        let is = |version: &str| {
            clause.contains("g=apidiscovery.k8s.io")
                && clause.contains("as=APIGroupDiscoveryList")
                && clause.contains(version)
        };
        if is("v=v2beta1") {
            Some((1, AGGREGATED_2_BETA))
        } else if is("v=v2") {
            Some((0, AGGREGATED_2))
        } else {
            None
        }
    });
    if let Some((index, media)) = wanted {
        let document = if core { &CORE[index] } else { &GROUPS[index] };
        return fixed(headers, document.bytes.clone(), media, &document.tag);
    }
    if core {
        let address = kernel.config.advertise.to_string();
        return answer(&json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]}));
    }
    let groups: Vec<Value> = row::groups().iter().filter(|(group, _)| !group.is_empty()).map(group_value).collect();
    answer(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

fn group_value((group, versions): &(&str, Vec<&str>)) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": group, "versions": all, "preferredVersion": all[0]})
}

/// `/api/v1`, `/apis/{group}` and `/apis/{group}/{version}`.
pub(super) fn below(path: &str, rest: &str, _headers: &HeaderMap) -> Outcome<Response<Body>> {
    let (group, version) = match (path.starts_with("/api/"), rest.split_once('/')) {
        (true, None) => ("", rest),
        (false, Some((group, version))) => (group, version),
        (false, None) => {
            let groups = row::groups();
            let found = groups.iter().find(|(group, _)| *group == rest && !group.is_empty());
            let mut value = group_value(found.ok_or_else(Status::no_such_path)?);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            return answer(&value);
        }
        (true, Some(_)) => return Err(Status::no_such_path().into()),
    };
    let resources: Vec<Value> =
        rows().iter().filter(|row| row.group == group && row.version == version).flat_map(legacy).collect();
    if resources.is_empty() {
        return Err(Status::no_such_path().into());
    }
    answer(&json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": row::api_version(group, version), "resources": resources}))
}

fn legacy(row: &'static Row) -> Vec<Value> {
    let mut main = json!({"name": row.resource, "singularName": row.singular, "namespaced": row.namespaced,
        "kind": row.kind, "verbs": row.verbs});
    if !row.short_names.is_empty() {
        main["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        main["categories"] = json!(row.categories);
    }
    if row.has_verb("list") {
        // A number that says in which form the newest version is stored; equal for equal forms.
        main["storageVersionHash"] = storage_hash(row).into();
    }
    let mut out = vec![main];
    for sub in row.subresources {
        let mut value = json!({"name": format!("{}/{}", row.resource, sub.name), "singularName": "",
            "namespaced": row.namespaced, "kind": sub.kind, "verbs": sub.verbs});
        if (sub.group, sub.version) != (row.group, row.version) {
            value["group"] = sub.group.into();
            value["version"] = sub.version.into();
        }
        out.push(value);
    }
    out
}

fn storage_hash(row: &Row) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", row.storage.group, row.storage.version, row.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

fn aggregated(core: bool, version: &str) -> Document {
    let mut items = Vec::new();
    for (group, versions) in row::groups().into_iter().filter(|(group, _)| group.is_empty() == core) {
        let versions: Vec<Value> = versions.iter().map(|version| aggregated_version(group, version)).collect();
        let metadata = if group.is_empty() {
            json!({"creationTimestamp": null})
        } else {
            json!({"name": group, "creationTimestamp": null})
        };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let bytes = document.to_string();
    let tag: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
    Document { bytes: Bytes::from(bytes), tag }
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let rows = rows().iter().filter(|row| row.group == group && row.version == version);
    let resources: Vec<Value> = rows
        .map(|row| {
            let scope = if row.namespaced { "Namespaced" } else { "Cluster" };
            let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
            let mut value = json!({"resource": row.resource, "responseKind": kind(row.group, row.version, row.kind),
                "scope": scope, "singularResource": row.singular, "verbs": row.verbs});
            if !row.short_names.is_empty() {
                value["shortNames"] = json!(row.short_names);
            }
            if !row.categories.is_empty() {
                value["categories"] = json!(row.categories);
            }
            if !row.subresources.is_empty() {
                let subs = row.subresources.iter().map(|sub| {
                    json!({"subresource": sub.name, "responseKind": kind(sub.group, sub.version, sub.kind), "verbs": sub.verbs})
                });
                value["subresources"] = subs.collect();
            }
            value
        })
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}
