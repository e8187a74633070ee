//! How a pod resolves names, and what it is called on the network.

use serde_json::json;

use crate::name;
use crate::validate::field::Field;
use crate::validate::{Causes, address, syntax};

/// resolv.conf(5) of the libraries in use reads no more.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_BYTES_MAX: usize = 2048;
/// sethostname(2).
const HOST_NAME_BYTES_MAX: usize = 64;

pub(super) fn check_dns(spec: &Field<'_, '_>, causes: &mut Causes) {
    const POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    let policy = spec.key("dnsPolicy");
    policy.one_of(POLICIES, causes);
    let config = spec.key("dnsConfig");
    let servers = config.key("nameservers");
    if policy.text() == "None" {
        if !config.is_set() {
            return config.required("must provide `dnsConfig` when `dnsPolicy` is None", causes);
        }
        if servers.list().is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return servers.required(detail, causes);
        }
    }
    if servers.list().len() > NAMESERVERS_MAX {
        servers.invalid(&format!("must not have more than {NAMESERVERS_MAX} nameservers"), causes);
    }
    for server in servers.items() {
        address::check(&server, causes);
    }
    let searches = config.key("searches");
    if searches.list().len() > SEARCHES_MAX {
        searches.invalid(&format!("must not have more than {SEARCHES_MAX} search paths"), causes);
    }
    let bytes: usize = searches.items().map(|search| search.text().len().saturating_add(1)).sum();
    if bytes.saturating_sub(1) > SEARCH_BYTES_MAX {
        let detail =
            format!("must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list");
        searches.invalid(&detail, causes);
    }
    for search in searches.items() {
        search.must_be(syntax::search_domain, causes);
    }
    for option in config.key("options").items() {
        if option.key("name").text().is_empty() {
            option.required("must not be empty", causes);
        }
    }
}

/// Lines of /etc/hosts: each name a name, or a line break would write lines of its own.
pub(super) fn check_host_aliases(aliases: &Field<'_, '_>, causes: &mut Causes) {
    for alias in aliases.items() {
        let given = alias.key("ip");
        if !given.text().is_empty() {
            address::check(&given, causes);
        }
        for host in alias.key("hostnames").items() {
            host.must_be(name::dns1123_subdomain, causes);
        }
    }
}

pub(super) fn check_host_name(spec: &Field<'_, '_>, causes: &mut Causes) {
    spec.key("hostname").may_be(name::dns1123_label, causes);
    spec.key("subdomain").may_be(name::dns1123_label, causes);
    let own = spec.key("hostnameOverride");
    if !own.is_set() {
        return;
    }
    if spec.key("setHostnameAsFQDN").is_true() {
        own.forbidden("cannot be set when setHostnameAsFQDN is true", causes);
    }
    if spec.key("hostNetwork").is_true() {
        own.forbidden("cannot be set when hostNetwork is true", causes);
    }
    if own.text().len() > HOST_NAME_BYTES_MAX {
        own.invalid(&format!("must be no more than {HOST_NAME_BYTES_MAX} characters"), causes);
    }
    own.must_be(name::dns1123_subdomain, causes);
}

/// Scheduling and readiness gates.
pub(super) fn check_gates(spec: &Field<'_, '_>, causes: &mut Causes) {
    for gate in spec.key("readinessGates").items() {
        gate.key("conditionType").must_be(name::qualified, causes);
    }
    let mut seen = std::collections::BTreeSet::new();
    for gate in spec.key("schedulingGates").items() {
        let given = gate.key("name").text();
        for fault in name::qualified(given) {
            gate.invalid_as(&given.into(), &fault, causes);
        }
        if !seen.insert(given) {
            causes.push(crate::Cause::duplicate(gate.path(), &json!(given)));
        }
    }
}
