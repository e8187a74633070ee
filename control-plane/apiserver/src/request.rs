//! The request line, understood: method, path and query -> `RequestInfo`. Pure; looks nothing up, so that a resource that does
//! not exist parses as well as one that does.
//!
//! Invariant: any path parses to something, without a panic; what is not a resource path is a non-resource path.

pub(crate) mod duration;
mod query;

use control_plane_api::{name, selector::FieldSelector};
use http::Method;

pub use query::Query;
pub(crate) use query::{percent_decode, percent_decode_strict};

/// What is asked for, as authorization and the verbs see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    pub verb: Verb,
    /// The path as sent, decoded, without the query.
    pub path: String,
    /// `None` for a non-resource path.
    pub resource: Option<ResourcePath>,
    /// The field selector of a list, watch or deletecollection: what authorization may go by. Empty when there is none, and when it
    /// does not parse: then the request is refused after it was authorized without.
    pub fields: FieldSelector,
}

/// The parts of `/apis/{group}/{version}/namespaces/{namespace}/{resource}/{name}/{subresource}/{rest}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    /// Empty for all namespaces and for cluster-wide resources.
    pub namespace: String,
    pub resource: String,
    /// Empty for a collection.
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, without a leading slash: the path that a proxy asks its target for.
    pub rest: String,
}

/// What is done, in the words of RBAC; for non-resource paths the method in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// On non-resource paths only.
    Post,
    Put,
    Head,
    Options,
    /// A method that nothing here answers.
    Other,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Post => "post",
            Self::Put => "put",
            Self::Head => "head",
            Self::Options => "options",
            Self::Other => "other",
        }
    }

    fn of_path(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::HEAD => Self::Head,
            Method::OPTIONS => Self::Options,
            _ => Self::Other,
        }
    }

    fn of_resource(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD => Self::Get,
            Method::POST => Self::Create,
            Method::PUT => Self::Update,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// Subresources of a namespace; anything else in that place is a resource inside it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Understands a request line. `path` is still percent-encoded.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect();
        let decoded = percent_decode(path);
        match resource_path(&segments) {
            Some((mut resource, watch_prefix)) => {
                // A proxied path keeps what the caller wrote: repeated slashes and the last one mean something to the target.
                if !resource.rest.is_empty() || path.ends_with('/') {
                    resource.rest = rest_as_sent(path, &resource);
                }
                let sent = query.first("fieldSelector").unwrap_or("");
                let mut fields = FieldSelector::parse(sent).unwrap_or_default();
                let verb = resource_verb(method, &mut resource, watch_prefix, query, &fields);
                if !matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection) {
                    fields = FieldSelector::default();
                }
                Self { verb, path: decoded, resource: Some(resource), fields }
            }
            None => {
                Self { verb: Verb::of_path(method), path: decoded, resource: None, fields: FieldSelector::default() }
            }
        }
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, Verb::Get | Verb::List | Verb::Watch | Verb::Head | Verb::Options)
    }
}

/// The parts, and whether the path began with the old `/watch/`.
fn resource_path(segments: &[String]) -> Option<(ResourcePath, bool)> {
    let (group, version, mut rest) = match segments {
        [first, version, rest @ ..] if first == "api" => (String::new(), version.clone(), rest),
        [first, group, version, rest @ ..] if first == "apis" => (group.clone(), version.clone(), rest),
        _ => return None,
    };
    let mut path = ResourcePath { group, version, ..ResourcePath::default() };
    let mut watch_prefix = false;
    if let [first, after @ ..] = rest
        && first == "watch"
        && !after.is_empty()
    {
        watch_prefix = true;
        rest = after;
    }
    match rest {
        [] => return None,
        [only] => path.resource.clone_from(only),
        [first, name] if first == "namespaces" => {
            path.resource.clone_from(first);
            path.namespace.clone_from(name);
            path.name.clone_from(name);
        }
        [first, name, sub, rest @ ..] if first == "namespaces" && NAMESPACE_SUBRESOURCES.contains(&sub.as_str()) => {
            path.resource.clone_from(first);
            path.namespace.clone_from(name);
            path.name.clone_from(name);
            path.subresource.clone_from(sub);
            path.rest = rest.join("/");
        }
        [first, namespace, resource, rest @ ..] if first == "namespaces" => {
            path.namespace.clone_from(namespace);
            path.resource.clone_from(resource);
            fill_named(&mut path, rest);
        }
        [resource, rest @ ..] => {
            path.resource.clone_from(resource);
            fill_named(&mut path, rest);
        }
    }
    Some((path, watch_prefix))
}

