//! Ingresses and their classes.

use std::net::IpAddr;

use super::field::Field;
use super::{Causes, unchanged};
use crate::{Object, name};

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
/// What proxies read in more than one way.
const PATH_PARTS: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const PATH_ENDS: &[&str] = &["/..", "/."];
const CONTROLLER_BYTES_MAX: usize = 250;

/// A name, or one whose first label stands for any.
fn host_syntax(text: &str) -> Vec<String> {
    name::dns1123_subdomain(text.strip_prefix("*.").unwrap_or(text))
}

pub(super) fn check(spec: &Field<'_, '_>, causes: &mut Causes) {
    let (rules, fallback) = (spec.key("rules"), spec.key("defaultBackend"));
    if rules.list().is_empty() && !fallback.is_set() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        spec.invalid_as(&serde_json::json!([]), detail, causes);
    }
    if fallback.is_set() {
        check_backend(&fallback, causes);
    }
    for tls in spec.key("tls").items() {
        for host in tls.key("hosts").items() {
            host.must_be(host_syntax, causes);
        }
        tls.key("secretName").may_be(name::dns1123_subdomain, causes);
    }
    if spec.key("ingressClassName").is_set() {
        spec.key("ingressClassName").must_be(name::dns1123_subdomain, causes);
    }
    for rule in rules.items() {
        let host = rule.key("host");
        if host.text().parse::<IpAddr>().is_ok() {
            host.invalid("must be a DNS name, not an IP address", causes);
        } else {
            host.may_be(host_syntax, causes);
        }
        for path in rule.key("http").key("paths").items() {
            check_path(&path, causes);
            check_backend(&path.key("backend"), causes);
        }
    }
}

fn check_path(rule: &Field<'_, '_>, causes: &mut Causes) {
    let (kind, path) = (rule.key("pathType"), rule.key("path"));
    let absolute = path.text().starts_with('/');
    match kind.text() {
        "" => kind.required("pathType must be specified", causes),
        "Exact" | "Prefix" => {
            if !absolute {
                path.invalid_as(&path.text().into(), "must be an absolute path", causes);
            }
            for part in PATH_PARTS.iter().filter(|part| path.text().contains(**part)) {
                path.invalid(&format!("must not contain '{part}'"), causes);
            }
            for end in PATH_ENDS.iter().filter(|end| path.text().ends_with(**end)) {
                path.invalid(&format!("cannot end with '{end}'"), causes);
            }
        }
        "ImplementationSpecific" if !absolute && !path.text().is_empty() => {
            path.invalid("must be an absolute path", causes);
        }
        _ => kind.one_of(PATH_TYPES, causes),
    }
}

fn check_backend(backend: &Field<'_, '_>, causes: &mut Causes) {
    let (service, resource) = (backend.key("service"), backend.key("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => backend.invalid_as(&"".into(), "cannot set both resource and service backends", causes),
        (false, false) => backend.required("resource or service backend is required", causes),
        (false, true) => {
            resource.key("apiGroup").may_be(name::dns1123_subdomain, causes);
            resource.key("kind").may_be(name::path_segment, causes);
            resource.key("name").may_be(name::path_segment, causes);
        }
        (true, false) => {
            service.key("name").may_be(name::dns1035_label, causes);
            let port = service.key("port");
            let (number, given) = (port.key("number"), port.key("name"));
            match (number.int(), given.text()) {
                (0, "") => backend.required("port name or number is required", causes),
                (0, _) => given.must_be(name::port_name, causes),
                (_, "") => number.port_number(causes),
                _ => backend.invalid_as(&"".into(), "cannot set both port name & port number", causes),
            }
        }
    }
}

pub(super) fn check_class(spec: &Field<'_, '_>, causes: &mut Causes) {
    let controller = spec.key("controller");
    let text = controller.text();
    if text.is_empty() {
        controller.required("", causes);
    } else if text.len() > CONTROLLER_BYTES_MAX {
        controller.too_long(CONTROLLER_BYTES_MAX, causes);
    } else {
        for fault in domain_path(text) {
            controller.invalid(&fault, causes);
        }
    }
    let parameters = spec.key("parameters");
    if !parameters.is_set() {
        return;
    }
    parameters.key("apiGroup").may_be(name::dns1123_subdomain, causes);
    parameters.key("kind").may_be(name::path_segment, causes);
    parameters.key("name").may_be(name::path_segment, causes);
    let (scope, namespace) = (parameters.key("scope"), parameters.key("namespace"));
    match scope.text() {
        "Namespace" if namespace.text().is_empty() => {
            namespace.required("`parameters.scope` is set to 'Namespace'", causes);
        }
        "Namespace" => namespace.must_be(name::dns1123_label, causes),
        "Cluster" if namespace.is_set() => {
            namespace.forbidden("`parameters.scope` is set to 'Cluster'", causes);
        }
        _ => scope.one_of(&["Cluster", "Namespace"], causes),
    }
}

/// `example.com/path`.
pub(super) fn domain_path(text: &str) -> Vec<String> {
    let Some((domain, path)) = text.split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".into()];
    };
    let mut wrong = name::dns1123_subdomain(domain);
    if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte)) {
        wrong.push("Invalid path (e.g. 'a/b', regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')".into());
    }
    wrong
}

pub(super) fn check_class_update(new: &Object, old: &Object, causes: &mut Causes) {
    unchanged(new, old, &["spec", "controller"], causes);
}
