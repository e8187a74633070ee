//! Quotas and limit ranges: what a namespace may hold.

use std::collections::{BTreeMap, BTreeSet};

use super::field::Field;
use super::resources::{self, Use};
use super::{Causes, IMMUTABLE};
use crate::{Cause, Object, Quantity, name};

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const COMPUTE: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];
/// A pod is one or the other.
const OPPOSITES: &[(&str, &str)] = &[("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")];
const LIMIT_TYPES: &[&str] = &["Container", "PersistentVolumeClaim", "Pod"];

/// Whether amounts of a resource can be counted by a scope.
fn counts(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" | "CrossNamespacePodAffinity" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" => {
            COMPUTE.contains(&resource) || resource.contains('/')
        }
        _ => true,
    }
}

pub(super) fn check(spec: &Field<'_, '_>, causes: &mut Causes) {
    let hard = spec.key("hard");
    resources::check_amounts(Use::Quota, &hard, causes);
    let scopes = spec.key("scopes");
    let mut named = BTreeSet::new();
    for scope in scopes.items().filter(|scope| named.insert(scope.text())) {
        judge(&hard, &scopes, scope.text(), causes);
    }
    conflicts(&scopes, &named, causes);
    let selector = spec.key("scopeSelector");
    let list = selector.key("matchExpressions");
    let mut named = BTreeSet::new();
    for one in list.items() {
        let (scope, operator, values) = (one.key("scopeName").text(), one.key("operator").text(), one.key("values"));
        let place = |key| list.named(key);
        if named.insert(scope) {
            judge(&hard, &list, scope, causes);
        }
        if !["PriorityClass", "VolumeAttributesClass"].contains(&scope) && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            place("operator").invalid_as(&operator.into(), detail, causes);
        }
        match operator {
            "In" | "NotIn" if values.list().is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                place("values").required(detail, causes);
            }
            "Exists" | "DoesNotExist" if !values.list().is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                place("values").invalid_as(values.value, detail, causes);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => place("operator").invalid_as(&operator.into(), "not a valid selector operator", causes),
        }
    }
    conflicts(&list, &named, causes);
}

fn judge(hard: &Field<'_, '_>, scopes: &Field<'_, '_>, scope: &str, causes: &mut Causes) {
    if !SCOPES.contains(&scope) {
        scopes.invalid("unsupported scope", causes);
    } else if hard.entries().any(|(resource, _)| !resource.contains('/') && !counts(scope, resource)) {
        scopes.invalid("unsupported scope applied to resource", causes);
    }
}

fn conflicts(scopes: &Field<'_, '_>, named: &BTreeSet<&str>, causes: &mut Causes) {
    if OPPOSITES.iter().any(|(one, other)| named.contains(one) && named.contains(other)) {
        scopes.invalid("conflicting scopes", causes);
    }
}