fn fill_named(path: &mut ResourcePath, rest: &[String]) {
    if let Some(name) = rest.first() {
        path.name.clone_from(name);
    }
    if let Some(subresource) = rest.get(1) {
        path.subresource.clone_from(subresource);
    }
    path.rest = rest.get(2..).unwrap_or_default().join("/");
}

/// The part of the path, still encoded, that follows the subresource.
fn rest_as_sent(path: &str, resource: &ResourcePath) -> String {
    let before = if resource.group.is_empty() { 2 } else { 3 };
    let namespaced = usize::from(resource.resource != "namespaces" && !resource.namespace.is_empty()) * 2;
    let mut left = before + namespaced + 3;
    let mut rest = path;
    while left > 0 {
        rest = rest.trim_start_matches('/');
        let Some(end) = rest.find('/') else { return String::new() };
        rest = &rest[end..];
        left -= 1;
    }
    rest.strip_prefix('/').unwrap_or(rest).to_owned()
}

fn resource_verb(
    method: &Method,
    resource: &mut ResourcePath,
    watch_prefix: bool,
    query: &Query,
    fields: &FieldSelector,
) -> Verb {
    let verb = Verb::of_resource(method);
    match verb {
        Verb::Get if watch_prefix => Verb::Watch,
        // The old prefix is for watches alone.
        _ if watch_prefix => Verb::Other,
        Verb::Get if resource.name.is_empty() || (query.flag("watch") && resource.subresource.is_empty()) => {
            let watch = query.flag("watch");
            // A list of the one object with this name is authorized by its name, as upstream does.
            if resource.name.is_empty()
                && let Some(name) = fields.exact("metadata.name").filter(|name| is_segment(name))
            {
                name.clone_into(&mut resource.name);
            }
            if watch { Verb::Watch } else { Verb::List }
        }
        Verb::Delete if resource.name.is_empty() => Verb::DeleteCollection,
        verb => verb,
    }
}

