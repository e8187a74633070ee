//! Pod specs, and what may change in a pod that exists.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Causes, Syntax, affinity, container, items, metadata, not_negative, one_of, refuse, text, volume};
use crate::{Cause, Object, name};

/// The spec of a pod or of a template, at `path`.
pub(super) fn check(spec: &Value, path: &str, causes: &mut Causes) {
    let volumes = volume::check(items(spec, "volumes"), &format!("{path}.volumes"), causes);
    if items(spec, "containers").is_empty()
        && spec.get("containers").is_none_or(|list| !list.is_array())
        && spec.is_null()
    {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let context = container::Context {
        volumes: &volumes,
        host_network: spec.get("hostNetwork").and_then(Value::as_bool) == Some(true),
    };
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, one) in items(spec, list).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            let given = text(one, "name");
            if !given.is_empty() && !names.insert(given) {
                causes.push(Cause::duplicate(format!("{path}.name"), &given.into()));
            }
            container::check(list, one, &path, &context, causes);
            if list == "containers" {
                container::check_host_ports(one, &path, &mut host_ports, causes);
            }
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], causes);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(spec, path, "dnsPolicy", &policies, causes);
    if text(spec, "dnsPolicy") == "None" && items(&spec["dnsConfig"], "nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(Cause::required(format!("{path}.dnsConfig.nameservers"), detail));
    }
    not_negative(spec, path, &["terminationGracePeriodSeconds"], causes);
    if let Some(seconds) = spec.get("activeDeadlineSeconds").and_then(Value::as_i64)
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        causes.push(Cause::invalid(format!("{path}.activeDeadlineSeconds"), &seconds.into(), &detail));
    }
    names_of(spec, path, causes);
    metadata::labels(spec.get("nodeSelector"), &format!("{path}.nodeSelector"), causes);
    affinity::check(spec, path, causes);
    affinity::check_tolerations(items(spec, "tolerations"), &format!("{path}.tolerations"), causes);
    affinity::check_spread(
        items(spec, "topologySpreadConstraints"),
        &format!("{path}.topologySpreadConstraints"),
        causes,
    );
    container::check_user_ids(&spec["securityContext"], &format!("{path}.securityContext"), causes);
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let ip = text(alias, "ip");
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(Cause::invalid_str(format!("{path}.hostAliases[{index}].ip"), ip, detail));
        }
    }
}

fn names_of(spec: &Value, path: &str, causes: &mut Causes) {
    let syntaxes: [(&str, Syntax); 6] = [
        ("hostname", name::dns1123_label),
        ("subdomain", name::dns1123_label),
        ("serviceAccountName", name::dns1123_subdomain),
        ("nodeName", name::dns1123_subdomain),
        ("priorityClassName", name::dns1123_subdomain),
        ("runtimeClassName", name::dns1123_subdomain),
    ];
    for (key, syntax) in syntaxes {
        let given = text(spec, key);
        if !given.is_empty() {
            refuse(&format!("{path}.{key}"), given, syntax(given), causes);
        }
    }
}

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn check_update(subresource: &str, new: &Object, old: &Object, causes: &mut Causes) {
    match subresource {
        "ephemeralcontainers" => return check_ephemeral(new, old, causes),
        // What a resize may touch was limited before; what it asks for was judged with the spec.
        "resize" => return,
        _ => {}
    }
    for list in ["containers", "initContainers"] {
        let (now, before) = (new.list_at(&["spec", list]), old.list_at(&["spec", list]));
        if now.len() != before.len() {
            causes.push(Cause::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return;
        }
    }
    let mut wanted = new.get("spec").cloned().unwrap_or(Value::Null);
    let before = old.get("spec").cloned().unwrap_or(Value::Null);
    for list in ["containers", "initContainers"] {
        for (index, one) in items(&before, list).iter().enumerate() {
            wanted[list][index]["image"] = one["image"].clone();
        }
    }
    check_deadline(&wanted, &before, causes);
    check_added_tolerations(&wanted, &before, causes);
    let gates = items(&before, "schedulingGates");
    if items(&wanted, "schedulingGates").iter().all(|gate| gates.contains(gate)) {
        copy(&mut wanted, &before, "schedulingGates");
    }
    if before["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0)
        && wanted["terminationGracePeriodSeconds"] == json!(1)
    {
        copy(&mut wanted, &before, "terminationGracePeriodSeconds");
    }
    for key in ["activeDeadlineSeconds", "tolerations", "ephemeralContainers"] {
        copy(&mut wanted, &before, key);
    }
    // A gated pod waits for its place, so where it may go can still be narrowed.
    if !gates.is_empty() {
        for key in ["nodeSelector", "affinity"] {
            copy(&mut wanted, &before, key);
        }
    }
    if wanted != before {
        causes.push(Cause::forbidden("spec", MUTABLE));
    }
}

fn copy(target: &mut Value, source: &Value, key: &str) {
    let Some(map) = target.as_object_mut() else { return };
    match source.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

fn check_deadline(new: &Value, old: &Value, causes: &mut Causes) {
    const FIELD: &str = "spec.activeDeadlineSeconds";
    match (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64()) {
        (Some(now), Some(before)) if now > before => {
            let detail = "must be less than or equal to previous value";
            causes.push(Cause::invalid(FIELD, &now.into(), detail));
        }
        (None, Some(before)) => {
            let detail = format!("must not update from a positive integer to nil value (it was {before})");
            causes.push(Cause::invalid(FIELD, &Value::Null, &detail));
        }
        _ => {}
    }
}

fn check_added_tolerations(new: &Value, old: &Value, causes: &mut Causes) {
    let now = items(new, "tolerations");
    if items(old, "tolerations").iter().any(|one| !now.contains(one)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        causes.push(Cause::forbidden("spec.tolerations", detail));
    }
}

fn check_ephemeral(new: &Object, old: &Object, causes: &mut Causes) {
    let now = new.list_at(&["spec", "ephemeralContainers"]);
    for before in old.list_at(&["spec", "ephemeralContainers"]) {
        let Some(index) = now.iter().position(|one| one["name"] == before["name"]) else {
            let detail = format!("existing ephemeral containers {} may not be removed\n", before["name"]);
            causes.push(Cause::forbidden("spec.ephemeralContainers", &detail));
            continue;
        };
        if now[index] != *before {
            let detail = format!("existing ephemeral containers {} may not be changed\n", before["name"]);
            causes.push(Cause::forbidden("spec.ephemeralContainers", &detail));
        }
    }
}