pub(super) fn check_update(new: &Object, old: &Object, causes: &mut Causes) {
    let set = |object: &Object| {
        let scopes = object.list_at(&["spec", "scopes"]);
        scopes.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    if set(new) != set(old) {
        let shown = new.at(&["spec", "scopes"]).unwrap_or(&serde_json::Value::Null);
        causes.push(Cause::invalid("spec.scopes", shown, IMMUTABLE));
    }
}

pub(super) fn check_status(status: &Field<'_, '_>, causes: &mut Causes) {
    for key in ["hard", "used"] {
        resources::check_amounts(Use::Quota, &status.key(key), causes);
    }
}

pub(super) fn check_limit_range(spec: &Field<'_, '_>, causes: &mut Causes) {
    let mut types = BTreeSet::new();
    for item in spec.key("limits").items() {
        let kind = item.key("type");
        let faults = name::qualified(kind.text());
        for fault in &faults {
            kind.invalid_as(&kind.text().into(), fault, causes);
        }
        if faults.is_empty() && !kind.text().contains('/') && !LIMIT_TYPES.contains(&kind.text()) {
            kind.invalid("must be a standard limit type or fully qualified", causes);
        }
        if !types.insert(kind.text()) {
            kind.duplicate(causes);
        }
        check_limits(&item, causes);
    }
}

fn check_limits(item: &Field<'_, '_>, causes: &mut Causes) {
    let kind = item.key("type").text();
    let used = if ["Container", "Pod"].contains(&kind) { Use::Container } else { Use::Any };
    let mut found: BTreeMap<&str, BTreeMap<&str, Quantity>> = BTreeMap::new();
    for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let amounts = item.key(key);
        if kind == "Pod" && ["default", "defaultRequest"].contains(&key) {
            if amounts.entries().next().is_some() {
                amounts.forbidden("may not be specified when `type` is 'Pod'", causes);
            }
            continue;
        }
        for (resource, amount) in amounts.entries() {
            resources::check_name(used, resource, &amount, causes);
            match amount.quantity() {
                Some(quantity) if quantity.is_negative() => amount.invalid(super::NOT_NEGATIVE, causes),
                Some(quantity) => drop(found.entry(resource).or_default().insert(key, quantity)),
                None => amount.invalid(&crate::quantity::Error::Format.to_string(), causes),
            }
        }
    }
    let bounds = ["min", "max"].iter().any(|key| item.key(key).entry("storage").is_set());
    if kind == "PersistentVolumeClaim" && !bounds {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        item.key("limits").required(detail, causes);
    }
    for (resource, amounts) in found {
        check_order(item, resource, &amounts, causes);
    }
}

fn check_order(item: &Field<'_, '_>, resource: &str, amounts: &BTreeMap<&str, Quantity>, causes: &mut Causes) {
    const WORDS: &[(&str, &str)] =
        &[("min", "min"), ("max", "max"), ("default", "default"), ("defaultRequest", "default request")];
    let word = |key: &str| WORDS.iter().find(|(name, _)| *name == key).map_or("", |(_, word)| *word);
    // The smaller, the larger, and where upstream reports it.
    for (small, large, place) in [
        ("min", "max", "min"),
        ("min", "defaultRequest", "defaultRequest"),
        ("defaultRequest", "max", "defaultRequest"),
        ("defaultRequest", "default", "defaultRequest"),
        ("min", "default", "default"),
        ("default", "max", "default"),
    ] {
        if let (Some(less), Some(more)) = (amounts.get(small), amounts.get(large))
            && less > more
        {
            let large_word =
                if (small, large) == ("defaultRequest", "default") { "default limit" } else { word(large) };
            let detail = format!("{} value {less} is greater than {large_word} value {more}", word(small));
            let shown = amounts.get(place).unwrap_or(less).to_string();
            item.key(place).entry(resource).invalid_as(&shown.into(), &detail, causes);
        }
    }
    if let Some(ratio) = amounts.get("maxLimitRequestRatio")
        && *ratio < Quantity::from_millis(1000)
    {
        let detail = format!("ratio {ratio} is less than 1");
        item.key("maxLimitRequestRatio").entry(resource).invalid_as(&ratio.to_string().into(), &detail, causes);
    }
    if let (Some(ratio), Some(min), Some(max)) =
        (amounts.get("maxLimitRequestRatio"), amounts.get("min"), amounts.get("max"))
    {
        // ratio > max / min, without a division.
        let product = i128::from(ratio.milli_value()).saturating_mul(i128::from(min.milli_value()));
        if product > i128::from(max.milli_value()).saturating_mul(1000) {
            let detail = format!("ratio {ratio} is greater than max/min = {max}/{min}");
            item.key("maxLimitRequestRatio").entry(resource).invalid_as(&ratio.to_string().into(), &detail, causes);
        }
    }
    if let (Some(limit), Some(request)) = (amounts.get("default"), amounts.get("defaultRequest"))
        && !resources::may_overcommit(resource)
        && limit != request
    {
        let detail = format!("default value {limit} must equal to defaultRequest value {request} in {resource}");
        item.key("defaultRequest").entry(resource).invalid_as(&request.to_string().into(), &detail, causes);
    }
}