/// Whether an object could have this name at all.
fn is_segment(text: &str) -> bool {
    !text.is_empty() && name::path_segment(text).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&Method::from_bytes(method.as_bytes()).unwrap(), path, &Query::parse(query))
    }

    #[track_caller]
    fn check(request: &str, expect: &str) {
        let (method, uri) = request.split_once(' ').unwrap();
        let info = parse(method, uri);
        let shown = match &info.resource {
            None => format!("{} path {}", info.verb.as_str(), info.path),
            Some(r) => format!(
                "{} {}/{} ns={} {} name={} sub={} rest={}",
                info.verb.as_str(),
                r.group,
                r.version,
                r.namespace,
                r.resource,
                r.name,
                r.subresource,
                r.rest
            ),
        };
        assert_eq!(shown, expect, "{request}");
    }

    #[test]
    fn paths_as_upstream_reads_them() {
        check("GET /api/v1/namespaces/d/pods", "list /v1 ns=d pods name= sub= rest=");
        check("GET /api/v1/pods?watch=true", "watch /v1 ns= pods name= sub= rest=");
        check("GET /api/v1/pods?watch=0", "list /v1 ns= pods name= sub= rest=");
        check("GET /api/v1/watch/namespaces/d/pods/p", "watch /v1 ns=d pods name=p sub= rest=");
        check("GET /api/v1/namespaces/d/pods/p", "get /v1 ns=d pods name=p sub= rest=");
        check("GET /api/v1/namespaces", "list /v1 ns= namespaces name= sub= rest=");
        check("PUT /api/v1/namespaces/d/finalize", "update /v1 ns=d namespaces name=d sub=finalize rest=");
        check("GET /api/v1/namespaces/d", "get /v1 ns=d namespaces name=d sub= rest=");
        check("POST /api/v1/namespaces/d/pods/p/binding", "create /v1 ns=d pods name=p sub=binding rest=");
        check(
            "DELETE /apis/apps/v1/namespaces/d/deployments",
            "deletecollection apps/v1 ns=d deployments name= sub= rest=",
        );
        check(
            "PATCH /apis/apps/v1/namespaces/d/deployments/w/scale",
            "patch apps/v1 ns=d deployments name=w sub=scale rest=",
        );
        check("GET /api/v1/nodes/n/proxy/metrics/x", "get /v1 ns= nodes name=n sub=proxy rest=metrics/x");
        check(
            "GET /api/v1/namespaces/d/services/https:s:1/proxy/a%20b//c/",
            "get /v1 ns=d services name=https:s:1 sub=proxy rest=a%20b//c/",
        );
        check("GET /api/v1/namespaces/d/services/s/proxy/", "get /v1 ns=d services name=s sub=proxy rest=");
        check("GET /api/v1/pods?fieldSelector=metadata.name%3Dp", "list /v1 ns= pods name=p sub= rest=");
        check("GET /api/v1/pods?fieldSelector=metadata.name%3D%3Dp", "list /v1 ns= pods name=p sub= rest=");
        check("GET /api/v1/pods?fieldSelector=metadata.name!%3Dp", "list /v1 ns= pods name= sub= rest=");
        check("GET /api/v1/pods?fieldSelector=xmetadata.name%3Dp", "list /v1 ns= pods name= sub= rest=");
        check("GET /api/v1/pods?fieldSelector=metadata.name%3Da/b", "list /v1 ns= pods name= sub= rest=");
        check("DELETE /api/v1/pods?fieldSelector=metadata.name%3Dp", "deletecollection /v1 ns= pods name= sub= rest=");
        check("POST /api/v1/watch/namespaces/d/pods", "other /v1 ns=d pods name= sub= rest=");
        check("GET /api/v1", "get path /api/v1");
        check("GET /apis/apps/v1", "get path /apis/apps/v1");
        check("GET /healthz", "get path /healthz");
        check("POST /version", "post path /version");
        check("GET /apis", "get path /apis");
        check("GET /", "get path /");
    }

    proptest! {
        #[test]
        fn any_request_line_parses(method in "[A-Z]{1,8}", path in "/?[a-z/%0-9A-F\\.:\u{e9}]{0,60}", query in ".{0,40}") {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let info = RequestInfo::parse(&method, &path, &Query::parse(&query));
            if let Some(resource) = info.resource {
                prop_assert!(!resource.resource.is_empty());
                prop_assert!(resource.subresource.is_empty() || !resource.name.is_empty());
            }
        }

        #[test]
        fn built_paths_parse_back(
            group in "([a-z]{1,5}\\.)?[a-z]{1,5}", namespace in "[a-z]{1,6}", resource in "[a-v]{2,7}s", name in "[a-z0-9.:-]{1,9}",
        ) {
            prop_assume!(resource != "namespaces");
            let path = format!("/apis/{group}/v1/namespaces/{namespace}/{resource}/{name}");
            let info = RequestInfo::parse(&Method::GET, &path, &Query::parse(""));
            let parsed = info.resource.unwrap();
            prop_assert_eq!(parsed.group, group);
            if !NAMESPACE_SUBRESOURCES.contains(&resource.as_str()) {
                prop_assert_eq!(parsed.namespace, namespace);
                prop_assert_eq!(parsed.resource, resource);
                prop_assert_eq!(parsed.name, name);
            }
        }
    }
}
