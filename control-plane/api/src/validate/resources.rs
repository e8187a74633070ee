//! Amounts: what resources are called, and what containers and pods ask for.

use std::collections::{BTreeMap, BTreeSet};

use super::Causes;
use super::field::Field;
use crate::{Quantity, name};

const NOT_INTEGER: &str = "must be an integer";
const HUGE_PAGES: &str = "hugepages-";
/// Resources that are counted, never divided.
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Names without a domain that mean something somewhere.
const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Where a resource's name stands: that decides which names are known there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Container,
    Pod,
    Quota,
    /// A kind of limit that is neither a pod's nor a container's, and nodes.
    Any,
}

fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

fn is_extended(resource: &str) -> bool {
    !is_native(resource)
        && !resource.starts_with("requests.")
        && name::qualified(&format!("requests.{resource}")).is_empty()
}

pub(super) fn is_huge_pages(resource: &str) -> bool {
    resource.starts_with(HUGE_PAGES)
}

/// Whether more of a resource may be promised than there is.
pub(super) fn may_overcommit(resource: &str) -> bool {
    is_native(resource) && !is_huge_pages(resource)
}

fn is_quota_name(resource: &str) -> bool {
    (STANDARD.contains(&resource) && resource != "storage")
        || ["hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix))
}

/// The name of a resource, at `field`.
pub(super) fn check_name(used: Use, resource: &str, field: &Field<'_, '_>, causes: &mut Causes) {
    let shown = resource.into();
    let faults = name::qualified(resource);
    if !faults.is_empty() {
        for fault in faults {
            field.invalid_as(&shown, &fault, causes);
        }
        return;
    }
    let plain = !resource.contains('/');
    if plain && !STANDARD.contains(&resource) && !is_huge_pages(resource) && !is_quota_name(resource) {
        field.invalid_as(&shown, "must be a standard resource type or fully qualified", causes);
    }
    let for_containers = ["cpu", "memory", "ephemeral-storage"].contains(&resource) || is_huge_pages(resource);
    match used {
        Use::Container if plain && !for_containers => {
            field.invalid_as(&shown, "must be a standard resource for containers", causes);
        }
        Use::Container if !is_native(resource) && !is_extended(resource) => {
            field.invalid_as(&shown, "doesn't follow extended resource name standard", causes);
        }
        Use::Pod if !["cpu", "memory"].contains(&resource) && !is_huge_pages(resource) => {
            causes.push(crate::Cause::not_supported(field.path(), &shown, &["cpu", "hugepages-", "memory"]));
        }
        Use::Quota if plain && !is_quota_name(resource) => {
            field.invalid_as(&shown, "must be a standard resource for quota", causes);
        }
        _ => {}
    }
}

/// An amount of a resource: not negative, and whole when it is counted.
pub(super) fn check_amount(resource: &str, amount: &Field<'_, '_>, causes: &mut Causes) {
    match amount.quantity() {
        None => amount.invalid(&crate::quantity::Error::Format.to_string(), causes),
        Some(quantity) => {
            if quantity.is_negative() {
                amount.invalid_as(&quantity.to_string().into(), super::NOT_NEGATIVE, causes);
            }
            if (COUNTED.contains(&resource) || is_extended(resource)) && !quantity.is_whole() {
                amount.invalid_as(&quantity.to_string().into(), NOT_INTEGER, causes);
            }
        }
    }
}

/// A map of resources to amounts.
pub(super) fn check_amounts(used: Use, amounts: &Field<'_, '_>, causes: &mut Causes) {
    for (resource, amount) in amounts.entries() {
        check_name(used, resource, &amount, causes);
        check_amount(resource, &amount, causes);
    }
}

/// Huge pages are asked for in whole pages.
fn check_pages(resource: &str, amount: &Field<'_, '_>, causes: &mut Causes) {
    let Some(size) = resource.strip_prefix(HUGE_PAGES) else { return };
    let page = Quantity::parse(size).ok().filter(|page| page.is_whole() && page.value() > 0);
    let whole = amount.quantity().is_none_or(|amount| {
        page.is_some_and(|page| amount.is_whole() && amount.value().checked_rem(page.value()) == Some(0))
    });
    if !whole {
        let shown = amount.quantity().map(|amount| amount.to_string()).unwrap_or_default();
        let detail = format!("{shown} is not positive integer multiple of {resource}");
        amount.invalid_as(&shown.into(), &detail, causes);
    }
}

/// Requests and limits, of a container or of a pod as a whole.
pub(super) fn check(used: Use, resources: &Field<'_, '_>, claims: &BTreeSet<&str>, causes: &mut Causes) {
    let (limits, requests) = (resources.key("limits"), resources.key("requests"));
    let (mut pages, mut others) = (false, false);
    for amounts in [&limits, &requests] {
        check_amounts(used, amounts, causes);
        for (resource, amount) in amounts.entries() {
            check_pages(resource, &amount, causes);
            pages |= is_huge_pages(resource);
            others |= ["cpu", "memory"].contains(&resource);
        }
    }
    for (resource, request) in requests.entries() {
        let limit = limits.entry(resource);
        if !limit.is_set() {
            if !may_overcommit(resource) {
                limits.required("Limit must be set for non overcommitable resources", causes);
            }
            continue;
        }
        let (Some(wanted), Some(most)) = (request.quantity(), limit.quantity()) else { continue };
        if !may_overcommit(resource) && wanted != most {
            let detail = format!("must be equal to {resource} limit of {most}");
            requests.invalid_as(&wanted.to_string().into(), &detail, causes);
        } else if wanted > most {
            let detail = format!("must be less than or equal to {resource} limit of {most}");
            requests.invalid_as(&wanted.to_string().into(), &detail, causes);
        }
    }
    if pages && !others {
        resources.forbidden("HugePages require cpu or memory", causes);
    }
    check_claims(&resources.key("claims"), claims, causes);
}

/// Each claim that a container names is one of the pod's, and is named once.
fn check_claims(named: &Field<'_, '_>, claims: &BTreeSet<&str>, causes: &mut Causes) {
    // A claim as a whole is there once, or parts of it are, each once.
    let (mut seen, mut parts) = (BTreeSet::new(), BTreeSet::new());
    for one in named.items() {
        let (claim, request) = (one.key("name").text(), one.key("request"));
        if claim.is_empty() {
            continue;
        }
        request.may_be(name::dns1123_label, causes);
        let whole = request.text().is_empty();
        if parts.contains(&(claim, "")) || parts.contains(&(claim, request.text())) || (whole && seen.contains(claim)) {
            causes.push(crate::Cause::duplicate(one.path(), &claim.into()));
        }
        seen.insert(claim);
        parts.insert((claim, request.text()));
        if !claims.contains(claim) {
            causes.push(crate::Cause::not_found(one.path(), &claim.into()));
        }
    }
}

/// What a pod asks for as a whole is no less than what its containers ask for together; no container's limit is above the pod's.
pub(super) fn check_pod(spec: &Field<'_, '_>, causes: &mut Causes) {
    let whole = spec.key("resources");
    if !whole.is_set() {
        return;
    }
    if !whole.key("claims").list().is_empty() {
        whole.key("claims").forbidden("claims cannot be set for Resources at pod-level", causes);
    }
    check(Use::Pod, &whole, &BTreeSet::new(), causes);
    let containers = spec.key("containers");
    let requests = whole.key("requests");
    let mut sums: BTreeMap<&str, Quantity> = BTreeMap::new();
    for container in containers.items() {
        for (resource, amount) in container.key("resources").key("requests").entries() {
            let sum = sums.entry(resource).or_insert(Quantity::ZERO);
            *sum = sum.saturating_add(amount.quantity().unwrap_or(Quantity::ZERO));
        }
    }
    for (resource, sum) in sums {
        let request = requests.entry(resource);
        if request.quantity().unwrap_or(Quantity::ZERO) < sum {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            request.invalid(&detail, causes);
        }
    }
    let below = whole.key("containers");
    for (index, container) in containers.items().enumerate() {
        for (resource, limit) in container.key("resources").key("limits").entries() {
            let most = whole.key("limits").entry(resource).quantity();
            if let (Some(limit), Some(most)) = (limit.quantity(), most)
                && limit > most
            {
                let detail = format!("must be less than or equal to pod limits of {most}");
                let place = below.index(index);
                let place = place.entry(resource);
                place.key("limits").invalid_as(&limit.to_string().into(), &detail, causes);
            }
        }
    }
}
